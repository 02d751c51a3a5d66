"""A vocabulary of the student's own: those of the teacher's tokens that the corpus and the task use most.

A small student's table of embeddings is most of its parameters. It shrinks most where the teacher is multilingual. A general
student that is given gets the task's tokens in place of those that the task does not use.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.distillation.models import load_classifier, load_config, load_encoder, load_tokenizer
from stages.distillation.task_heads import head_of
from stages.distillation.trimmed_vocabulary import exchange_tokens, teacher_ids, trimmed
from stages.tasks.token_rows import TokenRows
from stages.training.cached_rows import corpus_rows, task_rows
from stages.training.options import PROJECTIONS_FILE
from stages.training.stage import Stage

CHUNK = 10_000_000
"""Tokens counted at once."""


def run(stage: Stage) -> None:
    """Count the teacher's tokens in what the student will read, and keep the most frequent ones."""
    tokenizer, options = load_tokenizer(stage.model("teacher")), stage.options
    read: dict[str, TokenRows] = {}
    if "corpus" in stage.inputs:
        read["corpus"] = corpus_rows(stage, tokenizer, options["corpus_length"], options["corpus_tokens"])
    if "task" in stage.inputs:
        read["task"] = task_rows(stage, stage.task(), "train", tokenizer, options["task_length"])
    counts = {name: counted(rows, len(tokenizer)) for name, rows in read.items()}
    # Shares are added, not counts: a task is a small part of the text, and what it is about.
    frequencies = np.asarray(sum(count / count.sum() for count in counts.values()))
    given = "student" in stage.inputs
    known = _ids(load_tokenizer(stage.model("student")), tokenizer) if given else np.array([], np.int64)
    size = options["vocabulary"]
    # With room for all tokens it needs no choice among them.
    every = size >= len(tokenizer)
    own = tokenizer if every else trimmed(tokenizer, frequencies, size, spare=known.tolist())
    kept = _ids(own, tokenizer)
    covered = {name: float(count[kept].sum() / count.sum()) for name, count in counts.items()}
    shares = " and ".join(f"{share:.3%} of the {name}'s" for name, share in covered.items())
    rest = "" if every else f": {shares}; other text is written with these"
    stage.log(f"{len(own):,} of {len(tokenizer):,} tokens are kept{rest}")
    if every:  # the teacher's table may be longer, and what compares answers of masked LMs counts its rows
        kept = np.arange(load_config(stage.model("teacher")).vocab_size)
    write = _with_student(stage, own, kept, known) if given else own.save_pretrained
    stage.publish(write, {"tokens": len(own), "covered": covered})


def _ids(own: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> np.ndarray:
    """(V,) the teacher's id of each token."""
    ids = teacher_ids(own, teacher)
    return np.arange(len(own)) if ids is None else ids


def _with_student(
    stage: Stage, own: PreTrainedTokenizerBase, kept: np.ndarray, known: np.ndarray
) -> Callable[[Path], None]:
    """A writer of the given student with these tokens, and of what lies beside it."""
    source = stage.model("student")
    with_head = head_of(load_config(source)) is not None
    student = load_classifier(source) if with_head else load_encoder(source)
    exchange_tokens(student, own, kept, known, load_encoder(stage.model("teacher")))
    new = len(np.setdiff1d(kept, known))
    stage.log(f"{new:,} tokens are new to the student; their embeddings are made of the teacher's")
    projections = Path(source.name) / PROJECTIONS_FILE

    def write(directory: Path) -> None:
        own.save_pretrained(directory)
        student.save_pretrained(directory)
        if projections.is_file():
            shutil.copy(projections, directory)

    return write


def counted(rows: TokenRows, size: int) -> np.ndarray:
    """(V,) how often each token is in some rows."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(rows.tokens), CHUNK):
        counts += np.bincount(rows.tokens[start : start + CHUNK], minlength=size)
    return counts
