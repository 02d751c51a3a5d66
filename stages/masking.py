"""Masked word pieces: which they are, and how many of them a masked language model guesses right."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.distillation.view import Needs, read
from stages.evaluate import batches_by_length
from stages.rows import corpus_rows, has_held_out
from stages.stage import Stage
from stages.tasks.batches import Batch, TokenRows
from stages.tasks.types import NO_ANSWER

HELD_OUT_TOKENS = 100_000


class Masking:
    """Masks a share of a batch's word pieces; the draw is from torch's generator.

    Every chosen piece becomes the mask; BERT leaves one in ten as it is and changes another.

    Args:
        tokenizer: of the model that guesses.
        share: of the pieces that are no special tokens.

    Raises:
        UserError: the tokenizer has no mask.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, share: float):
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"{tokenizer.name_or_path}: its tokenizer has no mask token, so it is no masked language model"
            )
        self.mask, self.share = tokenizer.mask_token_id, share
        self.special = torch.tensor(tokenizer.all_special_ids)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with masks for pieces, and the pieces behind them as its labels (elsewhere NO_ANSWER)."""
        ids_BL = batch.input_ids
        chosen_BL = torch.rand(ids_BL.shape, device=ids_BL.device) < self.share
        chosen_BL &= ~torch.isin(ids_BL, self.special.to(ids_BL.device))
        chosen_BL &= batch.attention_mask * batch.weight[:, None] > 0
        return replace(
            batch,
            input_ids=ids_BL.masked_fill(chosen_BL, self.mask),
            labels=ids_BL.masked_fill(~chosen_BL, NO_ANSWER),
        )


def held_out_accuracy(
    stage: Stage, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, masking: Masking, whose: str
) -> dict[str, float]:
    """{"accuracy": of masked pieces of documents held out from the stage's corpus}; empty where none are."""
    if not has_held_out(stage):
        return {}
    rows = corpus_rows(stage, tokenizer, stage.training.max_length, HELD_OUT_TOKENS, held_out=True)
    share = accuracy(stage, model, masking, rows)
    stage.say(f"{share:.1%} of the masked word pieces of held-out documents are guessed right ({whose})")
    return {"accuracy": share}


def accuracy(stage: Stage, model: PreTrainedModel, masking: Masking, rows: TokenRows) -> float:
    """The share of masked pieces whose likeliest guess is right; the masks are the same in every call."""
    right = asked = 0
    model.to(stage.device).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            batch = masking(batch.to(stage.device))
            guesses_N = read(model, batch, Needs(words=True)).words_NV.argmax(-1)
            pieces_N = batch.labels[batch.labels >= 0]
            right += int((guesses_N == pieces_N).sum())
            asked += len(pieces_N)
    return right / max(asked, 1)
