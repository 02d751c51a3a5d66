"""Texts of a task's real lengths: GLUE's own where they are given, else packaged review sentences cut to them."""

from itertools import accumulate
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.tasks.task import Split, find_task, load_task

SHARES = [*(i / 20 for i in range(20)), 0.99, 1.0]
LENGTHS = {
    "sst-2": [3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 13, 14, 16, 18, 20, 23, 27, 33, 43, 66],
    "mrpc": [19, 32, 36, 39, 41, 44, 45, 47, 50, 51, 53, 55, 57, 59, 61, 62, 64, 67, 70, 74, 83, 103],
}
"""Tokens, special tokens included, below which so large a share of a task's training rows lies.

Counted on GLUE's train.tsv with BERT's uncased vocabulary: SST-2 has 67,349 rows of 13.3 tokens in the mean, MRPC
3,667 of 53.2. Between two entries lengths are taken as spread evenly (means 13.5 and 53.3).
"""
FOLDER = {"sst-2": "SST-2", "mrpc": "MRPC"}


def task_texts(
    task: str, count: int, seed: int, data: Path | None, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, ...]]:
    """Draw rows of `task`, of one text or two, from `data`/SST-2 or `data`/MRPC, or made to their lengths."""
    random = np.random.default_rng(seed)
    if data:
        split = load_task(find_task(task, str(data / FOLDER[task]))).splits["train"]
        rows = list(zip(*_columns(split), strict=True))
        return [rows[i] for i in random.permutation(len(rows))[:count]]
    words, ends = _words(tokenizer)
    lengths = np.interp(random.random(count), SHARES, LENGTHS[task]).round().astype(int)
    rows, begin = [], int(random.integers(len(words) // 2))
    for length in lengths:
        parts = [length - 2] if task == "sst-2" else [(length - 3) // 2, (length - 2) // 2]
        row = []
        for pieces in parts:
            if begin > len(words) - 200:
                begin = 0
            end = max(begin + 1, int(np.searchsorted(ends, ends[begin] + pieces)))
            row.append(" ".join(words[begin:end]))
            begin = end
        rows.append(tuple(row))
    return rows


def long_text(pieces: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """One text of about so many tokens."""
    words, ends = _words(tokenizer)
    return " ".join((words * (1 + pieces // int(ends[-1])))[: pieces * len(words) // int(ends[-1])])


def _words(tokenizer: PreTrainedTokenizerBase) -> tuple[list[str], np.ndarray]:
    """The words of the packaged reviews, one after the other, and the tokens before each."""
    words = " ".join(load_task(find_task("rotten-tomatoes")).splits["train"].text_a).split()
    pieces = tokenizer(words, add_special_tokens=False).encodings
    return words, np.array([0, *accumulate(len(encoding.ids) for encoding in pieces)])


def _columns(split: Split) -> list[list[str]]:
    return [column for column in (split.text_a, split.text_b) if column is not None]
