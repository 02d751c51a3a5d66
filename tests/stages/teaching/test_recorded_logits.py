"""The teacher's logits by row: shared by ranks and resumed, the same as those of one pass."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.distillation.outputs import ModelOutputs
from stages.tasks.kinds import Classes
from stages.tasks.row_maker import RowMaker
from stages.tasks.token_rows import TokenRows, write_rows
from stages.tasks.types import Split
from stages.teaching import recorded_logits, shards
from stages.teaching.recorded_logits import compute_logits
from tests.conftest import make_tokenizer, sentences
from tests.stages.foreign import make_stage


@pytest.mark.parametrize("words", [False, True])
def test_logits_of_three_ranks_are_those_of_one(tmp_path, world, monkeypatch, words):
    monkeypatch.setattr(recorded_logits, "SHARD_BATCHES", 1)
    texts = [text for text, _ in sentences(300)]
    labels = [[1] * len(text.split(" ")) for text in texts] if words else [0] * len(texts)
    maker = RowMaker.of(make_tokenizer(tmp_path / "tokenizer"), 16)
    write_rows(maker, maker.task_blocks([Split(texts, None, labels)]), tmp_path / "rows")
    rows, passes = TokenRows.open(tmp_path / "rows"), []

    def teacher(batch):
        passes.append(len(batch.rows))
        ids = batch.input_ids if words else batch.input_ids.sum(1)
        return ModelOutputs(logits_BC=torch.stack([ids, ids**2], -1).float())

    monkeypatch.setattr(recorded_logits, "task_teacher", lambda *_: teacher)
    task, of = SimpleNamespace(kind=Classes(("no", "yes"))), np.arange(5, 300)
    one = compute_logits(make_stage(tmp_path / "one"), task, rows, of)
    begin = int(rows.first_targets[5])
    expected = rows.collate(of, np.ones(len(of), np.float32))
    sums = teacher(expected).logits_BC[expected.label_mask].numpy()
    assert np.array_equal(one[begin:], sums) and len(passes) == 6

    stage = make_stage(tmp_path / "three")
    monkeypatch.setattr(shards, "barrier", lambda: None)
    for rank in (1, 2, 0):
        passes.clear()
        fake = SimpleNamespace(get_rank=lambda rank=rank: rank, get_world_size=lambda: 3)
        monkeypatch.setattr(shards, "dist", fake)
        if rank:
            monkeypatch.setattr(shards, "wait_for", lambda paths: (_ for _ in ()).throw(InterruptedError))
            with pytest.raises(InterruptedError):
                compute_logits(stage, task, rows, of)
        else:
            monkeypatch.setattr(shards, "wait_for", lambda paths: None)
            assert np.array_equal(compute_logits(stage, task, rows, of)[begin:], sums)
        assert 1 <= len(passes) <= 2
    passes.clear()
    compute_logits(stage, task, rows, of)
    assert not passes
