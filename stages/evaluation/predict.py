"""A model's logits of rows of tokens or pixels."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from checkpoints.errors import UserError
from stages.distillation.outputs import inputs_of, logits_of
from stages.tasks.batches import batches_by_length, label_index
from stages.tasks.kinds.questions import best_answers
from stages.tasks.task_rows import TaskRows


def predict(
    model: nn.Module,
    rows: TaskRows,
    device: torch.device,
    precision=torch.float32,
    shared: bool = False,
    advance: Callable[[int], object] | None = None,
    order: list[int] | None = None,
) -> np.ndarray:
    """Logits (answers, classes) of the rows, or of their words one after another; from batches sorted by length.

    Of texts in windows their pooled logits: (texts, classes). Of questions what `best_answers` makes of the logits of all
    windows: (questions, 4).

    Args:
        order: for each class its index in the model's logits; none: as they are.
        shared: each rank computes a part of the batches; all ranks get all logits.
        advance: called with the number of rows of each batch, when it is done.
    """
    config: Any = model.config
    logits = np.zeros((rows.targets.sum(), config.num_labels), np.float32)
    rank, world = (dist.get_rank(), dist.get_world_size()) if shared else (0, 1)
    with torch.no_grad():
        for batch in batches_by_length(rows, rank=rank, world=world):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                found = logits_of(model(**inputs_of(model, batch.to(device).inputs))).float().cpu()
            logits[label_index(rows.first_targets, batch)[batch.label_mask].numpy()] = found[batch.label_mask]
            if advance:
                advance(len(batch.rows))
    if world > 1:
        summed = torch.from_numpy(logits).to(device)  # zeros but for this rank's part
        dist.all_reduce(summed)
        logits = summed.cpu().numpy()
    logits = check_finite(logits if rows.scored is None else logits[rows.scored])
    if order is not None:
        logits = logits[:, order]
    if rows.begins is not None and rows.places is not None:
        return best_answers(logits, rows.targets, rows.begins, rows.places)
    return rows.of_texts(logits)


def check_finite(logits: np.ndarray) -> np.ndarray:
    """Return logits (answers, classes) if all are finite numbers: NaN would be written as the first class or as 0.

    Raises:
        UserError: some are not.
    """
    bad = np.flatnonzero(~np.isfinite(logits).all(-1))
    if len(bad):
        raise UserError(
            f"the model's logits of {len(bad):,} of {len(logits):,} rows are not finite numbers (the first: row "
            f"{bad[0]}); its weights are damaged or its training diverged: train it again with a lower learning_rate"
        )
    return logits
