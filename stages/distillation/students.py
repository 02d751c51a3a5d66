"""Students: an architecture and how its weights begin."""

import copy
import re
from collections.abc import Sequence

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError
from stages.distillation.layer_maps import layer_map
from stages.distillation.view import TAP

_FEED_FORWARD = ("intermediate_size", "hidden_dim")
_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def student_config(
    teacher: PretrainedConfig,
    layers: int,
    width: int = 0,
    feed_forward: int = 0,
    heads: int = 0,
    dropout: float = 0.1,
) -> PretrainedConfig:
    """A smaller config of the teacher's own kind, so that tokenizer, vocabulary and positions fit both.

    A size of 0 is the teacher's.
    """
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):  # ModernBERT names a kind of attention for each layer
        config.layer_types = config.layer_types[:layers]
    if width:
        config.hidden_size = width
        if hasattr(config, "embedding_size"):
            config.embedding_size = width
    if heads:
        config.num_attention_heads = heads
    for name in _FEED_FORWARD:
        if feed_forward and name in config.to_dict():
            setattr(config, name, feed_forward)
    config.architectures = None
    return set_dropout(config, dropout)


def set_dropout(config: PretrainedConfig, dropout: float) -> PretrainedConfig:
    """Set the dropout of hidden states and attention, under whatever names the config has for them."""
    for name in _DROPOUT:
        if name in config.to_dict():
            setattr(config, name, dropout)
    return config


def random_student(config: PretrainedConfig, seed: int, kind: type = AutoModel) -> PreTrainedModel:
    """An encoder (or `kind` of model) with random weights, drawn from `seed`."""
    torch.manual_seed(seed)
    return kind.from_config(config, attn_implementation=TAP)


def student_from_teacher_layers(
    teacher: PreTrainedModel,
    layers: int,
    dropout: float,
    which: str | Sequence[int] = "uniform",
    kind: type = AutoModel,
) -> PreTrainedModel:
    """An encoder of the teacher's width that begins as some of its layers: every k-th (k = N / M) if `which` is uniform.

    Args:
        teacher: of the same kind; what is no layer (embeddings, heads) begins as its own.
        layers: of the student.
        dropout: of the student.
        which: a layer map: uniform, first, last, or a list of teacher layers.
        kind: AutoModel, an encoder; AutoModelForMaskedLM, one with a masked-LM head.

    Raises:
        UserError: the layer counts do not fit the map, or the layers are not found by name.
    """
    chosen = layer_map(which, layers, teacher.config.num_hidden_layers)
    config = student_config(teacher.config, layers, dropout=dropout)
    student = kind.from_config(config, attn_implementation=TAP)
    weights, layer = teacher.state_dict(), re.compile(r"(.*\blayer\.)(\d+)(\..*)")

    def source(name: str) -> str:
        match = layer.fullmatch(name)
        return f"{match[1]}{chosen[int(match[2]) + 1] - 1}{match[3]}" if match else name

    names = list(student.state_dict())
    if not any(layer.fullmatch(name) for name in names):
        raise UserError(
            f"student=teacher-layers: the layers of a {config.model_type} model are not found by name"
        )
    student.load_state_dict({name: weights[source(name)] for name in names})
    return student
