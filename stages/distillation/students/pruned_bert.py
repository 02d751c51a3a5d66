"""BERT with fewer units than its config's sizes tell: what is left of it after pruning (arXiv 2212.07634).

Three kinds of units: a row of a head's queries and keys, a row of a head's values with the column that reads it, and a
row of the feed-forward layer with the column that reads it. Each head has a number of its own of the first two. So no
stock model holds it, but all of its layers around the attention are stock.

Axes in names: B rows, L positions, W width of the hidden states, N layers, H heads, D width of a head before pruning, F
feed-forward width before pruning, U units, U* units filled up so that all heads are as wide as the widest.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from stages.distillation.outputs import ATTENTION
from stages.distillation.students.registry import register


class PrunedBertConfig(BertConfig):
    """BERT's config with the remaining units. The sizes of `BertConfig` are those before pruning.

    Attributes:
        query_units: for each layer a list: the number of query (and key) units left in each remaining head.
        value_units: the same for values.
        feed_forward_units: for each layer, how many are left.
        embedding_rank: r if the table of word embeddings is a product of two matrices, (vocabulary, r) and (r, W); 0 if
            it is one table.
    """

    model_type = "pruned_bert"

    query_units: Any = None
    value_units: Any = None
    feed_forward_units: Any = None
    embedding_rank: int = 0


class PrunedSelfAttention(nn.Module):
    """Attention of heads of different widths. Scores are divided by the square root of the width before pruning."""

    to_U: Tensor
    queries_U: Tensor
    values_U: Tensor

    def __init__(self, config: Any, layer_idx: int):
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, False
        self.query_units, self.value_units = config.query_units[layer_idx], config.value_units[layer_idx]
        width = config.hidden_size
        self.scaling = (width // config.num_attention_heads) ** -0.5
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.query = nn.Linear(width, sum(self.query_units))
        self.key = nn.Linear(width, sum(self.query_units))
        self.value = nn.Linear(width, sum(self.value_units))
        if ragged(self.query_units):
            self.register_buffer("queries_U", torch.tensor(filled(self.query_units)))
        if ragged(self.value_units):
            places = filled(self.value_units)
            there = [i for i, place in enumerate(places) if place < sum(self.value_units)]
            self.register_buffer("values_U", torch.tensor(places))
            self.register_buffer("to_U", torch.tensor(there))

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, U) what the heads read, and the attention's weights where the function gives them."""

        def split(x_BLU: Tensor, units: list[int], name: str) -> Tensor:
            """(B, H, L, U*), zeros where a head has fewer units than the widest."""
            if ragged(units):
                x_BLU = functional.pad(x_BLU, (0, 1)).index_select(-1, getattr(self, name))
            return x_BLU.view(*x_BLU.shape[:-1], len(units), max(units)).transpose(1, 2)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        read_BLHU, weights = attend(
            self,
            split(self.query(hidden_states), self.query_units, "queries_U"),
            split(self.key(hidden_states), self.query_units, "queries_U"),
            split(self.value(hidden_states), self.value_units, "values_U"),
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        read_BLU = read_BLHU.reshape(*hidden_states.shape[:-1], -1)
        return (read_BLU.index_select(-1, self.to_U) if ragged(self.value_units) else read_BLU), weights


def ragged(units: list[int]) -> bool:
    """Whether heads have different numbers of units."""
    return min(units) < max(units)


def filled(units: list[int]) -> list[int]:
    """For each head the indices of its units among all; the index past the last unit pads it to the widest head.

    Example:
        >>> filled([1, 3])
        [0, 4, 4, 1, 2, 3]
    """
    first = [sum(units[:head]) for head in range(len(units))]
    return [
        start + i if i < count else sum(units)
        for start, count in zip(first, units, strict=True)
        for i in range(max(units))
    ]


def resize(model: Any, config: PrunedBertConfig) -> None:
    """Give a stock BERT, with or without a head, the units of a config in place of all of them."""
    bert, width = model.base_model, config.hidden_size
    if rank := config.embedding_rank:
        words = nn.Embedding(config.vocab_size, rank, padding_idx=config.pad_token_id)
        bert.embeddings.word_embeddings = nn.Sequential(words, nn.Linear(rank, width, bias=False))
    for i, layer in enumerate(bert.encoder.layer):
        layer.attention.self = PrunedSelfAttention(config, i)
        layer.attention.output.dense = nn.Linear(sum(config.value_units[i]), width)
        layer.intermediate.dense = nn.Linear(width, config.feed_forward_units[i])
        layer.output.dense = nn.Linear(config.feed_forward_units[i], width)
    model.post_init()


class _Pruned:
    """A stock BERT with the units of its config."""

    config_class: Any = PrunedBertConfig

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        resize(self, config)


class PrunedBertModel(_Pruned, BertModel):
    """The encoder."""


class PrunedBertForSequenceClassification(_Pruned, BertForSequenceClassification):
    """Answers for a whole row."""


class PrunedBertForTokenClassification(_Pruned, BertForTokenClassification):
    """Answers for each token."""


class PrunedBertForQuestionAnswering(_Pruned, BertForQuestionAnswering):
    """Where an answer starts and ends."""


PRUNED: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    BertForSequenceClassification: PrunedBertForSequenceClassification,
    BertForTokenClassification: PrunedBertForTokenClassification,
    BertForQuestionAnswering: PrunedBertForQuestionAnswering,
}


