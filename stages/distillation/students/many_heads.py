"""One body and several heads: the first layers of an encoder, and copies of its last layers and its classifier.

The students of CERBERUS (Matsubara et al., arXiv 2201.05767). Each head may learn from a teacher of its own; the answer is
the mean of their probabilities.

Axes in names: B rows, L positions, W width, K heads, C classes.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from stages.distillation.students.registry import register

BODIES = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Types of models that are taken apart: their encoder reads what their embeddings give, layer after layer."""


class ManyHeadsConfig(PretrainedConfig):
    """The config of the whole stock model, and how it is taken apart.

    Attributes:
        stock: settings of the classifier that body and a head make together.
        heads: K.
        head_layers: layers of each head; the body has the others.
    """

    model_type = "many_heads"

    stock: dict[str, Any] | None = None
    heads: int = 1
    head_layers: int = 1
    vocab_size: int = 30522
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.02
    pad_token_id: int | None = 0

    @classmethod
    def of(cls, stock: Any, heads: int, layers: int) -> "ManyHeadsConfig":
        """The config of a stock classifier that is taken apart into `heads` heads of `layers` layers."""
        config = cls(
            stock=stock.to_dict(), heads=heads, head_layers=layers, vocab_size=stock.vocab_size,
            type_vocab_size=stock.type_vocab_size, pad_token_id=stock.pad_token_id,
        )  # fmt: skip
        for name in ("id2label", "label2id", "problem_type", "ranking"):
            if hasattr(stock, name):
                setattr(config, name, getattr(stock, name))
        config._attn_implementation = stock._attn_implementation
        return config

    def part(self, layers: int) -> PretrainedConfig:
        """The stock config, with `layers` layers."""
        settings = copy.deepcopy(self.stock or {})
        config: Any = AutoConfig.for_model(settings.pop("model_type"), **settings)
        config.num_hidden_layers, config.num_labels = layers, self.num_labels
        return config


@dataclass
class ManyHeadsOutput(SequenceClassifierOutput):
    """`head_logits` are those of each head, (B, K, C); `logits` the logarithm of their mean probabilities."""

    head_logits: Tensor | None = None


class _GivenStates(nn.Module):
    """Stands where a head's embeddings were, and hands on the body's states."""

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> Tensor:
        return inputs_embeds


class ManyHeadsForSequenceClassification(PreTrainedModel):
    """Each head is a stock classifier of a few layers that reads the body's last hidden states."""

    config_class = ManyHeadsConfig
    _supports_sdpa = True

    def __init__(self, config: Any):
        super().__init__(config)
        how = {"attn_implementation": config._attn_implementation}
        of_stock = (config.stock or {}).get("num_hidden_layers", 0)
        self.body = without_pooler(AutoModel.from_config(config.part(of_stock - config.head_layers), **how))
        head = config.part(config.head_layers)
        self.heads = nn.ModuleList(
            without_embeddings(AutoModelForSequenceClassification.from_config(copy.deepcopy(head), **how))
            for _ in range(config.heads)
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.body.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> ManyHeadsOutput:
        """The hidden states are the body's."""
        more: dict[str, Any] = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        if output_hidden_states:
            more["output_hidden_states"] = True
        body = self.body(input_ids=input_ids, attention_mask=attention_mask, **more)
        states_BLW = body.last_hidden_state
        each = [head(inputs_embeds=states_BLW, attention_mask=attention_mask).logits for head in self.heads]
        logits_BKC = torch.stack(each, 1)
        mean_BC = torch.log_softmax(logits_BKC.float(), -1).exp().mean(1)
        return ManyHeadsOutput(
            logits=mean_BC.clamp(min=1e-30).log(), hidden_states=body.hidden_states, head_logits=logits_BKC
        )


def without_pooler(model: Any) -> Any:
    """The same encoder without its pooler, if it has one."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def without_embeddings(model: Any) -> Any:
    """The same classifier, which reads hidden states as `inputs_embeds`."""
    model.base_model.embeddings = _GivenStates()
    if hasattr(model.base_model, "embeddings_project"):  # ELECTRA
        del model.base_model.embeddings_project
    return model


def with_many_heads(stock: PreTrainedModel, heads: int, layers: int) -> ManyHeadsForSequenceClassification:
    """Take a stock classifier apart: its last layers, pooler and classifier become the beginning of each head.

    Args:
        stock: with more than `layers` layers, of one of BODIES.
        layers: number of layers of each head.

    Example:
        >>> student = with_many_heads(stock, heads=3, layers=1)
        >>> torch.allclose(student(ids).logits.softmax(-1), stock(ids).logits.softmax(-1), atol=1e-6)
        True
    """
    student = ManyHeadsForSequenceClassification(ManyHeadsConfig.of(stock.config, heads, layers))
    prefix, own = f"{stock.base_model_prefix}.", stock.state_dict()
    body = stock.config.num_hidden_layers - layers
    weights = {}
    for name in student.state_dict():
        part, _, rest = name.partition(".")
        if part == "body":
            weights[name] = own[prefix + rest]
            continue
        rest = rest.partition(".")[2]
        for layer in range(layers):
            rest = rest.replace(f"encoder.layer.{layer}.", f"encoder.layer.#{layer + body}.")
        weights[name] = own[rest.replace("#", "")]
    student.load_state_dict(weights)
    return student.train(stock.training)


register(ManyHeadsForSequenceClassification)
AutoModel.register(ManyHeadsConfig, ManyHeadsForSequenceClassification)  # by which its operations are counted
