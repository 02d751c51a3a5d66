"""A model's logits of tokenized rows."""

import numpy as np
import torch
from transformers import PreTrainedModel

from checkpoints.errors import UserError
from stages.distillation.outputs import inputs_of
from stages.tasks.batches import batches_by_length, label_index
from stages.tasks.token_rows import TokenRows


def predict(
    model: PreTrainedModel, rows: TokenRows, device: torch.device, precision=torch.float32
) -> np.ndarray:
    """Logits (answers, classes) of the rows, or of their words one after another; from batches sorted by length."""
    logits = np.empty((rows.targets.sum(), model.config.num_labels), np.float32)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                found = model(**inputs_of(model, batch.to(device).inputs)).logits.float().cpu()
            logits[label_index(rows.first_targets, batch)[batch.label_mask].numpy()] = found[batch.label_mask]
    return check_finite(logits)


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
