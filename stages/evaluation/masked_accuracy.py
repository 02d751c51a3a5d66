"""How many masked tokens a masked language model guesses right."""

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
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, masking: Masking, whose: str
) -> dict[str, float]:
    """{"accuracy": of masked pieces of documents held out from the stage's corpus}; empty where none are."""
    if not has_held_out(stage):
        return {}
    rows = corpus_rows(stage, tokenizer, stage.training.max_length, HELD_OUT_TOKENS, held_out=True)
    share = accuracy(stage, model, masking, rows)
    stage.log(f"{share:.1%} of the masked tokens of held-out documents are guessed right ({whose})")
    return {"accuracy": share}


def accuracy(stage: Stage, model: PreTrainedModel, masking: Masking, rows: TokenRows) -> float:
    """The share of masked pieces whose likeliest guess is right; the masks are the same in every call."""
    right = asked = 0
    model.to(stage.device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            batch = masking(batch.to(stage.device))
            guesses_N = read(model, batch, CaptureSpec(vocabulary=True)).vocabulary_NV.argmax(-1)
            pieces_N = batch.labels[batch.labels >= 0]
            right += int((guesses_N == pieces_N).sum())
            asked += len(pieces_N)
    return right / max(asked, 1)
