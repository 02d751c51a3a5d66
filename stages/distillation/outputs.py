"""Captures what one forward pass of a model computes: logits, hidden states, queries, keys and values.

Queries, keys and values are read through transformers' registry of attention functions: a registered function runs
SDPA (on a CPU in training its plain form, whose backward is faster) and hands over those of the layers that are asked
for. No model code is copied. What is captured hangs on the model's own modules while a context is open, so other
models of the process are not touched, and layers are known by their index.

Axes in names: B rows, H heads, L positions, D width of a head, W width of the hidden states, C classes, N masked
tokens of a batch, V vocabulary.
"""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from functools import cache, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from checkpoints.errors import UserError
from stages.distillation.dropout import attention
from stages.distillation.model_surgery import head_alone

if TYPE_CHECKING:
    from stages.distillation.losses.base import Loss
    from stages.tasks.batches import Batch

ATTENTION = "sdpa_capture"
"""The name of the attention function, for `attn_implementation`: with it, capturing need not switch it first."""

Side = Literal["student", "teacher"]
Value = TypeVar("Value")


@dataclass(frozen=True)
class CaptureSpec:
    """What to capture in a forward pass.

    Attributes:
        logits: whether class scores are kept.
        hidden: indices of the hidden states that are kept; 0 is the embedding output.
        queries_keys: transformer layers, from 1, whose queries and keys are kept.
        scores: those of which only attention scores are needed. A cache on disk may keep scores instead of queries and
            keys.
        values: transformer layers, from 1, whose values are kept.
        vocabulary: whether scores of the vocabulary at the masked tokens are kept (only by `read`).
        named: names of further fields of the model's output that are kept, such as the heads of a multi-head student.
    """

    logits: bool = False
    hidden: frozenset[int] = frozenset()
    queries_keys: frozenset[int] = frozenset()
    scores: frozenset[int] = frozenset()
    values: frozenset[int] = frozenset()
    vocabulary: bool = False
    named: frozenset[str] = frozenset()

    def __or__(self, other: "CaptureSpec") -> "CaptureSpec":
        return CaptureSpec(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})

    @property
    def layers(self) -> frozenset[int]:
        """The transformer layers whose attention is looked into."""
        return self.queries_keys | self.scores | self.values


@dataclass
class ModelOutputs:
    """What was captured in a forward pass.

    Attributes:
        logits_BC: class scores, or None; (B, L, C) at token level; (B, L, 2) of starts and ends of answers.
        hidden_BLW: hidden states by index; 0 is the embedding output.
        queries_BHLD, keys_BHLD, values_BHLD: by transformer layer, from 1.
        scores_BHLL: by transformer layer Q K^T / sqrt(D), where that was kept instead of queries and keys; 0 where
            one of two tokens is padding.
        vocabulary_NV: scores of the vocabulary at the masked tokens, row by row, or None.
        named: further fields of the model's output.
    """

    logits_BC: Tensor | None = None
    hidden_BLW: dict[int, Tensor] = field(default_factory=dict)
    queries_BHLD: dict[int, Tensor] = field(default_factory=dict)
    keys_BHLD: dict[int, Tensor] = field(default_factory=dict)
    values_BHLD: dict[int, Tensor] = field(default_factory=dict)
    scores_BHLL: dict[int, Tensor] = field(default_factory=dict)
    vocabulary_NV: Tensor | None = None
    named: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """`logits_BC`, where the spec asked for logits."""
        assert self.logits_BC is not None, "no logits were asked for"
        return self.logits_BC

    def lacks(self, spec: CaptureSpec) -> str:
        """What a loss asks for and no forward pass has filled, in words; empty if all is there."""
        queries, scores = self.queries_BHLD.keys(), self.scores_BHLL.keys()
        layers = {
            "hidden states": spec.hidden - self.hidden_BLW.keys(),
            "queries and keys": spec.queries_keys - queries,
            "attention scores": spec.scores - queries - scores,
            "values": spec.values - self.values_BHLD.keys(),
        }
        missing = [f"{what} of layers {sorted(which)}" for what, which in layers.items() if which]
        missing += ["logits"] if spec.logits and self.logits_BC is None else []
        return ", ".join(missing + sorted(spec.named - self.named.keys()))

    def attention_scores(self, layer: int) -> Tensor:
        """Q K^T / sqrt(D) of a layer, (B, H, L, L) in fp32, as kept or computed from queries and keys."""
        if layer in self.scores_BHLL:
            return self.scores_BHLL[layer].float()
        return scaled_products(self.queries_BHLD[layer], self.keys_BHLD[layer])


def scaled_products(a_BHLD: Tensor, b_BHLD: Tensor) -> Tensor:
    """A B^T / sqrt(D), (B, H, L, L) in fp32."""
    return a_BHLD.float() @ b_BHLD.float().transpose(-1, -2) / a_BHLD.shape[-1] ** 0.5


