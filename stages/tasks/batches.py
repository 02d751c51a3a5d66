"""Batches of token rows: their tensors, and what losses on them are divided by.

B is the rows of a batch, L its longest row (padded).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.types import IGNORE_INDEX

if TYPE_CHECKING:
    import torch

    from stages.tasks.task_rows import TaskRows

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Batch:
    """One micro-batch as tensors.

    Attributes:
        inputs: by the name under which a model's forward takes them; text has input_ids, attention_mask (1 for
            real tokens) and, where the tokenizer gives them, token_type_ids, each (B, L) int64. Where teacher and
            student read differently, names begin with `teacher_` or `student_`; both read what has no such prefix.
        labels: (B,) int64 or float32, or None; (B, C) float32 where a row has several labels. (B, L) int64 at token
            level: at the first token of each word, or
            at each masked token, and IGNORE_INDEX elsewhere. (B, L, 2) int64 of windows of a question's context: 1
            where the answer starts and where it ends, 0 at the other places that may be answered (the context's
            tokens, and the row's first token, which stands for no answer), and IGNORE_INDEX elsewhere. (B, T) int64 of
            strips with T frames: 0 where the row's string (`symbols`) is known, else UNLABELLED.
        weight: (B,) float32, 0 for a row that only fills the batch.
        rows: (B,) int64, the rows' numbers in the data.
        padded: whether `mask_BL` may have zeros: known before the batch is on a device, where asking costs a wait.
        masked: (N,) int64, the places of the masked tokens in the flat (B x L), for the same reason; or None.
        counted: (b,) int64, the places of the rows whose weight is not 0, for the same reason; or None.
        mixed: for images that others are mixed into, (B,) int64 the others' classes and (B,) float32 the ratio that is the
            row's own; or None.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    weight: torch.Tensor
    rows: torch.Tensor
    padded: bool = True
    masked: torch.Tensor | None = None
    counted: torch.Tensor | None = None
    mixed: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def input_ids(self) -> torch.Tensor:
        """(B, L) int64."""
        return self.inputs["input_ids"]

    @property
    def attention_mask(self) -> torch.Tensor:
        """(B, L) int64, 1 for real tokens."""
        if "attention_mask" not in self.inputs:
            raise UserError("None; a loss on tokens needs it, 1 for real tokens", argument="attention_mask")
        return self.inputs["attention_mask"]

    @property
    def mask_BL(self) -> torch.Tensor:
        """1 for real tokens of rows that count, 0 for padding and for rows of weight zero."""
        return self.attention_mask * self.weight[:, None]

    @property
    def symbols(self) -> torch.Tensor | None:
        """(B, L) int64, the class ids of each row's string, then UNLABELLED; None where rows have no strings."""
        return self.inputs.get("symbols")

    @property
    def has_spans(self) -> bool:
        """Whether the labels are where answers start and end, so that a row's loss is over its places together."""
        return self.labels is not None and self.labels.ndim == 3

    @property
    def label_mask(self) -> torch.Tensor:
        """Positions that have logits of their own.

        (B,), all; or (B, L): at token level the first token of each word, of a window the places that may be answered.
        """
        if self.labels is None or self.labels.ndim == 1 or self.labels.is_floating_point():
            return self.weight >= 0
        return (self.labels[..., 0] if self.has_spans else self.labels) != IGNORE_INDEX

    def sum(self, losses: torch.Tensor) -> torch.Tensor:
        """The weighted sum of losses (B,), or of losses (B, L) at scored positions.

        A row with spans is one target: the mean over its positions.
        """
        if losses.ndim == 1:
            return (losses * self.weight).sum()
        mask_BL = self.label_mask
        if mask_BL.ndim == 1:
            given = "None" if self.labels is None else f"of shape {tuple(self.labels.shape)}"
            raise UserError(
                f"{given}; the logits are those of {tuple(losses.shape)} tokens, so give a label for each, -100 where none is "
                "scored",
                argument="labels",
            )
        if self.has_spans:
            return ((losses * mask_BL).sum(1) / mask_BL.sum(1) * self.weight).sum()
        return (losses * mask_BL * self.weight[:, None]).sum()

    @property
    def labelled(self) -> torch.Tensor:
        """Where the gold label is known: (B,); at token level (B, L). Nowhere if there are no labels."""
        if self.labels is None:
            return self.weight < 0
        if self.labels.is_floating_point():
            return ~self.labels.view(len(self.labels), -1).isnan().any(1)
        return (self.labels[:, :, 0] >= 0).any(1) if self.has_spans else self.labels >= 0

    def at_masked(self, x_BL: torch.Tensor) -> torch.Tensor:
        """What (B, L, ...) holds at the masked tokens, (N, ...), row by row."""
        if self.masked is not None:
            return x_BL.flatten(0, 1)[self.masked]
        labels_BL: Any = self.labels
        return x_BL[labels_BL >= 0]

    def at_counted(self, x_B: torch.Tensor) -> torch.Tensor:
        """What (B, ...) holds at the rows that count, (b, ...): those whose weight is not 0."""
        return x_B[self.weight > 0] if self.counted is None else x_B.index_select(0, self.counted)

    def count(self, normalizer: str) -> int:
        """What a mean over this batch alone is divided by: the count of a `LossTerm.normalizer`, at least 1."""
        if normalizer == "rows":
            found = self.weight.sum()
        elif normalizer in ("tokens", "pairs"):
            found = self.attention_mask.sum(1).pow(1 if normalizer == "tokens" else 2).sum()
        elif normalizer == "masked" and self.labels is None:
            raise UserError(
                "None; a loss at masked tokens needs them, -100 where nothing is masked", argument="labels"
            )
        elif normalizer == "targets":
            found = (self.label_mask.any(1) if self.has_spans else self.label_mask).sum()
        else:  # the labels of masked tokens are the tokens
            found = self.labelled.sum()
        return max(1, int(found))

    def inputs_of(self, side: str) -> dict[str, torch.Tensor]:
        """What one side reads.

        Args:
            side: "student" or "teacher".
        """
        own = {k.removeprefix(f"{side}_"): v for k, v in self.inputs.items() if k.startswith(f"{side}_")}
        return own or {k: v for k, v in self.inputs.items() if not k.startswith(("student_", "teacher_"))}

    def to(self, device: torch.device | str) -> Batch:
        """The batch on `device`. From the memory of a CPU to that of a GPU without waiting for either."""
        gpu = not str(device).startswith("cpu")
        counted = self.counted
        if counted is None and self.weight.device.type == "cpu":
            counted = self.weight.nonzero()[:, 0]

        def moved(tensor: torch.Tensor | None) -> Any:
            if tensor is not None and gpu and tensor.device.type == "cpu":
                tensor = tensor.contiguous().pin_memory()
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            inputs={name: moved(tensor) for name, tensor in self.inputs.items()},
            counted=moved(counted),
            mixed=self.mixed and (moved(self.mixed[0]), moved(self.mixed[1])),
            **{name: moved(getattr(self, name)) for name in ("labels", "weight", "rows", "masked")},
        )


