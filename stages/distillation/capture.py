"""Views: what one forward pass shows of a model.

Axes in names: B rows, H heads, L positions, D width of a head, W width of the hidden states, C classes, N masks of a
batch, V vocabulary.

Queries, keys and values are read through transformers' registry of attention functions: a registered function
runs SDPA (on a CPU, where a student drops out, its plain form with a faster dropout) and hands over the queries, keys and
values of the layers that are asked for. No model code is copied.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from data_aug.word_prediction import head_alone
from stages.distillation.dropout import attention

if TYPE_CHECKING:
    from stages.tasks.batches import Batch

TAP = "sdpa_tap"


@dataclass(frozen=True)
class Needs:
    """The fields of a view that a loss reads; nothing else is produced.

    `hidden` holds indices of hidden states (0: the embedding output), `scores` and `values` indices of transformer
    layers, from 1, whose queries and keys, or values, are wanted; `vocabulary` asks what stands behind the masks.
    """

    logits: bool = False
    hidden: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()
    vocabulary: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(
            self.logits or other.logits,
            self.hidden | other.hidden,
            self.scores | other.scores,
            self.values | other.values,
            self.vocabulary or other.vocabulary,
        )


@dataclass
class View:
    """One forward pass of a model.

    Attributes:
        mask_BL: 1 for real tokens of rows that count, 0 for padding and for rows of weight zero.
        logits_BC: class scores, or None; of each token, (B, L, C), where words have labels.
        hidden_BLW: hidden states by index; 0 is the embedding output.
        queries_BHLD, keys_BHLD, values_BHLD: by transformer layer, from 1.
        vocabulary_NV: scores of the vocabulary at the masks of the batch, row by row, or None.
    """

    mask_BL: Tensor
    logits_BC: Tensor | None = None
    hidden_BLW: dict[int, Tensor] = field(default_factory=dict)
    queries_BHLD: dict[int, Tensor] = field(default_factory=dict)
    keys_BHLD: dict[int, Tensor] = field(default_factory=dict)
    values_BHLD: dict[int, Tensor] = field(default_factory=dict)
    vocabulary_NV: Tensor | None = None


class _Tap:
    """Collects queries, keys and values while a model runs; the order of the calls tells the layer."""

    def __init__(self) -> None:
        self.open(Needs())

    def open(self, needs: Needs) -> None:
        self.needs, self.calls = needs, 0
        self.queries: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def attention(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask, **kwargs):
        self.calls += 1
        if self.calls in self.needs.scores:
            self.queries[self.calls], self.keys[self.calls] = query, key
        if self.calls in self.needs.values:
            self.values[self.calls] = value
        if query.requires_grad and query.device.type == "cpu":
            p, scale = kwargs.get("dropout", 0.0), kwargs.get("scaling") or query.shape[-1] ** -0.5
            if (
                p
                and query.shape == key.shape
                and not getattr(module, "is_causal", True)
                and kwargs.get("position_bias") is None
            ):
                return attention(query, key, value, mask, p, scale), None
            # The CPU's flash backward is slow: forward and backward take 2.5 to 4 times those of the plain form.
            with sdpa_kernel(SDPBackend.MATH):
                return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


_tap = _Tap()
AttentionInterface.register(TAP, _tap.attention)
AttentionMaskInterface.register(TAP, sdpa_mask)


def inputs_of(model: nn.Module, batch: "Batch") -> dict[str, Tensor]:
    """The keyword arguments under which `model` reads a batch."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = batch.token_type_ids
    return inputs


def read(model: nn.Module, batch: "Batch", needs: Needs) -> View:
    """Run `model` (made with `attn_implementation=TAP`) on a batch and show what is needed of it."""
    _tap.open(needs)
    whole = model.base_model if needs.vocabulary else model
    output = whole(**inputs_of(model, batch), output_hidden_states=bool(needs.hidden))
    view = View(mask_BL=batch.attention_mask * batch.weight[:, None])
    view.logits_BC = output.logits if needs.logits else None
    view.hidden_BLW = {index: output.hidden_states[index] for index in needs.hidden}
    view.queries_BHLD, view.keys_BHLD, view.values_BHLD = _tap.queries, _tap.keys, _tap.values
    if needs.vocabulary:  # the vocabulary is read at the masks only
        states_NW = output[0][batch.labels >= 0]
        view.vocabulary_NV = head_alone(model)(inputs_embeds=states_NW[None]).logits[0]
    _tap.open(Needs())
    return view


def without_gradient(model: nn.Module, batch: "Batch", needs: Needs) -> View:
    """A view for targets. `no_grad`, as tensors of `inference_mode` cannot enter a loss that has gradients."""
    with torch.no_grad():
        return read(model, batch, needs)