def prunable(model: PreTrainedModel, embedding_rank: int) -> PreTrainedModel:
    """The same classifier in the form that can be pruned, its word embeddings factorised by SVD.

    Args:
        model: a stock BERT with a head.
        embedding_rank: r, below the width, of the factors, which are the best in the least squares of the table; 0
            leaves it as it is.
    """
    old: Any = model.config
    layers, heads = old.num_hidden_layers, old.num_attention_heads
    each = [[old.hidden_size // heads] * heads for _ in range(layers)]
    config = PrunedBertConfig(
        **{name: value for name, value in old.to_dict().items() if name != "model_type"},
        query_units=each,
        value_units=copy.deepcopy(each),
        feed_forward_units=[old.intermediate_size] * layers,
        embedding_rank=embedding_rank,
    )
    weights = model.state_dict()
    if embedding_rank:
        name = next(name for name in weights if name.endswith("word_embeddings.weight"))
        left_VR, right_RW = factorised(weights.pop(name), embedding_rank)
        prefix = name.removesuffix("weight")
        weights |= {f"{prefix}0.weight": left_VR, f"{prefix}1.weight": right_RW.T}
    student = PRUNED[type(model)]._from_config(config, attn_implementation=ATTENTION)
    student.load_state_dict(weights)
    return student


def factorised(table_VW: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors (V, r) and (r, W) whose product is nearest to a table, by SVD; each has the root of the singular values."""
    u_VK, s_K, v_KW = torch.linalg.svd(table_VW.double(), full_matrices=False)
    root_R = s_K[:rank].sqrt()
    return (u_VK[:, :rank] * root_R).to(table_VW.dtype), (root_R[:, None] * v_KW[:rank]).to(table_VW.dtype)


def shrunk(
    model: PreTrainedModel, queries_NHD: Tensor, values_NHD: Tensor, feed_forward_NF: Tensor
) -> PreTrainedModel:
    """A smaller model that answers the same, without the units that are pruned.

    A layer without units keeps one that adds nothing, because many tools reject empty matrices.

    Args:
        model: made by `prunable`, or a stock BERT with only feed-forward units pruned, equally many in each layer. The
            weights of pruned units are 0.
        queries_NHD, values_NHD, feed_forward_NF: whether a unit is kept.
    """
    config: Any = copy.deepcopy(model.config)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    stem = next(name for name in weights if ".layer.0." in name).partition("layer.0.")[0]
    query_units, value_units, feed_forward_units = [], [], []
    for i in range(config.num_hidden_layers):
        values_HD = _with_one(values_NHD[i])
        heads_H = values_HD.any(1)
        queries_HD = _with_one(queries_NHD[i] & heads_H[:, None], among=heads_H)
        feed_forward_F = _with_one(feed_forward_NF[i])
        query_units.append(queries_HD.sum(1)[heads_H].tolist())
        value_units.append(values_HD.sum(1)[heads_H].tolist())
        feed_forward_units.append(int(feed_forward_F.sum()))
        rows = {"attention.self.query": queries_HD, "attention.self.key": queries_HD,
                "attention.self.value": values_HD, "intermediate.dense": feed_forward_F}  # fmt: skip
        columns = {"attention.output.dense": values_HD, "output.dense": feed_forward_F}
        for name, kept in rows.items():
            for part in ("weight", "bias"):
                place = f"{stem}layer.{i}.{name}.{part}"
                weights[place] = weights[place][kept.flatten()]
        for name, kept in columns.items():
            place = f"{stem}layer.{i}.{name}.weight"
            weights[place] = weights[place][:, kept.flatten()]
    if isinstance(config, PrunedBertConfig):
        config.query_units, config.value_units = query_units, value_units
        config.feed_forward_units = feed_forward_units
    else:
        (config.intermediate_size,) = set(feed_forward_units)
    small = type(model)._from_config(config, attn_implementation=ATTENTION)
    small.load_state_dict(small.state_dict() | weights)
    return small.to(model.device)


def _with_one(kept: Tensor, among: Tensor | None = None) -> Tensor:
    """The same, but where no unit is kept, the first is: of the first head `among` some."""
    if not kept.any():
        kept = kept.clone()
        kept.view(-1)[0 if among is None else int(among.float().argmax()) * kept.shape[1]] = True
    return kept


register(PrunedBertModel, *PRUNED.values())
