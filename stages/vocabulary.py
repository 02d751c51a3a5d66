"""A vocabulary of the student's own: those of the teacher's tokens that the corpus and the task use most.

A small student's table of embeddings is most of its parameters. It shrinks most where the teacher is multilingual.
"""

import numpy as np

from stages.distillation.models import load_tokenizer
from stages.distillation.trimmed_vocabulary import trimmed
from stages.tasks.token_rows import TokenRows
from stages.training.cached_rows import corpus_rows, task_rows
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
    frequencies = sum(count / count.sum() for count in counts.values())
    own = trimmed(tokenizer, np.asarray(frequencies), options["vocabulary"])
    kept = [tokenizer.convert_tokens_to_ids(token) for token in own.get_vocab()]
    covered = {name: float(count[kept].sum() / count.sum()) for name, count in counts.items()}
    shares = " and ".join(f"{share:.3%} of the {name}'s" for name, share in covered.items())
    stage.log(
        f"{len(own):,} of {len(tokenizer):,} tokens are kept: {shares}; other text is written with these"
    )
    stage.publish(own.save_pretrained, {"tokens": len(own), "covered": covered})


def counted(rows: TokenRows, size: int) -> np.ndarray:
    """(V,) how often each token is in some rows."""
    counts = np.zeros(size, np.int64)
    for start in range(0, len(rows.tokens), CHUNK):
        counts += np.bincount(rows.tokens[start : start + CHUNK], minlength=size)
    return counts
