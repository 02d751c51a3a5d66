"""Views from disk against those of the model."""

import errno
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertConfig

from checkpoints import store
from checkpoints.errors import UserError
from stages.distillation.losses import AttentionMaps, AttentionScores
from stages.distillation.models import ModelSource, load_classifier, load_tokenizer
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.kinds import Classes
from stages.teaching import cached_teacher as teacher_cache
from stages.teaching import live_teacher
from stages.teaching.cached_teacher import TeacherCache, kept_bytes
from stages.training.cached_rows import corpus_rows
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import WORDS, make_corpus, make_encoder

NEEDS = CaptureSpec(logits=True, hidden=frozenset({0, 2, 4}), queries_keys=frozenset({2, 4}))

ROUNDED = 2**-8 + 1e-5
"""Relative error of a number kept in bf16; batches of other rows move the teacher's own by a little."""


@pytest.fixture
def parts(tmp_path, world, monkeypatch):
    """A stage, rows of several shards, and a teacher whose passes are counted."""
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 20)
    path = make_corpus(tmp_path / "corpus.txt", 40)
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path)}}
    inputs = {"corpus": {"name": "corpus", "identity": files}}
    job = Job(precision="fp32")
    directory = tmp_path / "runs" / "r" / "intermediate"
    directory.mkdir(parents=True)
    stage = Stage("intermediate", "intermediate", directory, {}, inputs, "", job, torch.device("cpu"))
    source = ModelSource(str(make_encoder(tmp_path / "bert")))
    rows = corpus_rows(stage, load_tokenizer(source), 24, 0)
    teacher = FrozenTeacher(load_classifier(source, Classes(("no", "yes"))), NEEDS, stage.device)
    return stage, rows, teacher


