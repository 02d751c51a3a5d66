"""Tokenized rows of a task or a corpus: made once, memory-mapped, in a cache that all runs share.

If there are several shards of text, ranks and their processes divide the work. What is in a shard depends on the text
alone, and so do its rows. A killed run keeps its finished shards in its directory, and resumes with the others.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import fingerprint, sha256_file
from data_aug.variants import read_shard
from stages.distillation.device import WIDTH_MULTIPLE
from stages.tasks.corpus import Part, by_size, corpus_parts
from stages.tasks.row_maker import RowMaker, slices
from stages.tasks.row_processes import Shard, write_all
from stages.tasks.task import Split, Task
from stages.tasks.text import sentences_of
from stages.tasks.token_rows import TokenRows, merge_shards, write_rows
from stages.tasks.types import Source
from stages.training.machine_limits import cores
from stages.training.progress import Progress
from stages.training.stage import Stage, barrier, is_first_rank, ranks, wait_for

FORMAT = 3
HELD_OUT_EVERY = 50
SENTENCES = 1
"""Raise it when `sentences_of` cuts otherwise."""
SHARD_CHARACTERS = 5_000_000
"""Text of a shard: a few seconds of one process. The packaged corpus is a single one."""
FEW_TOKENS = 300_000
"""With a limit up to this many, rank 0 alone reads what it needs: sharing would cost more."""
UNITS_PER_RANK = 4
"""Parts of a text, or shares of parts, that each rank gets, so that ranks end at about the same time."""

Start = Callable[[], Iterator[str] | Iterator[Split]]
"""Starts a stream of documents, or of parts of a split."""
Starts = Callable[[], list[Start]]
"""Returns what starts the streams that make up the data; called if their rows are missing."""


def task_rows(
    stage: Stage,
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    given: str = "task",
) -> TokenRows:
    """The rows of one split of the task that is the stage's input `given`."""
    data = {"task": stage.inputs[given], "split": split}
    starts: list[Start] = [partial(slices, [task.splits[split]])]
    return _of_task(stage, task, data, tokenizer, max_length, lambda: starts)


def train_rows(
    stage: Stage,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    with_unlabelled: bool = False,
) -> TokenRows:
    """The rows a stage trains on: the augmented ones, if they were made, otherwise the task's own.

    Args:
        with_unlabelled: the task's own rows, never augmented ones, and its rows without labels.
    """
    if with_unlabelled:
        data = {"task": stage.inputs["task"], "split": "train and unlabelled"}
        both: list[Start] = [partial(slices, [task.splits["train"], task.splits["unlabelled"]])]
        return _of_task(stage, task, data, tokenizer, max_length, lambda: both)
    if "augmented" not in stage.inputs:
        return task_rows(stage, task, "train", tokenizer, max_length)
    shards = stage.artifact_dir("augmented")

    def starts() -> list[Start]:
        groups = by_size({path.name: path for path in sorted(shards.glob("rows-*.arrow"))})
        return [partial(_augmented, group.values(), task) for group in groups]

    data = {"augmented": sha256_file(shards / store.MANIFEST)}
    return _of_task(stage, task, data, tokenizer, max_length, starts)


def _of_task(
    stage: Stage, task: Task, data: dict, tokenizer: PreTrainedTokenizerBase, max_length: int, starts: Starts
) -> TokenRows:
    """Cached rows with what the task's kind says of their labels and windows."""
    rows = _cached(stage, data, tokenizer, max_length, starts, windows=bool(task.kind.pooling))
    return replace(rows, scale=task.kind.scale, pooling=task.kind.pooling)


def _augmented(paths: Iterable[Path], task: Task) -> Iterator[Split]:
    train = task.splits["train"]
    for path in paths:
        text_a, text_b, labels, *_ = read_shard(path)
        if train.asks:
            labels = [task.kind.read(str(label)) for label in labels]
        yield from slices([Split(text_a, text_b, labels, train.continued)])