@contextmanager
def capture(
    model: nn.Module, what: "CaptureSpec | Loss | Iterable[Loss]", side: Side = "student"
) -> Iterator[ModelOutputs]:
    """Capture what a model computes while the context is open.

    The context returns a `ModelOutputs`, which each forward pass of the model fills. A second pass replaces the first.

    Args:
        model: an encoder as transformers loads it, with or without a head; or any module whose output has the fields that
            the losses read, such as a wrapper around one.
        what: the losses that will read the outputs, or a `CaptureSpec`.
        side: whether the losses take the model as student or as teacher.

    Raises:
        ValueError: the model's output or its attention does not show what is asked for, or an argument is wrong.

    Example:
        >>> losses = [AttentionScores(student.config, teacher.config)]
        >>> with capture(student, losses, side="student") as outputs:
        ...     _ = student(**batch)
        >>> outputs.queries_BHLD.keys()
        dict_keys([1, 2])
    """
    if side not in ("student", "teacher"):
        raise UserError(f"{side!r} is unknown; choose student or teacher", argument="side")
    if not isinstance(what, CaptureSpec):
        asked = what if isinstance(what, Iterable) else (what,)
        what = reduce(or_, (_spec_of(loss, side) for loss in asked), CaptureSpec())
    outputs = ModelOutputs()
    # What a checkpointed student shows without a gradient would teach nothing, and silently.
    checkpointed = side == "student" and any(
        getattr(module, "gradient_checkpointing", False) for module in model.modules()
    )
    layers = _AttentionCapture(what, outputs, checkpointed)

    def before(module: nn.Module, arguments: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        layers.clear()
        return arguments, kwargs | ({"output_hidden_states": True} if what.hidden else {})

    def after(module: nn.Module, arguments: tuple, output: Any) -> None:
        _read_output(output, what, outputs)
        if missing := what.layers - (outputs.queries_BHLD.keys() | outputs.values_BHLD.keys()):
            raise ValueError(
                f"{type(model).__name__} does not show the attention of layers {sorted(missing)}: it has too few "
                "layers, or does not call transformers' attention functions; use losses on logits or hidden states"
            )

    with ExitStack() as stack:
        if what.layers:
            stack.enter_context(_attention_captured(model, layers))
        stack.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(model.register_forward_hook(after).remove)
        yield outputs


def _spec_of(loss: Any, side: Side) -> CaptureSpec:
    spec = getattr(loss, f"{side}_capture", None)
    if isinstance(loss, type) or not isinstance(spec, CaptureSpec):
        raise UserError(f"{loss!r} is not a loss; give an object such as SoftLabels()", argument="what")
    if spec.vocabulary:
        raise UserError(
            f"{type(loss).__name__} reads masked tokens, of which only the stages capture the scores; take another loss",
            argument="what",
        )
    return spec


def _read_output(output: Any, what: CaptureSpec, outputs: ModelOutputs) -> None:
    try:
        outputs.logits_BC = logits_of(output) if what.logits else None
        outputs.hidden_BLW = {index: output.hidden_states[index] for index in what.hidden}
        outputs.named = {name: getattr(output, name) for name in what.named}
    except (AttributeError, IndexError, TypeError) as error:
        raise UserError(
            f"the model's {type(output).__name__} does not hold what a loss reads: {error}; give the student the method "
            "or the kind that this loss is for, or another loss"
        ) from error


def logits_of(output: Any) -> Tensor:
    """The logits that a model with a head returns; those of starts and ends of answers as one tensor, (B, L, 2)."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


@dataclass
class _AttentionCapture:
    """Hangs on the attention modules of a model while its attention is captured."""

    spec: CaptureSpec
    outputs: ModelOutputs
    checkpointed: bool
    calls: int = 0
    learns: bool = False

    def clear(self) -> None:
        """Begin a forward pass."""
        self.calls, self.learns = 0, self.checkpointed and torch.is_grad_enabled()
        for tensors in (self.outputs.queries_BHLD, self.outputs.keys_BHLD, self.outputs.values_BHLD):
            tensors.clear()

    def keep(self, layer: int | None, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep a layer's tensors; a pass that activation checkpointing runs again changes nothing.

        Args:
            layer: from 1; None where one module serves all layers (ALBERT), which are then counted.
        """
        if self.learns and not torch.is_grad_enabled():
            raise UserError(
                "activation checkpointing with use_reentrant=True hides the attention's gradient; enable it with "
                'gradient_checkpointing_enable({"use_reentrant": False})'
            )
        if layer is None:
            self.calls = layer = self.calls + 1
        wanted = layer in self.spec.queries_keys or layer in self.spec.scores
        if wanted and layer not in self.outputs.queries_BHLD:
            self.outputs.queries_BHLD[layer], self.outputs.keys_BHLD[layer] = query, key
        if layer in self.spec.values and layer not in self.outputs.values_BHLD:
            self.outputs.values_BHLD[layer] = value


@contextmanager
def _attention_captured(model: nn.Module, state: _AttentionCapture) -> Iterator[None]:
    """Let the model's attention modules hand over queries, keys and values."""
    model = _unwrapped(model)
    if model not in _NUMBERED:
        _NUMBERED[model] = numbered_modules(model)
    touched = []
    for module, number in _NUMBERED[model]:
        before = module.__dict__.get("_capture", ())
        touched.append((module.__dict__, before))
        module.__dict__["_capture"] = (*before, (state, number))
    try:
        with attention_switched(model):
            yield
    finally:
        for attributes, before in touched:
            attributes["_capture"] = before
            if not before:
                del attributes["_capture"]


@contextmanager
def attention_switched(model: nn.Module) -> Iterator[None]:
    """Let a model compute its attention by the function that can be captured.

    Activation checkpointing runs the forward pass again in `backward`, which must then compute the same.
    """
    model = _unwrapped(model)
    former = getattr(getattr(model, "config", None), "_attn_implementation", "")
    if not isinstance(model, PreTrainedModel) or former == ATTENTION:
        yield
        return
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(former)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The only transformers model in a compiled one, or in another wrapper; any other module as it is."""
    if isinstance(model, PreTrainedModel):
        return model
    found = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    is_only = bool(found) and {*found} <= {*found[0].modules()}
    return found[0] if is_only else model


_NUMBERED: WeakKeyDictionary[nn.Module, list[tuple[nn.Module, int | None]]] = WeakKeyDictionary()
"""Of a model its modules, found once: going through them takes as long as a layer's kernels take to start."""


def numbered_modules(model: nn.Module) -> list[tuple[nn.Module, int | None]]:
    """The modules below a model, each with the number, from 1, of the layer whose attention it may be."""
    of_type: dict[type, list[nn.Module]] = defaultdict(list)
    for module in model.modules():
        of_type[type(module)].append(module)
    layers = getattr(getattr(model, "config", None), "num_hidden_layers", 0)
    numbered = []
    for modules in of_type.values():
        for place, module in enumerate(modules, start=1):
            index = getattr(module, "layer_idx", None)
            number = index + 1 if isinstance(index, int) else place if len(modules) == layers else None
            # An attention module has linear layers; the model itself, held here, would be held forever.
            if module is not model and any(module.children()):
                numbered.append((module, number))
    return numbered


def _captured_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask, **kwargs):
    if captured := module.__dict__.get("_capture"):
        shared = query.shape[1] // key.shape[1]  # query heads that read the same keys and values
        each = [x.repeat_interleave(shared, 1) if shared > 1 else x for x in (key, value)]
        for state, layer in captured:
            state.keep(layer, query, *each)
    if query.requires_grad and query.device.type == "cpu" and not torch.compiler.is_compiling():
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
    if query.device.type == "cuda" and query.shape[-1] % 8:
        return _padded_to_8(module, query, key, value, mask, **kwargs)
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def _padded_to_8(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask, **kwargs):
    """SDPA with heads of a width that the GPU's fast kernels take; else it falls back to the plain form."""
    width, missing = query.shape[-1], -query.shape[-1] % 8
    kwargs["scaling"] = kwargs.get("scaling") or width**-0.5
    query, key, value = (functional.pad(x, (0, missing)) for x in (query, key, value))
    output, weights = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return output[..., :width].contiguous(), weights