def test_a_cached_view_is_the_models(parts):
    stage, rows, teacher = parts
    cache = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    assert len(cache.shards) == -(-len(rows) // 20) > 1
    batch = rows.collate(np.array([41, 0, 19, 20, 21]), np.array([1, 1, 1, 1, 0], np.float32))
    kept, live = cache(batch), teacher(batch)
    real_BL1 = batch.attention_mask[..., None].bool()
    torch.testing.assert_close(kept.logits_BC, live.logits_BC, rtol=1e-5, atol=1e-5)
    assert kept.hidden_BLW.keys() == live.hidden_BLW.keys() == NEEDS.hidden
    for layer, hidden_BLW in live.hidden_BLW.items():
        expected = torch.where(real_BL1, hidden_BLW, 0)
        torch.testing.assert_close(kept.hidden_BLW[layer], expected, rtol=ROUNDED, atol=1e-5)
    for mine, theirs in ((kept.queries_BHLD, live.queries_BHLD), (kept.keys_BHLD, live.keys_BHLD)):
        assert mine.keys() == theirs.keys() == NEEDS.queries_keys
        for layer, x_BHLD in theirs.items():
            expected = torch.where(real_BL1[:, None], x_BHLD, 0)
            torch.testing.assert_close(mine[layer], expected, rtol=ROUNDED, atol=1e-5)


def test_whole_shards_are_kept_and_torn_ones_computed_again(parts, monkeypatch):
    stage, rows, teacher = parts
    whole = [
        shard.layers.clone() for shard in TeacherCache(stage, "train", rows, teacher).fill(len(rows)).shards
    ]
    torn = stage.directory / "teacher" / "train-fp32-as-bf16" / "step-00000001" / "layers.bin"
    torn.write_bytes(torn.read_bytes()[:-8])
    computed = []
    compute = TeacherCache._compute
    monkeypatch.setattr(
        TeacherCache, "_compute", lambda self, of, to: computed.append(of) or compute(self, of, to)
    )
    again = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    assert [of.tolist() for of in computed] == [list(range(20, 40))]
    for one, other in zip(whole, again.shards, strict=True):
        torch.testing.assert_close(one, other.layers)
    assert again.bytes_of(len(rows)) == sum(2 * shard.layers.numel() for shard in again.shards) + 8 * len(
        rows
    )


def test_a_stage_that_goes_on_in_another_precision_reads_none_of_the_former_numbers(parts):
    stage, rows, teacher = parts
    full = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    stage.job.precision = "bf16"
    low = TeacherCache(
        stage, "train", rows, FrozenTeacher(teacher.model, NEEDS, stage.device, torch.bfloat16)
    ).fill(len(rows))
    for one, other in zip(full.shards, low.shards, strict=True):
        assert other.layers.dtype == torch.bfloat16
        torch.testing.assert_close(other.layers.float(), one.layers.float(), rtol=0.05, atol=0.05)


def test_layers_of_fp32_take_two_bytes_and_come_back_as_fp32(parts):
    stage, rows, teacher = parts
    cache = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    on_disk = sum(path.stat().st_size for path in cache.directory.glob("step-*/layers.bin"))
    assert on_disk == 2 * int(rows.lengths.sum()) * sum(cache.widths)
    outputs = cache(rows.collate(np.arange(3), np.ones(3, np.float32)))
    assert {x.dtype for x in (*outputs.hidden_BLW.values(), *outputs.keys_BHLD.values())} == {torch.float32}


def test_of_short_rows_scores_are_kept_and_the_losses_are_those_of_the_model(parts, tmp_path):
    """Rows of up to 6 tokens, heads 4 wide: 6 scores of a token and head, 8 numbers of its query and key."""
    stage, _, teacher = parts
    short = tmp_path / "short.txt"
    short.write_text("\n\n".join(" ".join(WORDS[: 1 + n % 4]) for n in range(42)) + "\n")
    stage.inputs["corpus"]["identity"]["files"] = {"short.txt": str(short)}
    config = teacher.model.config
    student = BertConfig(**config.to_dict() | {"num_hidden_layers": 2})
    losses = [
        AttentionScores(student, config),
        AttentionScores(student, config, form="traces"),
        AttentionMaps(student, config),
    ]
    teacher = FrozenTeacher(teacher.model, CaptureSpec(scores=frozenset({2, 4})), stage.device)
    rows = corpus_rows(stage, load_tokenizer(ModelSource(teacher.model.name_or_path)), 6, 0)
    cache = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    assert cache.scored == [2, 4] and cache.widths == []
    assert cache.bytes_of(len(rows)) == sum(
        path.stat().st_size for path in cache.directory.glob("step-*/scores.bin")
    )
    assert cache.bytes_of(len(rows)) == 2 * 2 * 4 * int(np.square(rows.lengths).sum())
    batch = rows.collate(np.array([41, 0, 19, 20, 21]), np.array([1, 1, 1, 1, 0], np.float32))
    mine = ModelOutputs()
    for layer in (1, 2):
        mine.queries_BHLD[layer], mine.keys_BHLD[layer] = torch.randn(
            2, 5, 4, batch.attention_mask.shape[1], 4
        )
    kept, live = cache(batch), teacher(batch)
    for loss in losses:
        for name, term in loss.terms(mine, live, batch).items():
            torch.testing.assert_close(
                loss.terms(mine, kept, batch)[name].sum, term.sum, rtol=2e-3, atol=1e-5
            )
    exact = {layer: live.attention_scores(layer) for layer in (2, 4)}
    for layer, scores_BHLL in kept.scores_BHLL.items():
        real = (batch.attention_mask[:, :, None] * batch.attention_mask[:, None])[:, None]
        torch.testing.assert_close(scores_BHLL, exact[layer] * real, rtol=ROUNDED, atol=1e-5)


def test_what_another_loss_needs_whole_is_kept_whole(parts):
    stage, rows, teacher = parts
    spec = CaptureSpec(scores=frozenset({2, 4}), queries_keys=frozenset({4}))
    short = corpus_rows(stage, load_tokenizer(ModelSource(teacher.model.name_or_path)), 6, 0)
    cache = TeacherCache(stage, "train", short, FrozenTeacher(teacher.model, spec, stage.device))
    assert cache.scored == [2] and cache.spec.queries_keys == {4}
    cache = TeacherCache(stage, "train", rows, FrozenTeacher(teacher.model, spec, stage.device))
    assert cache.scored == [] and cache.spec.queries_keys == {2, 4}


@pytest.mark.parametrize(
    ("cache_gb", "free", "kept"),
    [("auto", 2.2, 1), ("auto", 1.2, 0.6), (0.5, 100, 0.5), (1, 0.1, 1), (0.01, 100, 0)],
)
def test_the_limit_is_half_of_the_free_disk_or_the_option(parts, monkeypatch, cache_gb, free, kept):
    """Of layers of a gigabyte. What was decided holds for a resumed stage, however the disk is then."""
    stage, rows, teacher = parts
    stage.options["training"] = {"epochs": 2}
    stage.job.cache_gb = cache_gb
    monkeypatch.setattr(TeacherCache, "bytes_of", lambda self, rows: 10**9 * rows // len(self.rows))
    monkeypatch.setattr(TeacherCache, "fill", lambda self, rows: rows)
    for gigabytes in (free, 0.0, 1000.0):
        of_disk = SimpleNamespace(free=int(gigabytes * 1e9))
        monkeypatch.setattr(live_teacher.shutil, "disk_usage", lambda path, of_disk=of_disk: of_disk)
        outputs = live_teacher.teacher_outputs(stage, teacher, {"train": rows})["train"]
        found = 0 if outputs is teacher else outputs  # rows of whole shards
        assert kept * len(rows) - 20 < found <= kept * len(rows)


@pytest.mark.parametrize("max_length", [24, 6], ids=["queries and keys", "scores"])
def test_of_rows_that_are_not_kept_the_teacher_shows_the_same(parts, max_length, monkeypatch):
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 10)
    stage, _, teacher = parts
    spec = replace(NEEDS, scores=NEEDS.queries_keys, queries_keys=frozenset())
    teacher = FrozenTeacher(teacher.model, spec, stage.device)
    rows = corpus_rows(stage, load_tokenizer(ModelSource(teacher.model.name_or_path)), max_length, 0)
    whole = TeacherCache(stage, "whole", rows, teacher).fill(len(rows))
    part = TeacherCache(stage, "part", rows, teacher)
    assert part.rows_that_fit(part.bytes_of(20)) == part.rows_that_fit(part.bytes_of(30) - 1) == 20
    assert part.rows_that_fit(part.bytes_of(len(rows))) == len(rows) > 38
    part.fill(20)
    assert kept_bytes(part.directory) < 0.8 * kept_bytes(whole.directory)
    runs = []
    teacher.model.register_forward_hook(lambda module, given, output: runs.append(len(output.logits)))
    for of_batch, others in (([35, 0, 25, 7, 19], 2), ([3, 19], 0), ([30, 38], 2)):
        batch = rows.collate(np.array(of_batch), np.ones(len(of_batch), np.float32))
        runs.clear()
        mine = part(batch)
        assert sum(runs) == others
        expected = whole(batch)
        for name, value in vars(expected).items():
            torch.testing.assert_close(getattr(mine, name), value, rtol=ROUNDED, atol=1e-5)


def test_in_the_autocast_of_an_evaluation_they_are_the_same_too(parts, tmp_path, monkeypatch):
    """Heads 8 wide, whose scores are divided by a root that bf16 rounds."""
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 10)
    stage, _, _ = parts
    stage.job.precision = "bf16"
    source = ModelSource(str(make_encoder(tmp_path / "wider", width=32)))
    model = load_classifier(source, Classes(("no", "yes")))
    spec = CaptureSpec(scores=frozenset({2, 4}))
    teacher = FrozenTeacher(model, spec, stage.device, torch.bfloat16)
    rows = corpus_rows(stage, load_tokenizer(source), 6, 0)
    caches = [
        TeacherCache(stage, name, rows, teacher).fill(kept)
        for name, kept in (("all", len(rows)), ("few", 10))
    ]
    batch = rows.collate(np.arange(10, 20), np.ones(10, np.float32))
    with torch.autocast("cpu", torch.bfloat16):
        kept, live = (cache(batch).scores_BHLL for cache in caches)
    assert kept.keys() == {2, 4} and all(torch.equal(kept[layer], live[layer]) for layer in kept)


