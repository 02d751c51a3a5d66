"""Mined candidates against plain loops over pairs; sealed shards of a killed stage are kept."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints import store
from stages.distillation.models import ModelSource, load_encoder, load_tokenizer
from stages.distillation.students.dual_encoder import as_dual_encoder
from stages.tasks.kinds import Ranking
from stages.tasks.types import Split
from stages.teaching import mined_candidates as mining
from stages.teaching.mined_candidates import all_scores, mined_candidates, text_vectors
from tests.conftest import make_encoder, make_tokenizer, sentences
from tests.stages.foreign import make_stage

TEXTS = [text for text, _ in sentences(31)]
TRAIN = Split(
    ["the film ?"] * 12 + ["a plot"] * 12 + ["cry ?"] * 7,
    TEXTS,
    [int(i in (0, 3, 12, 30)) for i in range(31)],
)
TASK = SimpleNamespace(kind=Ranking(("wrong", "right")), labels=("wrong", "right"), splits={"train": TRAIN})


@pytest.fixture(params=["mean", "tokens"])
def miner(tmp_path, world, request):
    """A dual encoder, and a stage that reads it."""
    torch.manual_seed(1)
    directory = make_encoder(tmp_path / "encoder")
    model = as_dual_encoder(load_encoder(ModelSource(str(directory))), request.param, 5.0)
    TASK.kind.configure(model.config)
    with store.sealed(tmp_path / "miner") as sealed:
        model.save_pretrained(sealed)
        make_tokenizer(directory).save_pretrained(sealed)
    stage = make_stage(tmp_path / "runs" / "run" / "student")
    stage.inputs = {"task": {}, "reads miner": {"path": str(tmp_path / "miner")}}
    return model.eval(), stage


def test_those_that_rank_highest_and_are_not_right_are_mined_in_shards(miner, monkeypatch):
    model, stage = miner
    tokenizer = load_tokenizer(stage.model("reads miner"))

    def scores(question: str, texts: list[str]) -> dict[str, float]:
        """As pairs."""
        with torch.no_grad():
            read = tokenizer([question] * len(texts), texts, padding=True, return_tensors="pt")
            return dict(zip(texts, model(**read).logits[:, 1].tolist(), strict=True))

    right = [(a, b) for a, b, label in zip(TRAIN.text_a, TRAIN.text_b, TRAIN.labels, strict=True) if label]
    plain = {question: scores(question, sorted(set(TEXTS))) for question in dict.fromkeys(TRAIN.text_a)}
    tokenizer = load_tokenizer(stage.model("reads miner"))
    settings = tokenizer.backend_tokenizer.to_str()
    monkeypatch.setattr(mining, "SHARD_CANDIDATES", 7)
    found = mined_candidates(stage, TASK, "reads miner", 4)
    pairs = list(zip(found.text_a, found.text_b, strict=True))
    assert pairs[: len(right)] == right and found.labels == [1] * 4 + [0] * 12
    for question, of in plain.items():
        best = sorted((-score for text, score in of.items() if (question, text) not in right))[:4]
        assert [-of[b] for a, b in pairs[4:] if a == question] == pytest.approx(best, abs=1e-4)
    assert not {*pairs[4:]} & {*right}
    vectors = [text_vectors(model, tokenizer, of, 32) for of in (["the film ?"], TEXTS[:2])]
    assert all_scores(*vectors)[0, 1] == pytest.approx(plain["the film ?"][TEXTS[1]], abs=1e-4)
    assert tokenizer.backend_tokenizer.to_str() == settings  # as it is written beside the student

    ranked = []  # what a killed stage does again: the shard that is torn
    shards = sorted(stage.directory.glob("teacher/mined-*/step-*"))
    assert len(shards) == 5
    (shards[2] / "best.npz").write_bytes(b"torn")
    store.remove(next(stage.cache.glob("mined-*")))
    monkeypatch.setattr(mining, "all_scores", lambda q, p: ranked.append(len(p)) or all_scores(q, p))
    assert mined_candidates(stage, TASK, "reads miner", 4) == found and ranked == [7]
    store.remove(stage.directory / "teacher")
    assert mined_candidates(stage, TASK, "reads miner", 4) == found and ranked == [
        7
    ]  # from the cache of all runs
    for path in (stage.directory / "teacher", next(stage.cache.glob("mined-*"))):
        store.remove(path)
    monkeypatch.setattr(mining, "BLOCK_QUESTIONS", 2)  # the same in blocks of questions
    assert mined_candidates(stage, TASK, "reads miner", 4) == found and len(ranked) == 1 + 2 * 5
    many = mined_candidates(stage, TASK, "reads miner", 40)
    assert [many.text_a[4:].count(a) for a in plain] == [29, 30, 30] and np.sum(many.labels) == 4
