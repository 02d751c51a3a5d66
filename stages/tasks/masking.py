"""Which tokens of a batch are masked."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.tasks.batches import Batch
from stages.tasks.types import IGNORE_INDEX


class Masking:
    """Masks tokens of a batch by chance. A row's masks depend on (seed, epoch, row) alone, not on ranks or micro-batches.

    Every chosen token becomes the mask; BERT leaves one in ten as it is and changes another.

    Args:
        tokenizer: the tokenizer of the model that predicts.
        mlm_probability: that a token is masked. Those that the tokenizer calls special and those that it puts around
            texts are not.

    Raises:
        UserError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float, seed: int):
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path} has no mask token: give a masked language model"
            )
        self.mask, self.mlm_probability, self.seed = tokenizer.mask_token_id, mlm_probability, seed
        pair = tokenizer("a", "a", return_special_tokens_mask=True)
        around = {
            token
            for token, special in zip(pair["input_ids"], pair["special_tokens_mask"], strict=True)
            if special
        }
        self.special = torch.tensor(sorted(around.union(tokenizer.all_special_ids)))

    def expected(self, tokens: np.ndarray) -> float:
        """How many of some tokens are masked, on average; as if one at least could be."""
        return self.mlm_probability * max(1, int((~np.isin(tokens, self.special.numpy())).sum()))

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """The batch with masks in its `input_ids`, and as labels the tokens behind them (elsewhere IGNORE_INDEX)."""
        ids_BL = batch.input_ids
        # In its row, on whatever side the padding is.
        places_BL = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        drawn_BL = uniform(self.seed, epoch, batch.rows, ids_BL.shape[1]).gather(1, places_BL)
        chosen_BL = drawn_BL < self.mlm_probability
        chosen_BL &= ~torch.isin(ids_BL, self.special.to(ids_BL.device))
        chosen_BL &= batch.mask_BL > 0
        return replace(
            batch,
            inputs=batch.inputs | {"input_ids": ids_BL.masked_fill(chosen_BL, self.mask)},
            labels=ids_BL.masked_fill(~chosen_BL, IGNORE_INDEX),
            masked=chosen_BL.flatten().nonzero()[:, 0],
        )


def uniform(seed: int, epoch: int, rows_B: Tensor, length: int) -> Tensor:
    """Random numbers from [0, 1), each a function of (seed, epoch, row, position).

    SplitMix64 (Steele et al. 2014, doi 10.1145/2660193.2660195): a counter times an odd constant, mixed; once over the
    rows, once over the positions in them.

    Args:
        seed, epoch: not negative.
        rows_B: int64 row numbers.
        length: L, positions of each row.

    Returns:
        (B, L) float64 on the device of `rows_B`.
    """
    key = int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64).astype(np.int64)[0])
    positions_L = torch.arange(length, device=rows_B.device)
    of_rows_B = _mix(key + rows_B * _GOLDEN)
    bits_BL = _mix(of_rows_B[:, None] + positions_L * _GOLDEN)
    return _shift_right(bits_BL, 11).double() * 2.0**-53


_GOLDEN, _FIRST, _SECOND = (
    int(np.uint64(constant).astype(np.int64))
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finalizer. int64 multiplication wraps around as that of unsigned numbers does."""
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """As of unsigned numbers: zeros come in from the left."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
