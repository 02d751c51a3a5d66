"""Long texts: windows that together hold all of a text, and one pooled answer for each text."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from checkpoints.errors import UserError
from stages.distillation.models import new_classifier
from stages.distillation.task_heads import kind_of
from stages.evaluation.predict import predict
from stages.tasks.kinds import Classes, LabelSets, Scores
from stages.tasks.row_maker import RowMaker
from stages.tasks.task import find_task, load_task
from stages.tasks.token_rows import TokenRows, merge_shards, write_shard, write_task_rows
from stages.tasks.types import Split, Task
from stages.tasks.windows import pooled
from stages.teaching.given_answers import answer_logits, with_answers
from tests.conftest import WORDS, make_tokenizer, tiny_config
from tests.stages.foreign import make_stage

LENGTH = 24
TEXTS = [" ".join((WORDS * 4)[:n]) for n in (60, 3, 21, 22, 23, 40)]
"""Two of them fill a window without and with its special tokens; the next is one token too long."""


@pytest.fixture
def tokenizer(tmp_path):
    return make_tokenizer(tmp_path / "tokenizer")


def rows_of(tmp_path, tokenizer, split: Split, pooling: str = "mean") -> TokenRows:
    return write_task_rows([split], tokenizer, LENGTH, tmp_path / "rows", pooling=pooling)


@pytest.mark.parametrize(
    "labels", [[0, 1, 1, 0, 1, 0], [0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [(1.0, 0.0), (0.0, 1.0)] * 3]
)
@pytest.mark.parametrize("pair", [False, True])
def test_windows_together_hold_the_text_and_each_has_its_label(tmp_path, tokenizer, labels, pair):
    split = Split(["who cry ?"] * 6, TEXTS, labels) if pair else Split(TEXTS, None, labels)
    rows = rows_of(tmp_path, tokenizer, split)
    assert rows.truncated == 0 and rows.lengths.max() == LENGTH and len(rows) > len(TEXTS)
    batch = rows.collate(np.arange(len(rows)), np.ones(len(rows), np.float32))
    assert np.array_equal(batch.labels.numpy(), np.array(labels)[rows.texts])
    ids = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    first = tokenizer("who cry ?", add_special_tokens=False)["input_ids"]
    lead = [tokenizer.cls_token_id, *([*first, tokenizer.sep_token_id] if pair else [])]
    for text, tokens in enumerate(ids):
        windows = [
            rows.tokens[rows.offsets[i] : rows.offsets[i + 1]].tolist()
            for i in np.flatnonzero(rows.texts == text)
        ]
        assert all(w[: len(lead)] == lead and w[-1] == tokenizer.sep_token_id for w in windows)
        parts = [w[len(lead) : -1] for w in windows]
        assert all(a[-LENGTH // 3 :] == b[: LENGTH // 3] for a, b in pairwise(parts))
        assert parts[0] + [t for part in parts[1:] for t in part[LENGTH // 3 :]] == tokens
        assert (len(windows) == 1) == (len(lead) + len(tokens) + 1 <= LENGTH)


def test_shards_of_windows_are_the_windows_of_the_whole(tmp_path, tokenizer):
    split = Split(TEXTS, None, [0, 1] * 3)
    whole, maker = rows_of(tmp_path, tokenizer, split), RowMaker.of(tokenizer, LENGTH, windows=True)
    for part in (0, 1):
        of = Split(TEXTS[3 * part :][:3], None, split.labels[3 * part :][:3])
        write_shard(
            maker, maker.task_blocks([of]), tmp_path / f"shard-{part}", first=not part, last=bool(part)
        )
    merge_shards([tmp_path / "shard-0", tmp_path / "shard-1"], maker, tmp_path / "merged")
    merged = TokenRows.open(tmp_path / "merged")
    for name in ("tokens", "offsets", "begins", "labels"):
        assert np.array_equal(getattr(merged, name), getattr(whole, name)), name
    assert merged.places is None
    assert maker.settings != RowMaker.of(tokenizer, LENGTH).settings, "rows in the cache are told apart"


@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=4), min_size=1, max_size=6))
def test_pooled_logits_are_those_of_a_plain_loop(texts):
    logits = np.array([[value, -value] for of in texts for value in of], np.float32)
    begins = np.array([i == 0 for of in texts for i in range(len(of))])
    for how, plain in (("mean", np.mean), ("max", np.max)):
        expected = [[plain(of), plain([-value for value in of])] for of in texts]
        assert np.allclose(pooled(logits, begins, how), expected, atol=1e-4)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("kind", [Classes(("no", "yes")), LabelSets(("a", "b", "c")), Scores()])
def test_a_model_answers_once_for_each_text_and_says_so_in_its_config(tmp_path, tokenizer, kind, how):
    torch.manual_seed(0)
    kind = replace(kind, pooling=how)
    model = new_classifier(tiny_config(), kind).eval()
    assert model.config.window_pooling == how and kind_of(model.config).pooling == how
    rows = rows_of(tmp_path, tokenizer, Split(TEXTS, None, [0] * len(TEXTS)), how)
    found = predict(model, rows, torch.device("cpu"))
    for text, answer in zip(TEXTS, found, strict=True):
        windows = tokenizer(text, truncation=True, max_length=LENGTH, stride=LENGTH // 3, padding=True,
                            return_overflowing_tokens=True, return_tensors="pt")  # fmt: skip
        windows.pop("overflow_to_sample_mapping")
        with torch.no_grad():
            logits = model(**windows).logits
        assert np.allclose(answer, logits.mean(0) if how == "mean" else logits.amax(0), atol=1e-5)
    replace(kind, pooling="").configure(model.config)
    assert not hasattr(model.config, "window_pooling"), "a model that goes on to another task forgets it"


def test_each_window_learns_the_answer_to_its_text_and_whole_texts_are_noisy(tmp_path, tokenizer):
    split = Split(TEXTS, None, [0] * 6, answers=[(0.9, 0.1)] * 5 + [(0.0, 1.0)])
    kind = Classes(("no", "yes"), pooling="mean")
    task = Task("t", kind, {"train": split}, ("accuracy",), "accuracy")
    rows, stage = rows_of(tmp_path, tokenizer, split), make_stage(tmp_path / "stage")
    answers = answer_logits(task)
    assert np.array_equal(with_answers(stage, task, rows, None), answers[rows.texts])
    encoder = (
        np.tile(np.float32([2.0, 0.0]), (len(rows), 1)) + np.arange(len(rows), dtype=np.float32)[:, None]
    )
    stage.options["leave_out"] = 1 / 6
    learned = with_answers(stage, task, rows, encoder)
    noisy = rows.texts == 5
    assert noisy.sum() > 1 and np.allclose(learned[noisy], encoder[noisy].mean(0))
    assert np.array_equal(learned[~noisy], answers[rows.texts[~noisy]])


def test_a_first_text_that_leaves_no_room_is_named(tmp_path, tokenizer):
    split = Split(["a film"] * 5 + [TEXTS[3]], TEXTS, [0] * 6)
    with pytest.raises(
        UserError, match="24 tokens are too few for the first text .*which has 22: at most 12 leave room"
    ):
        rows_of(tmp_path, tokenizer, split)


def test_words_and_questions_have_no_pooled_windows(tmp_path):
    (tmp_path / "train.conll").write_text("a N\nfilm N\n\nis V\nit N\n\n" * 40)
    source = find_task("tags", str(tmp_path), windows="max")
    assert source.entry["identity"]["windows"] == "max"
    with pytest.raises(
        UserError, match="'max' pools what is said of a whole text, and the task has words; leave this out"
    ):
        load_task(source)
