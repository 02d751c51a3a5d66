"""Dropout for CPUs: drawing its random numbers costs more than the rest of it, and torch draws them one by one.

Here 16 random bits decide about a number, four numbers to a draw of SFC64, which is seeded from torch's generator: what is
dropped is a function of torch's seed, as before, and so a resumed job drops the same.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

PLACES = 1 << 16


class Dropout(nn.Dropout):
    """`nn.Dropout`, faster on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each number with probability p, rounded to 1/65,536, and divide the others by 1 - p.

    On a GPU, for p = 0 and p = 1, and where it is compiled, this is torch's own dropout.
    """
    dropped = round(p * PLACES)
    if x.device.type != "cpu" or not 0 < dropped < PLACES or torch.compiler.is_compiling():
        return functional.dropout(x, p)
    source = np.random.SFC64(int(torch.randint(2**62, ())))
    bits = source.random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
    scale = torch.empty_like(x, requires_grad=False)
    torch.ge(torch.from_numpy(bits).view(x.shape), dropped - PLACES // 2, out=scale)
    return x * scale.mul_(PLACES / (PLACES - dropped))


def replace_dropout(model: nn.Module) -> None:
    """Replace a model's dropout modules by `Dropout`. They have no weights, so the model is saved as before."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def attention(
    q_BHLD: Tensor, k_BHLD: Tensor, v_BHLD: Tensor, mask: Tensor | None, p: float, scale: float
) -> Tensor:
    """Compute attention with dropout of its probabilities, in fp32, as SDPA's plain form does. Returns (B, L, H, D).

    Args:
        mask: bool, broadcast to (B, H, L, L); False: the token is not attended to. None attends to all tokens.
        p: probability of dropout.
        scale: factor of the scores.
    """
    with torch.autocast(q_BHLD.device.type, enabled=False):
        scores = (q_BHLD.float() * scale) @ k_BHLD.float().transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        mixed = dropout(scores.softmax(-1), p) @ v_BHLD.float()
    return mixed.to(v_BHLD.dtype).transpose(1, 2).contiguous()
