"""Students: an architecture and how its weights begin.

A student is of the teacher's own kind, or of a kind that a module of this package defines. The config of such a kind
says in `sizes` how it names a recipe's sizes, and in `of_teacher` what it takes from the teacher (by default the
vocabulary); it counts its own operations. It is registered with transformers, so that it is saved, loaded, exported and served as any other.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError
from stages.distillation.layer_maps import layer_map
from stages.distillation.outputs import ATTENTION
from stages.distillation.students.bert_with_token import BertWithTokenConfig
from stages.distillation.students.bilstm import BiLSTMConfig
from stages.distillation.students.cmow import CMOWConfig
from stages.distillation.students.dual_encoder import DualEncoderConfig
from stages.distillation.students.graph_networks import HANConfig, RGCNConfig
from stages.distillation.students.many_heads import ManyHeadsConfig
from stages.distillation.students.ngrams import NGramsConfig
from stages.distillation.students.prompted import PromptedConfig
from stages.distillation.students.pruned_bert import PrunedBertConfig
from stages.distillation.students.strips import STRIPS
from stages.distillation.students.textcnn import TextCNNConfig
from stages.distillation.students.two_streams import TwoStreamsConfig
from stages.distillation.students.vision import VISION, vision_config

KINDS = {
    "bert_with_token": BertWithTokenConfig,
    "bilstm": BiLSTMConfig,
    "cmow": CMOWConfig,
    "han": HANConfig,
    "ngrams": NGramsConfig,
    "rgcn": RGCNConfig,
    "textcnn": TextCNNConfig,
    **STRIPS,
}
"""Kinds of students that are no stock models, and their configs."""

MADE = {
    DualEncoderConfig.model_type: "lead",
    ManyHeadsConfig.model_type: "many_heads",
    PromptedConfig.model_type: "soft_prompt",
    PrunedBertConfig.model_type: "grain",
}
"""Kinds that a method makes of another student, and that method."""

OWN = (*KINDS, *MADE, TwoStreamsConfig.model_type)
"""All types of models that this project adds to transformers'."""

_FEED_FORWARD = ("intermediate_size", "hidden_dim")
_LAYER = re.compile(r"(.*\blayers?\.)(\d+)(\..*)")
_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")


