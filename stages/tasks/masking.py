"""Masked tokens: which they are."""

from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.tasks.batches import Batch
from stages.tasks.types import IGNORE_INDEX


class Masking:
    """Masks a share of a batch's tokens; the draw is from torch's generator.

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
        """The batch with masks for pieces, and the pieces behind them as its labels (elsewhere IGNORE_INDEX)."""
        ids_BL = batch.input_ids
        chosen_BL = torch.rand(ids_BL.shape, device=ids_BL.device) < self.share
        chosen_BL &= ~torch.isin(ids_BL, self.special.to(ids_BL.device))
        chosen_BL &= batch.mask_BL > 0
        return replace(
            batch,
            inputs=batch.inputs | {"input_ids": ids_BL.masked_fill(chosen_BL, self.mask)},
            labels=ids_BL.masked_fill(~chosen_BL, IGNORE_INDEX),
        )