def corpus_rows(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    tokens: int,
    held_out: bool | None = None,
    given: str = "corpus",
    sentences: bool = False,
) -> TokenRows:
    """The rows of the unlabelled corpus.

    Args:
        stage: whose input `given` is read.
        tokens: limit of tokens, 0 takes all.
        held_out: True takes every 50th document of each part of the corpus, False the others, None all.
        sentences: whether a row is one sentence, instead of two segments of a document.
    """
    source = stage.inputs[given]
    part = {} if held_out is None else {"held_out": held_out, "every": HELD_OUT_EVERY}
    part |= {"sentences": SENTENCES} if sentences else {}

    def starts() -> list[Start]:
        parts = corpus_parts(Source.of(source), source.get("revision"))
        chosen: list[Any] = [
            part if held_out is None else partial(_held_out, part, held_out) for part in parts
        ]
        return [partial(_sentences, part) for part in chosen] if sentences else chosen

    data = {"corpus": source, "tokens": tokens} | part
    return _cached(stage, data, tokenizer, max_length, starts, tokens or None, one_segment=sentences)


def _held_out(part: Part, held_out: bool) -> Iterator[str]:
    return (text for i, text in enumerate(part()) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out)


def _sentences(part: Part) -> Iterator[str]:
    return chain.from_iterable(map(sentences_of, part()))


def has_held_out(stage: Stage) -> bool:
    """Whether a part of the corpus has enough documents to hold some out."""
    source = stage.inputs["corpus"]
    parts = corpus_parts(Source.of(source), source.get("revision"))
    return any(True for part in parts for _ in islice(part(), HELD_OUT_EVERY - 1, None))


def _cached(
    stage: Stage,
    data: dict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    starts: Starts,
    limit: int | None = None,
    windows: bool = False,
    one_segment: bool = False,
) -> TokenRows:
    """The rows of `data`, made if they are not in the cache.

    Args:
        data: what identifies them, beside the tokenizer and the length.
        starts: what starts the streams of the data (`Starts`).
        limit: most tokens to take.
        windows: whether longer texts are cut into windows.
        one_segment: whether rows of a corpus have one segment instead of two.
    """
    maker = replace(RowMaker.of(tokenizer, max_length, windows), one_segment=one_segment)
    vocabulary = json.loads(maker.tokenizer)
    vocabulary = {key: value for key, value in vocabulary.items() if key not in ("truncation", "padding")}
    known = {"data": data, "tokenizer": fingerprint(vocabulary), "max_length": max_length, "format": FORMAT}
    key = fingerprint(known | maker.settings)
    target = stage.cache / f"rows-{key[:20]}"
    if not is_there(stage, target, "tokenized data is"):
        _make(stage, target, maker, starts(), limit)
    wait_for([target / store.MANIFEST])
    return TokenRows.open(target, WIDTH_MULTIPLE.get(stage.device.type, 1))


def is_there(stage: Stage, target: Path, what: str) -> bool:
    """Whether a sealed directory of the cache is there and whole; a damaged one is removed. Called on every rank.

    Rank 0 reads files that changed since they were last verified; the others wait, however long that takes.

    Args:
        stage: logs a damage.
        what: the first words of that line.
    """
    if is_first_rank():
        try:
            store.verify_once(target)
        except store.Damaged as damage:
            if target.exists():
                stage.log(f"{what} damaged ({damage}) and made again")
                store.remove(target)
    while target.exists() and not store.is_verified(target) and os.access(target, os.W_OK):
        time.sleep(0.1)
    found = [target.exists()]
    # Another run may make it in this moment: all ranks do as rank 0.
    if dist.is_initialized() and ranks()[0] > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _make(stage: Stage, target: Path, maker: RowMaker, starts: list[Start], limit: int | None) -> None:
    """Write the rows of the streams to `target`. Called on every rank."""
    fits_a_shard = len(starts) == 1 and next(_pieces(starts[0]()))[1]
    with Progress(stage, None, "token", what="tokenizing") as progress:
        if not fits_a_shard and (limit is None or limit > FEW_TOKENS):
            _make_in_shards(stage, target, maker, starts, limit, progress)
        elif is_first_rank():
            content: Iterable[Any] = chain.from_iterable(start() for start in starts)

            def show(done: int) -> None:
                progress.advance(done - progress.done)

            with store.sealed(target, shared=True) as directory:
                write_rows(maker, maker.blocks(content, limit=limit), directory, show)


