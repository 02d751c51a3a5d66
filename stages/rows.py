"""Tokenized rows of a task or a corpus: made once, kept in the cache that runs share, memory-mapped."""

import json
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from checkpoints import store
from checkpoints.fingerprint import fingerprint
from stages.stage import Stage, barrier, is_first_rank
from stages.tasks.batches import TokenRows, write_corpus_rows, write_task_rows
from stages.tasks.corpus import CorpusSource, documents
from stages.tasks.task import Task

FORMAT = 1


def task_rows(
    stage: Stage, task: Task, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenRows:
    """The rows of one split of the task."""

    def write(directory: Path) -> None:
        write_task_rows(task.splits[split], tokenizer, max_length, directory)

    return _cached(stage, {"task": stage.inputs["task"], "split": split}, tokenizer, max_length, write)


def corpus_rows(stage: Stage, tokenizer: PreTrainedTokenizerBase, max_length: int, tokens: int) -> TokenRows:
    """The rows of the unlabelled corpus; `tokens` limits them, 0 takes all."""
    source = stage.inputs["corpus"]

    def write(directory: Path) -> None:
        texts = documents(CorpusSource(source["name"], source["identity"]), source.get("revision"))
        with tqdm(desc="tokenizing", unit=" word pieces", unit_scale=True, disable=None) as bar:
            write_corpus_rows(
                texts, tokenizer, max_length, directory, tokens or None, lambda done: bar.update(done - bar.n)
            )

    return _cached(stage, {"corpus": source, "tokens": tokens}, tokenizer, max_length, write)


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
                stage.say(f"tokenized data is damaged ({damage}) and is made again")
            with store.sealed(target) as directory:
                write(directory)
    barrier()
    return TokenRows.open(target)