def _mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """transformers' mask for SDPA. On a GPU it does not look whether all is read: that would wait for the GPU."""
    if attention_mask is not None and attention_mask.device.type == "cuda":
        kwargs["allow_is_bidirectional_skip"] = False
    return sdpa_mask(attention_mask=attention_mask, **kwargs)


AttentionInterface.register(ATTENTION, _captured_attention)
AttentionMaskInterface.register(ATTENTION, _mask)


def inputs_of(model: Any, inputs: Mapping[str, Value]) -> dict[str, Value]:
    """Select the inputs that a model's forward takes. Token types are left out if the model has only one."""
    kind: Any = type(model)
    names = _argument_names(kind)
    if getattr(getattr(model, "config", None), "type_vocab_size", 2) <= 1:
        names = names - {"token_type_ids"}
    return {name: given for name, given in inputs.items() if name in names}


@cache
def _argument_names(model: Any) -> frozenset[str]:
    return frozenset(inspect.signature(getattr(model, "forward", model.__call__)).parameters)


def read(model: Any, batch: "Batch", spec: CaptureSpec, side: Side = "student") -> ModelOutputs:
    """Run a model on a batch and return what `spec` asks for."""
    reader = model.base_model if spec.vocabulary else model
    inputs = inputs_of(model, batch.inputs_of(side))
    if not batch.padded and batch.weight.device.type == "cuda" and isinstance(model, PreTrainedModel):
        inputs.pop("attention_mask", None)  # transformers would look at it, and so wait for the GPU
    with capture(reader, spec) as outputs:
        output = reader(**inputs)
    if spec.vocabulary and batch.labels is not None:  # the vocabulary is read at the masked tokens only
        states_NW = batch.at_masked(output[0])
        outputs.vocabulary_NV = head_alone(model)(inputs_embeds=states_NW[None]).logits[0]
    return outputs