def _make_in_shards(
    stage: Stage, target: Path, maker: RowMaker, starts: list[Start], limit: int | None, progress: Progress
) -> None:
    world, rank = ranks()
    shards = _Shards(stage.directory.parent / f".tokenizing-{target.name}", len(starts), limit)
    there = sorted(shards.directory.glob("shard-*"))
    for path in there[rank::world]:
        try:
            store.verify_once(path)
        except store.Damaged:
            store.remove(path)
    barrier()
    if there:
        stage.log(f"tokenizing resumes: {len(there)} shards are there")
    with closing(write_all(maker, shards.missing(starts), processes(stage))) as written:
        for tokens in written:
            progress.advance(tokens)
            if limit and shards.are_there():
                break
    if rank == 0:
        while not shards.are_there() and not target.exists():
            if world == 1:
                store.remove(shards.directory)
                raise UserError("the text changed while it was tokenized; run the same command again")
            time.sleep(0.1)
        if not target.exists():  # another run may have made it meanwhile
            with store.sealed(target, shared=True) as directory:
                merge_shards(shards.paths, maker, directory, limit)
    wait_for([target / store.MANIFEST])
    barrier()  # each rank has written its last shard
    if rank == 0:
        store.remove(shards.directory)


@dataclass
class _Shards:
    """The shards of a text, in a directory of the run.

    Attributes:
        parts: streams that make up the text; each has one shard at least.
        limit: most tokens to take.
        paths: those found so far, without a gap.
        tokens: in them.
        next: part, and number in it, of the shard after them.
    """

    directory: Path
    parts: int
    limit: int | None
    paths: list[Path] = field(default_factory=list)
    tokens: int = 0
    next: tuple[int, int] = (0, 0)

    def path(self, part: int, number: int) -> Path:
        return self.directory / f"shard-{part:05d}-{number:06d}"

    def counts(self, part: int, number: int) -> dict[str, Any]:
        """Of a shard; empty if it is missing."""
        return store.read_json(self.path(part, number) / "rows.json")

    def has_part(self, part: int) -> bool:
        """Whether all shards of a part are there."""
        number = 0
        while counts := self.counts(part, number):
            if counts["last"]:
                return True
            number += 1
        return False

    def are_there(self) -> bool:
        """Whether all shards are there, or those up to the limit."""
        part, number = self.next
        while part < self.parts and (self.limit is None or self.tokens < self.limit):
            if not (counts := self.counts(part, number)):
                return False
            self.paths.append(self.path(part, number))
            self.tokens += counts["tokens"]
            part, number = self.next = (part + 1, 0) if counts["last"] else (part, number + 1)
        return True

    def missing(self, starts: list[Start]) -> Iterator[Shard]:
        """Yield the shards that this rank is to write, with their text."""
        world, rank = ranks()
        # As many ranks share a part as keeps all of them busy; with a limit all, for the first shards matter most.
        shares = world if self.limit else min(world, -(-UNITS_PER_RANK * world // self.parts))
        for unit in range(rank, shares * self.parts, world):
            part, share = divmod(unit, shares)
            if not self.has_part(part):
                for number, (content, last) in enumerate(_pieces(starts[part]())):
                    if number % shares == share and not self.counts(part, number):
                        yield Shard(self.path(part, number), content, part << 80 | number << 40, last)


def _pieces(stream: Iterable[str | Split]) -> Iterator[tuple[list, bool]]:
    """Yield the text of one shard after the other, documents or splits, and whether it is the last; one at least."""
    content: list[str | Split] = []
    size = 0
    for item in stream:
        if size >= SHARD_CHARACTERS:
            yield content, False
            content, size = [], 0
        content.append(item)
        size += len(item) if isinstance(item, str) else sum(map(len, chain(item.text_a, item.text_b or ())))
    yield content, True


def processes(stage: Stage) -> int:
    """How many processes of this rank tokenize: `job.workers`, or one for each core that the rank may use.

    If only this rank tokenizes while the others wait, it may use all cores of its host.
    """
    if stage.job.workers:
        return stage.job.workers
    if local := os.environ.get("LOCAL_WORLD_SIZE"):  # torchrun, which sets OMP_NUM_THREADS to 1
        return cores() if ranks()[0] == 1 else max(1, cores() // int(local))
    return int(os.environ.get("OMP_NUM_THREADS") or cores())
