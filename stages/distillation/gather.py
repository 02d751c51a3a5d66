"""The rows of a global batch from all ranks, for losses over the whole batch."""

import torch
import torch.distributed as dist
from torch import Tensor


def gather_rows(x_BF: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the vectors of all rows of the global batch, in the order of the batch.

    Gradients flow back to the ranks that the rows come from. So a loss that compares each of this rank's rows with all
    rows is the same on one rank and on several. Every rank must call it, in the same order.

    Args:
        x_BF: (B, ...) this rank's rows that count (`Batch.at_counted`); ranks may have different numbers of rows.

    Returns:
        (N, ...) the rows of all ranks, and (B,) int64, the places of this rank's rows among them.

    Example:
        In-batch negatives: each student vector should be most similar to the teacher's vector of the same row.

        >>> student_BF, teacher_BF = torch.randn(3, 8), torch.randn(3, 8)
        >>> theirs_NF, own_B = gather_rows(teacher_BF)
        >>> loss = torch.nn.functional.cross_entropy(student_BF @ theirs_NF.T, own_B, reduction="sum")
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x_BF, torch.arange(len(x_BF), device=x_BF.device)
    world, rank = dist.get_world_size(), dist.get_rank()
    counts_R = torch.zeros(world, dtype=torch.int64, device=x_BF.device)
    counts_R[rank] = len(x_BF)
    dist.all_reduce(counts_R)
    most = int(counts_R.max())
    padded_BF = torch.cat([x_BF, x_BF.new_zeros(most - len(x_BF), *x_BF.shape[1:])])
    all_BRF = _AllGather.apply(padded_BF)
    # The job deals the rows of a global batch over ranks like cards: the i-th row of rank r is row i * world + r.
    counted_BR = torch.arange(most, device=x_BF.device)[:, None] < counts_R
    own_B = torch.arange(len(x_BF), device=x_BF.device) * world + rank
    return all_BRF[counted_BR], own_B


class _AllGather(torch.autograd.Function):
    """(B, ...) of each rank to (B, ranks, ...)."""

    @staticmethod
    def forward(ctx, x_BF: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BF) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BF.contiguous())
        return torch.stack(parts, dim=1)

    @staticmethod
    def backward(ctx, gradient_BRF: Tensor) -> Tensor:
        gradient_BRF = gradient_BRF.contiguous().clone()
        dist.all_reduce(gradient_BRF)
        return gradient_BRF[:, dist.get_rank()]