def student_config(
    teacher: PretrainedConfig,
    layers: int,
    width: int = 0,
    feed_forward: int = 0,
    heads: int = 0,
    dropout: float = 0.1,
    kind: str = "",
    which: str | Sequence[int] = "uniform",
    settings: Mapping[str, Any] | None = None,
    vocabulary: int = 0,
) -> PretrainedConfig:
    """The config of a student: a smaller one of the teacher's kind, so that tokens and positions fit both, or one of `kind`.

    A size of 0, layers too, is the teacher's; `vocabulary` is the maximum number of tokens. With `kind` it has the
    teacher's vocabulary, and every size is its own; `settings` are what such a kind has beside sizes. Where the teacher's
    layers differ in their kind of attention (ModernBERT), a layer has that of the layer it learns from, by the layer map
    `which`.

    Raises:
        ValueError: an unknown kind, or sizes or settings that it does not have.
    """
    if kind:
        sizes = {"layers": layers, "width": width, "feed_forward": feed_forward, "heads": heads}
        if kind in VISION:
            return vision_config(kind, sizes, settings or {}, teacher, dropout)
        return _config_of(kind, sizes, settings or {}, teacher, dropout)
    if settings:
        raise UserError(
            f"{dict(settings)} are for a student with a kind; leave them out", argument="settings"
        )
    config = copy.deepcopy(teacher)
    config.num_hidden_layers = layers = layers or teacher.num_hidden_layers
    config.vocab_size = min(vocabulary or config.vocab_size, config.vocab_size)
    if kinds := getattr(teacher, "layer_types", None):
        n = teacher.num_hidden_layers
        # Uniform, also where the map would not divide.
        spread = [i * n // layers for i in range(1, layers + 1)]
        chosen = spread if which == "uniform" else list(layer_map(which, layers, n).values())[1:]
        config.layer_types = [kinds[layer - 1] for layer in chosen]
    if width:
        config.hidden_size = width
        if hasattr(config, "embedding_size"):
            config.embedding_size = width
    if heads:
        config.num_attention_heads = heads
    # As many queries to a key as the teacher has, if that divides.
    if getattr(config, "num_key_value_heads", None):
        shared = teacher.num_attention_heads // teacher.num_key_value_heads
        own = config.num_attention_heads
        config.num_key_value_heads = own // shared if own % shared == 0 else own
    if getattr(config, "head_dim", None) and (width or heads):
        config.head_dim = config.hidden_size // config.num_attention_heads
    for name in _FEED_FORWARD:
        if feed_forward and name in config.to_dict():
            setattr(config, name, feed_forward)
    config.architectures = None
    return set_dropout(config, dropout)


def _config_of(
    kind: str, sizes: dict[str, int], settings: Mapping[str, Any], teacher: PretrainedConfig, dropout: float
) -> PretrainedConfig:
    if kind in MADE:
        raise UserError(
            f"{kind!r} cannot be chosen; take the method {MADE[kind]}, which makes it, and leave this out",
            argument="kind",
        )
    if kind not in KINDS:
        raise UserError(f"{kind!r} is unknown; there are {', '.join([*KINDS, *VISION])}", argument="kind")
    names = getattr(KINDS[kind], "of_teacher", ("vocab_size", "pad_token_id"))
    config = KINDS[kind](
        **{name: getattr(teacher, name, None) for name in names}, hidden_dropout_prob=dropout
    )
    for name, size in sizes.items():
        if (name in config.sizes) != (size > 0):
            wanted = "give one above 0" if name in config.sizes else "leave it out"
            raise UserError(
                f"{size} for a {kind}, whose sizes are {', '.join(config.sizes)}; {wanted}", argument=name
            )
        if size:
            setattr(config, config.sizes[name], size)
    known = getattr(config, "settings", ())
    for name, value in settings.items():
        if name not in known:
            raise UserError(
                f"{name!r} is not a setting of a {kind}; it has {', '.join(known) or 'none'}",
                argument="settings",
            )
        setattr(config, name, value)
    config.check()
    return config


def set_dropout(config: PretrainedConfig, dropout: float) -> PretrainedConfig:
    """Set the dropout of hidden states and attention, under whatever names the config has for them."""
    for name in _DROPOUT:
        if name in config.to_dict():
            setattr(config, name, dropout)
    return config


def begin_with_vectors(
    table: nn.Embedding, pieces: dict[str, int], words: list[str], vectors_VD: np.ndarray
) -> int:
    """Let the rows of tokens that are whole words begin as the words' vectors.

    The vectors go to the table's width by a random orthonormal map, which keeps the angles between them where the table is
    no narrower than they are; each such row is as long as the drawn rows are in the mean, and the others
    stay as drawn.

    Args:
        pieces: the tokenizer's vocabulary; a piece that begins a word is written as a WordPiece's, without a mark.
        words: distinct, in lower case as in the text.
        vectors_VD: vectors of length 1.

    Returns:
        How many rows.
    """
    known = [(pieces[word], i) for i, word in enumerate(words) if word in pieces]
    if not known:
        return 0
    rows, places = (list(column) for column in zip(*known, strict=True))
    turned = nn.init.orthogonal_(torch.empty(vectors_VD.shape[1], table.embedding_dim))
    with torch.no_grad():
        length = table.weight.norm(dim=1).mean()
        table.weight[rows] = length * functional.normalize(torch.tensor(vectors_VD[places]) @ turned)
    return len(known)


def random_student(config: PretrainedConfig, seed: int, kind: Any = AutoModel) -> PreTrainedModel:
    """An encoder (or `kind` of model) with random weights, drawn from `seed`."""
    torch.manual_seed(seed)
    return kind.from_config(config, attn_implementation=ATTENTION)


def student_from_teacher_layers(
    teacher: PreTrainedModel,
    layers: int,
    dropout: float,
    which: str | Sequence[int] = "uniform",
    kind: Any = AutoModel,
) -> PreTrainedModel:
    """An encoder of the teacher's width that begins as some of its layers: every k-th (k = N / M) if `which` is uniform.

    Args:
        teacher: a model of the same kind; what is no layer (embeddings, heads) begins as its own.
        which: a layer map: uniform, first, last, or a list of teacher layers.
        kind: AutoModel, an encoder; AutoModelForMaskedLM, one with a masked-LM head.

    Raises:
        ValueError: the layer counts do not fit the map, or the layers are not found by name.
    """
    check_layers(teacher)
    chosen = layer_map(which, layers, teacher.config.num_hidden_layers)
    config = student_config(teacher.config, layers, dropout=dropout, which=which)
    student = kind.from_config(config, attn_implementation=ATTENTION)
    weights = teacher.state_dict()

    def source(name: str) -> str:
        match = _LAYER.fullmatch(name)
        return f"{match[1]}{chosen[int(match[2]) + 1] - 1}{match[3]}" if match else name

    student.load_state_dict({name: weights[source(name)] for name in student.state_dict()})
    return student


def check_layers(teacher: PreTrainedModel) -> None:
    """Check that a model's layers can be found by name, so that a student may begin as some of them.

    Raises:
        UserError: they cannot.
    """
    if not any(_LAYER.fullmatch(name) for name in teacher.state_dict()):
        raise UserError(
            f"the layers of a {teacher.config.model_type} model are not found by name, so that no student begins as some of "
            "them: leave out teacher-layers"
        )
