"""The training rows of a ranking as questions: one right candidate each, and wrong ones that are drawn in each epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.batches import Batch, normalizers
from stages.tasks.masking import uniform

if TYPE_CHECKING:
    from stages.tasks.token_rows import TokenRows
    from stages.tasks.types import Split


class Candidates:
    """Rows of a job: every right pair of question and candidate. `draw` adds wrong ones, and reads the tokens.

    The inputs of a batch are (B, 1 + negatives, L) pairs, of which the first is right. Its labels (B,) are the numbers of the
    questions, so that rows of the same question are known by them. A question without wrong candidates of its own takes
    those of others.

    Args:
        readings: the pairs in the tokens of one model or several, by the prefix of their inputs: "", or "student_" and
            "teacher_".
        split: the same pairs as text.
        seed: the seed of the draws, with the epoch and the row.
        negatives: number of wrong candidates that are drawn for a row; one may be drawn twice.

    Raises:
        UserError: there is no right or no wrong candidate.
    """

    max_ranks: int

    def __init__(self, readings: Mapping[str, TokenRows], split: Split, seed: int, negatives: int = 1):
        self.readings, self.seed, self.negatives = readings, seed, negatives
        labels = np.asarray(split.labels)
        numbers: dict[str, int] = {}
        self.questions = np.array([numbers.setdefault(text, len(numbers)) for text in split.text_a])
        self.right, all_wrong = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
        if not len(self.right) or not len(all_wrong):
            raise UserError(
                f"{len(self.right)} right and {len(all_wrong)} wrong candidates; a ranking is learned from both, give rows "
                "of both",
                argument="data",
            )
        by_question = all_wrong[np.argsort(self.questions[all_wrong], kind="stable")]
        counts = np.bincount(self.questions[all_wrong], minlength=len(numbers))
        of_question = np.split(by_question, counts.cumsum()[:-1])
        self.others = [of if len(of := of_question[q]) else all_wrong for q in self.questions[self.right]]
        self.lengths = next(iter(readings.values())).lengths[self.right]

    def __len__(self) -> int:
        return len(self.right)

    def normalizers(self, indices: np.ndarray) -> dict[str, float]:
        """Return what the losses of a global batch of these rows are divided by."""
        return normalizers(self.lengths[indices])

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> Batch:
        """Return the questions and weights of rows; `draw` fills in the inputs, since it knows the epoch."""
        import torch

        labels = torch.from_numpy(self.questions[self.right[indices]])
        return Batch({}, labels, torch.tensor(weights), torch.from_numpy(np.asarray(indices, np.int64)))

    def draw(self, batch: Batch, epoch: int) -> Batch:
        """Draw the wrong candidates by (seed, epoch, row) and read the tokens: a job's `batch_transform`."""
        drawn_BR = uniform(self.seed, epoch, batch.rows, self.negatives).numpy()
        others = [self.others[row] for row in batch.rows]
        wrong_BR = [of[(x_R * len(of)).astype(int)] for of, x_R in zip(others, drawn_BR, strict=True)]
        pairs_BP = np.concatenate([self.right[batch.rows.numpy()][:, None], np.array(wrong_BR)], 1)
        inputs: dict[str, Any] = {}
        for prefix, rows in self.readings.items():
            read = rows.collate(pairs_BP.ravel(), np.ones(pairs_BP.size, np.float32))
            inputs |= {prefix + name: x.unflatten(0, pairs_BP.shape) for name, x in read.inputs.items()}
        return replace(batch, inputs=inputs)
