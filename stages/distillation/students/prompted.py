"""Soft prompts: an encoder whose attention also reads learned keys and values (P-tuning v2, Liu et al., arXiv 2110.07602).

Each layer has a prompt of its own, as many keys and values as the prompt has tokens. They stand before those of the
row, in the attention function alone: no model code is copied, and positions and lengths of rows are as without them.

Axes in names: B rows, H heads, L positions, P tokens of the prompt, D width of a head, W width of the hidden states.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stages.distillation.compatibility import forward_flops
from stages.distillation.outputs import ATTENTION, inputs_of, numbered_modules
from stages.distillation.students.registry import register

PROMPTED = "sdpa_prompted"
"""The name of the attention function that reads the prompt before the row."""


class PromptedConfig(PretrainedConfig):
    """The encoder's own config, and the prompt's sizes.

    Attributes:
        encoder: the encoder's config, as a dict.
        prompt_tokens: number of prompt tokens in each layer (P).
        prompt_dropout: dropout of the prompt's keys and values, in training.
    """

    model_type = "prompted"

    encoder: dict[str, Any] | None = None
    prompt_tokens: int = 20
    prompt_dropout: float = 0.1
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.02

    @classmethod
    def of(cls, stock: Any, tokens: int, dropout: float) -> "PromptedConfig":
        """The config of a stock classifier whose encoder has a prompt of `tokens` tokens in each layer."""
        names = ("id2label", "label2id", "problem_type", "pad_token_id", "vocab_size")
        shared = {name: getattr(stock, name) for name in names}
        return cls(encoder=stock.to_dict(), prompt_tokens=tokens, prompt_dropout=dropout, **shared)

    def encoder_config(self) -> PretrainedConfig:
        """Return the encoder's config as its own class."""
        values = dict(self.encoder or {})
        return AutoConfig.for_model(values.pop("model_type", "bert"), **values)

    def forward_flops(self, tokens: float) -> float:
        """Count the encoder's operations on one row of `tokens`, and those of its attention to the prompt."""
        encoder = self.encoder_config()
        products = 4 * self.prompt_tokens * encoder.hidden_size * encoder.num_hidden_layers
        return forward_flops(encoder, tokens, tokens) + products * tokens


class Prompt(nn.Module):
    """The keys and values of all layers, one row of the table for each token of the prompt."""

    def __init__(self, config: PromptedConfig, encoder: PretrainedConfig):
        super().__init__()
        self.heads = getattr(encoder, "num_key_value_heads", None) or encoder.num_attention_heads
        self.width = getattr(encoder, "head_dim", None) or encoder.hidden_size // encoder.num_attention_heads
        self.layers, self.is_read = encoder.num_hidden_layers, True
        size = self.layers * 2 * self.heads * self.width
        self.table = nn.Embedding(config.prompt_tokens, size)
        self.dropout = nn.Dropout(config.prompt_dropout)

    def forward(self, layer: int, rows: int) -> tuple[Tensor, Tensor]:
        """Return the keys and the values of a layer, counted from 1, each (B, H, P, D)."""
        parts = self.table.weight.view(-1, self.layers, 2, self.heads, self.width)[:, layer - 1]
        keys_HPD, values_HPD = parts.permute(1, 2, 0, 3)
        return tuple(self.dropout(each.expand(rows, -1, -1, -1)) for each in (keys_HPD, values_HPD))


class PromptedForSequenceClassification(PreTrainedModel):
    """A prompted encoder, dropout and a linear head on its pooled output, or on its first token where it has none."""

    config_class = PromptedConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True  # all models are made with the capturing attention function, which PROMPTED calls

    def __init__(self, config: Any):
        super().__init__(config)
        encoder = config.encoder_config()
        self.encoder: Any = AutoModel.from_config(encoder, attn_implementation=PROMPTED)
        prompt = Prompt(config, encoder)
        for module, layer in numbered_modules(self.encoder):
            module.__dict__["_prompt"] = (prompt, layer)
        self.encoder.prompt = prompt  # part of the encoder: a head for another task leaves it as it is
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(encoder.hidden_size, config.num_labels)
        self.post_init()

    @classmethod
    def of(cls, model: PreTrainedModel, tokens: int, dropout: float) -> "PromptedForSequenceClassification":
        """Give the encoder of a classifier a prompt and a head, drawn from torch's generator.

        Args:
            model: with the labels of its task in its config.
            tokens: P, of the prompt.
        """
        prompted = cls(PromptedConfig.of(model.config, tokens, dropout))
        prompted.encoder.load_state_dict(model.base_model.state_dict(), strict=False)
        return prompted

    def set_attn_implementation(self, *_: Any, **__: Any) -> None:
        """Keep the encoder's attention function: no other reads the prompt."""

    @property
    def prompt(self) -> Prompt:
        return self.encoder.prompt

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.get_input_embeddings()

    @contextmanager
    def without_prompt(self) -> Iterator[None]:
        """In the block the encoder reads no prompt."""
        self.prompt.is_read = False
        try:
            yield
        finally:
            self.prompt.is_read = True

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> SequenceClassifierOutput:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        given = inputs_of(self.encoder, {name: value for name, value in inputs.items() if value is not None})
        # Torch's exporter gives a tensor.
        shows = {"output_hidden_states": True} if output_hidden_states else {}
        output = self.encoder(**given, **shows)
        pooled_BW = getattr(output, "pooler_output", None)
        if pooled_BW is None:
            pooled_BW = output.last_hidden_state[:, 0]
        logits_BC = self.classifier(self.dropout(pooled_BW))
        return SequenceClassifierOutput(logits=logits_BC, hidden_states=output.hidden_states)


def _prompted_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs):
    """The project's attention function over the prompt's keys and values, then the row's own."""
    prompt, layer = module.__dict__["_prompt"]
    if prompt.is_read:
        rows = query.shape[0]  # not len(), which torch's exporter takes for the same in all batches
        keys_BHPD, values_BHPD = prompt(layer, rows)
        key = torch.cat([keys_BHPD.to(key.dtype), key], 2)
        value = torch.cat([values_BHPD.to(value.dtype), value], 2)
        if mask is not None:
            mask = functional.pad(mask, (keys_BHPD.shape[2], 0), value=mask.dtype == torch.bool)
    return ALL_ATTENTION_FUNCTIONS[ATTENTION](module, query, key, value, mask, **kwargs)


AttentionInterface.register(PROMPTED, _prompted_attention)
AttentionMaskInterface.register(PROMPTED, AttentionMaskInterface()[ATTENTION])
register(PromptedForSequenceClassification)
