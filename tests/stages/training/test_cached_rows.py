"""Tokenized rows in shards: the same rows whatever the number of processes and ranks, killed or not."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from checkpoints import store
from checkpoints.errors import UserError
from stages.distillation.models import ModelSource, load_tokenizer
from stages.tasks import corpus as corpora
from stages.tasks.corpus import corpus_parts, find_corpus
from stages.tasks.row_processes import write
from stages.tasks.task import find_task
from stages.tasks.token_rows import TokenRows
from stages.training import cached_rows
from stages.training.cached_rows import corpus_rows, task_rows
from stages.training.options import Job
from stages.training.stage import Stage
from tests.conftest import make_corpus, make_task, make_tokenizer, write_corpus_rows
from tests.corpora import documents

FIELDS = ("tokens", "offsets", "lengths", "second")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(cached_rows, "SHARD_CHARACTERS", 2000)
    monkeypatch.setattr(cached_rows, "FEW_TOKENS", 0)
    monkeypatch.setattr(corpora, "PART_BYTES", 5000)


@pytest.fixture
def tokenizer(tmp_path):
    make_tokenizer(tmp_path / "tokenizer")
    return load_tokenizer(ModelSource(str(tmp_path / "tokenizer")))


@pytest.fixture
def source(tmp_path):
    (tmp_path / "texts").mkdir()
    for i, size in enumerate((40, 25, 1, 60)):  # 1: a part of less than a shard
        make_corpus(tmp_path / "texts" / f"{i}.txt", size)
    return find_corpus(str(tmp_path / "texts"))


def make_stage(run: Path, source, task=None, **job) -> Stage:
    inputs = {"corpus": source.entry} | ({"task": task.entry} if task else {})
    directory = run / "general"
    directory.mkdir(parents=True, exist_ok=True)
    return Stage("general", "general", directory, {}, inputs, "", Job(**job), torch.device("cpu"))


def assert_equal(rows: TokenRows, expected: TokenRows) -> None:
    assert rows.counts == expected.counts
    for name in (*FIELDS, *(["labels"] if expected.labels is not None else [])):
        assert np.array_equal(getattr(rows, name), getattr(expected, name)), name


@pytest.mark.parametrize("limit", [0, 700])
def test_rows_depend_on_neither_processes_nor_ranks(tmp_path, source, tokenizer, monkeypatch, limit):
    assert len(corpus_parts(source)) > 1
    one = corpus_rows(make_stage(tmp_path / "a" / "runs" / "r", source, workers=1), tokenizer, 32, limit)
    two = corpus_rows(make_stage(tmp_path / "b" / "runs" / "r", source, workers=2), tokenizer, 32, limit)
    assert_equal(two, one)
    # Three ranks, one after the other: the last of them to come is rank 0, which merges.
    stage, written = make_stage(tmp_path / "c" / "runs" / "r", source, workers=1), []
    monkeypatch.setattr(cached_rows, "barrier", lambda: None)
    monkeypatch.setattr(cached_rows, "wait_for", lambda paths: None)
    for rank in (1, 2, 0):
        monkeypatch.setattr(cached_rows, "ranks", lambda rank=rank: (3, rank))
        monkeypatch.setattr(cached_rows, "is_first_rank", lambda rank=rank: rank == 0)
        monkeypatch.setattr(cached_rows, "is_there", lambda stage, target, what: target.exists())
        monkeypatch.setattr(cached_rows, "TokenRows", SimpleNamespace(open=lambda *_: None))
        corpus_rows(stage, tokenizer, 32, limit)
        written.append(len(list(stage.directory.parent.glob(".tokenizing-*/shard-*"))))
    monkeypatch.undo()
    assert written[0] and (limit or written[0] < written[1]) and not written[2]
    assert_equal(TokenRows.open(next(stage.cache.glob("rows-*"))), one)
    if limit:
        assert limit <= one.counts["tokens"] < limit + 32


def test_under_torchrun_a_rank_takes_its_part_of_the_cores_unless_the_others_wait(
    tmp_path, source, monkeypatch
):
    stage = make_stage(tmp_path / "runs" / "r", source, workers=0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(cached_rows, "cores", lambda: 8)
    for world, expected in ((2, 4), (1, 8)):
        monkeypatch.setattr(cached_rows, "ranks", lambda world=world: (world, 0))
        assert cached_rows.processes(stage) == expected


def test_a_limit_ends_a_text_of_one_shard(tmp_path, source, tokenizer, monkeypatch):
    monkeypatch.setattr(cached_rows, "SHARD_CHARACTERS", 10**6)
    monkeypatch.setattr("stages.tasks.row_maker.CHUNK_CHARACTERS", 100)
    stage = make_stage(tmp_path / "runs" / "r", find_corpus(str(tmp_path / "texts" / "3.txt")))
    assert 300 <= corpus_rows(stage, tokenizer, 32, 300).counts["tokens"] < 300 + 32


def test_all_rows_are_there_and_the_first_shard_is_as_before(tmp_path, source, tokenizer):
    rows = corpus_rows(make_stage(tmp_path / "runs" / "r", source, workers=1), tokenizer, 32, 0)
    whole = write_corpus_rows(documents(source), tokenizer, 32, tmp_path / "whole")
    assert rows.counts == whole.counts and np.array_equal(rows.lengths, whole.lengths)
    same = rows.second == whole.second  # elsewhere the draw of the cut is another one
    assert same[:10].all() and not same.all()


def test_a_task_in_shards(tmp_path, source, tokenizer, monkeypatch):
    task = find_task("own", str(make_task(tmp_path / "task", 200)), ("text",), "label")
    stages = [make_stage(tmp_path / name / "runs" / "r", source, task, workers=2) for name in "ab"]
    shards = task_rows(stages[0], stages[0].task(), "train", tokenizer, 16)
    monkeypatch.setattr(cached_rows, "SHARD_CHARACTERS", 10**6)
    assert_equal(shards, task_rows(stages[1], stages[1].task(), "train", tokenizer, 16))


def test_resumes_at_the_missing_shards(tmp_path, source, tokenizer, monkeypatch):
    expected = corpus_rows(make_stage(tmp_path / "a" / "runs" / "r", source, workers=1), tokenizer, 32, 0)
    stage = make_stage(tmp_path / "b" / "runs" / "r", source, workers=1)
    written = []

    def stops(maker, shard):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(shard.path)
        return write(maker, shard)

    monkeypatch.setattr("stages.tasks.row_processes.write", stops)
    with pytest.raises(KeyboardInterrupt):
        corpus_rows(stage, tokenizer, 32, 0)
    damaged = written.pop(2) / "tokens.bin"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    before, written = written, []
    monkeypatch.setattr(
        "stages.tasks.row_processes.write",
        lambda maker, shard: written.append(shard.path) or write(maker, shard),
    )
    assert_equal(corpus_rows(stage, tokenizer, 32, 0), expected)
    assert damaged.parent in written and not set(before) & set(written)
    assert [path.name for path in stage.directory.parent.iterdir()] == ["general"]
    assert [path.name[:5] for path in stage.cache.iterdir()] == ["rows-"]


def test_opening_reads_no_file_again_unless_it_changed(tmp_path, source, tokenizer, monkeypatch):
    stage = make_stage(tmp_path / "runs" / "r", source, workers=1)
    corpus_rows(stage, tokenizer, 32, 0)
    hashed = []
    monkeypatch.setattr(
        store, "sha256_file", lambda path, real=store.sha256_file: hashed.append(path.name) or real(path)
    )
    corpus_rows(stage, tokenizer, 32, 0)
    assert not hashed
    tokens = next(stage.cache.glob("rows-*/tokens.bin"))
    os.utime(tokens)
    corpus_rows(stage, tokenizer, 32, 0)
    assert "tokens.bin" in hashed
    hashed.clear()
    corpus_rows(stage, tokenizer, 32, 0)
    assert not hashed
    whole = tokens.read_bytes()
    tokens.write_bytes(bytes(len(whole)))
    corpus_rows(stage, tokenizer, 32, 0)
    assert tokens.read_bytes() == whole


def test_mistakes_come_back_from_the_processes(tmp_path, source, tokenizer, monkeypatch):
    (tmp_path / "texts" / "2.txt").write_text("zz " * 5000)
    (tmp_path / "texts" / "3.txt").write_bytes(b"good film\n\n" * 900 + b"\xff\n")
    with pytest.raises(UserError, match="3.txt, line 1801: not UTF-8"):
        corpus_rows(make_stage(tmp_path / "runs" / "r", source, workers=2), tokenizer, 32, 0)
    (tmp_path / "texts" / "3.txt").write_text("zz " * 100_000)
    with pytest.raises(UserError, match=r"\d+% of the tokens are \[UNK\]"):
        corpus_rows(make_stage(tmp_path / "runs" / "u", source, workers=2), tokenizer, 32, 0)
    real = cached_rows.write_all

    def kills(*arguments):
        for tokens in real(*arguments):
            for child in tokenizing():
                child.kill()
            yield tokens

    monkeypatch.setattr(cached_rows, "write_all", kills)
    with pytest.raises(UserError, match="workers: a process that tokenizes was killed"):
        corpus_rows(make_stage(tmp_path / "runs" / "k", source, workers=2), tokenizer, 32, 0)
    assert not tokenizing()


def tokenizing() -> list[psutil.Process]:
    """The processes of this one that tokenize; it has others, of other tests."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any("row_processes" in word for word in child.cmdline()):
                found.append(child)
    return found


ENDLESS = """
import sys
from tests.conftest import make_tokenizer
from pathlib import Path
from stages.tasks.row_maker import RowMaker
from stages.tasks.row_processes import Shard, write_all
path = Path(sys.argv[1])
maker = RowMaker.of(make_tokenizer(path / "tokenizer"), 32)
shards = (Shard(path / f"shard-{i}", ["a good film " * 20_000] * 5, i, False) for i in range(10**6))
for tokens in write_all(maker, shards, 2):
    print(tokens, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_processes_die_with_the_one_that_started_them(tmp_path, number):
    starts = "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # as a rank does
    process = subprocess.Popen(
        [sys.executable, "-c", starts + ENDLESS, str(tmp_path)], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.send_signal(number)
    assert process.wait(5) == -number
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    time.sleep(0.1)
    whole = [path for path in tmp_path.glob("shard-*") if store.is_whole(path)]
    assert whole and len(whole) == len(list(tmp_path.glob("shard-*")))
