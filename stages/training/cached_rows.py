"""Tokenized rows of a task or a corpus: made once, memory-mapped, in a cache that all runs share."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from checkpoints import store
from checkpoints.fingerprint import fingerprint, sha256_file
from data_aug.variants import read_shard
from stages.distillation.device import WIDTH_MULTIPLE
from stages.tasks.corpus import documents
from stages.tasks.task import Split, Task
from stages.tasks.token_rows import TokenRows, write_corpus_rows, write_task_rows
from stages.tasks.types import Source
from stages.training.stage import Stage, barrier, is_first_rank, wait_for

FORMAT = 1
HELD_OUT_EVERY = 50


def task_rows(
    stage: Stage,
    task: Task,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    given: str = "task",
) -> TokenRows:
    """The rows of one split of the task that is the stage's input `given`."""

    def write(directory: Path) -> None:
        write_task_rows([task.splits[split]], tokenizer, max_length, directory)

    return _cached(stage, {"task": stage.inputs[given], "split": split}, tokenizer, max_length, write)


def train_rows(
    stage: Stage,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    with_unlabelled: bool = False,
) -> TokenRows:
    """The rows a stage trains on: the augmented ones, if they were made, otherwise the task's own.

    Args:
        with_unlabelled: append the task's rows without labels.
    """
    if with_unlabelled:

        def write_both(directory: Path) -> None:
            parts = [task.splits[name] for name in ("train", "unlabelled")]
            write_task_rows(parts, tokenizer, max_length, directory)

        data = {"task": stage.inputs["task"], "split": "train and unlabelled"}
        return _cached(stage, data, tokenizer, max_length, write_both)
    if "augmented" not in stage.inputs:
        return task_rows(stage, task, "train", tokenizer, max_length)
    shards = stage.artifact_dir("augmented")

    def write(directory: Path) -> None:
        parts = (Split(*read_shard(path)[:3]) for path in sorted(shards.glob("rows-*.arrow")))
        write_task_rows(parts, tokenizer, max_length, directory)

    return _cached(stage, {"augmented": sha256_file(shards / store.MANIFEST)}, tokenizer, max_length, write)


def corpus_rows(
    stage: Stage,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    tokens: int,
    held_out: bool | None = None,
    given: str = "corpus",
) -> TokenRows:
    """The rows of the unlabelled corpus.

    Args:
        stage: whose input `given` is read.
        tokenizer: a fast one.
        max_length: tokens of a row.
        tokens: limit of tokens, 0 takes all.
        held_out: True takes every 50th document, False the others, None all.
        given: name of the input.
    """
    source = stage.inputs[given]
    part = {} if held_out is None else {"held_out": held_out, "every": HELD_OUT_EVERY}

    def write(directory: Path) -> None:
        texts = documents(Source.of(source), source.get("revision"))
        if held_out is not None:
            texts = (
                text for i, text in enumerate(texts) if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == held_out
            )
        with tqdm(desc="tokenizing", unit=" tokens", unit_scale=True, disable=None) as bar:

            def show(done: int) -> None:
                bar.update(done - bar.n)

            write_corpus_rows(texts, tokenizer, max_length, directory, tokens or None, show)

    return _cached(stage, {"corpus": source, "tokens": tokens} | part, tokenizer, max_length, write)


def has_held_out(stage: Stage) -> bool:
    """Whether the corpus has enough documents to hold some out."""
    source = stage.inputs["corpus"]
    texts = documents(Source.of(source), source.get("revision"))
    return any(True for _ in islice(texts, HELD_OUT_EVERY - 1, None))


def _cached(
    stage: Stage,
    data: dict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    write: Callable[[Path], None],
) -> TokenRows:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    key = fingerprint(
        {"data": data, "tokenizer": fingerprint(vocabulary), "max_length": max_length, "format": FORMAT}
    )
    target = stage.cache / f"rows-{key[:20]}"
    if is_first_rank():
        try:
            store.verify(target)
        except store.Damaged as damage:
            if target.exists():
                stage.log(f"tokenized data is damaged ({damage}) and made again")
                store.remove(target)
    barrier()
    if is_first_rank() and not target.exists():
        with store.sealed(target) as directory:
            write(directory)
    wait_for([target / store.MANIFEST])
    return TokenRows.open(target, WIDTH_MULTIPLE.get(stage.device.type, 1))
