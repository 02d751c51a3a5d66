"""How many masked tokens a masked language model guesses right."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stages.distillation.outputs import CaptureSpec, read
from stages.tasks.batches import batches_by_length
from stages.tasks.masking import Masking
from stages.tasks.token_rows import TokenRows
from stages.training.cached_rows import corpus_rows, has_held_out
from stages.training.stage import Stage

HELD_OUT_TOKENS = 100_000


def held_out_accuracy(
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whose: str
) -> dict[str, float]:
    """{"accuracy": at masked tokens of documents held out from the stage's corpus}; empty where none are held out."""
    if not has_held_out(stage):
        return {}
    options: Any = stage.training
    rows = corpus_rows(stage, tokenizer, options.max_length, HELD_OUT_TOKENS, held_out=True)
    found = accuracy(stage, model, Masking(tokenizer, options.mlm_probability, seed=0), rows)
    stage.log(f"{found:.1%} of the masked tokens of held-out documents are predicted right ({whose})")
    return {"accuracy": found}


def accuracy(stage: Stage, model: PreTrainedModel, masking: Masking, rows: TokenRows) -> float:
    """The fraction of masked tokens that the model predicts right; the masks are the same in every call."""
    right = masked = 0
    model.eval().to(stage.device)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            batch = masking(batch.to(stage.device), epoch=0)
            scores_NV = read(model, batch, CaptureSpec(vocabulary=True)).vocabulary_NV
            labels_BL = batch.labels
            assert scores_NV is not None and labels_BL is not None
            tokens_N = batch.at_masked(labels_BL)
            right += int((scores_NV.argmax(-1) == tokens_N).sum())
            masked += len(tokens_N)
    return right / max(masked, 1)