def test_a_run_leaves_the_disk_to_others_that_have_begun_to_fill_it(parts, monkeypatch):
    """Of 4 GB that are free when all begin, the first two claim one each; the third then has no room for its own."""
    stage, rows, teacher = parts
    stage.options["training"] = {"epochs": 2}
    monkeypatch.setattr(TeacherCache, "bytes_of", lambda self, rows: 10**9 * rows // len(self.rows))
    monkeypatch.setattr(TeacherCache, "fill", lambda self, rows: rows)
    monkeypatch.setattr(live_teacher.shutil, "disk_usage", lambda path: SimpleNamespace(free=4 * 10**9 - 1))
    kept = []
    for run in "abc":
        directory = stage.directory.parents[1] / run / "intermediate"
        directory.mkdir(parents=True)
        of_run = replace(stage, directory=directory)
        outputs = live_teacher.teacher_outputs(of_run, teacher, {"train": rows})["train"]
        kept.append(outputs)
    assert kept[:2] == [len(rows)] * 2 and len(rows) - 20 <= kept[2] < len(rows)
    rest = 10**9 * kept[2] // len(rows)
    written = stage.directory.parents[1] / "a" / "intermediate" / "teacher" / "train-x" / store.step_name(0)
    written.mkdir(parents=True)
    with open(written / "layers.bin", "wb") as file:
        file.truncate(10**9)  # what is on the disk is no longer free, and is claimed no more
    assert live_teacher._claimed(stage.directory.parents[1]) == 10**9 + rest


def test_a_disk_that_fills_up_meanwhile_is_one_line_and_whole_shards_stay(parts, monkeypatch):
    """A write into a mapped file without room would kill the process."""
    stage, rows, teacher = parts
    reserve, sizes = os.posix_fallocate, []

    def full_at_the_third(file, offset, size):
        sizes.append(size)
        if len(sizes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(file, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full_at_the_third)
    with pytest.raises(
        UserError, match=f"no space left to write .*{store.step_name(2)}.*what was saved before is intact"
    ):
        TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    shards = stage.directory / "teacher" / "train-fp32-as-bf16"
    assert sorted(path.name for path in shards.iterdir()) == [store.step_name(0), store.step_name(1)]
    asked = []
    monkeypatch.setattr(store, "need_space", lambda directory, size, what: asked.append(size))
    cache = TeacherCache(stage, "train", rows, teacher).fill(len(rows))
    assert len(cache.shards) > 2 and 0 < asked[0] < cache.bytes_of(len(rows)) - sum(
        sizes[:2]
    )  # only what is missing
