"""Models with parts exchanged: linear layers that run faster on a CPU, and a head without its encoder."""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from stages.distillation.device import has_fast_bf16


class PackedLinear(nn.Module):
    """`nn.Linear` without gradients on a CPU: bitwise the same numbers, 5 to 12% faster.

    torch's own compiler (`torch._inductor`, freezing) calls the same two operators; they have no public name.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack(model: nn.Module) -> None:
    """Replace a model's bfloat16 linear layers on a CPU by faster ones. The model can then no longer be trained."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and packs(child.weight):
                setattr(module, name, PackedLinear(child))


def packs(weight: Tensor) -> bool:
    """Return whether `PackedLinear` can take a weight: bfloat16, on a CPU that multiplies it fast."""
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and has_fast_bf16("cpu")


class _GivenStates(nn.Module):
    """Stands where the encoder was, and hands on the states it is given."""

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def head_alone(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model without its encoder, with shared weights. Its `inputs_embeds` are the encoder's last states."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _GivenStates()}
    return head