def normalizers(
    lengths: np.ndarray, targets: np.ndarray | None = None, labelled: np.ndarray | None = None
) -> dict[str, float]:
    """Return what the losses of a global batch are divided by, each at least 1.

    Args:
        lengths: tokens of each row.
        targets: targets of each row; one by default, as of a window with its start and end.
        labelled: targets of each row whose gold label is known; all by default.

    Returns:
        "rows", "tokens", "pairs" (of tokens), "targets" and "labels" (targets whose gold label is known).
    """
    lengths = np.asarray(lengths, np.int64)
    targets = np.ones_like(lengths) if targets is None else targets
    labelled = targets if labelled is None else labelled
    found = {"rows": len(lengths), "tokens": lengths.sum(), "pairs": (lengths**2).sum()}
    found |= {"targets": targets.sum(), "labels": labelled.sum()}
    return {unit: max(1, int(count)) for unit, count in found.items()}


def label_index(first_targets: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the index of a batch's targets among all targets of its rows: (B,), or (B, L) at token level.

    Values at unlabelled positions are undefined.

    Args:
        first_targets: (N,) `TaskRows.first_targets`, on the batch's device.
    """
    if batch.label_mask.ndim == 1:
        return batch.rows
    return (first_targets[batch.rows][:, None] + batch.label_mask.cumsum(1) - 1).clamp(min=0)


def batches_by_length(
    rows: TaskRows,
    size: int = EVALUATION_BATCH,
    of: np.ndarray | None = None,
    rank: int = 0,
    world: int = 1,
) -> Iterable[Batch]:
    """Yield batches in order of length: each row once, or each of the rows `of`.

    Args:
        rank, world: of every `world` batches take only the one with number `rank`.
    """
    for chunk in indices_by_length(rows, size, of)[rank::world]:
        yield rows.collate(chunk, np.ones(len(chunk), np.float32))


def indices_by_length(
    rows: TaskRows, size: int = EVALUATION_BATCH, of: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return the row numbers of each of the batches that `batches_by_length` yields."""
    order = np.arange(len(rows)) if of is None else of
    order = order[np.argsort(rows.lengths[order], kind="stable")]
    return np.array_split(order, math.ceil(len(order) / size))
