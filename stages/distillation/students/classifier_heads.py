"""Classifiers over an encoder that is no stock model: what transformers saves and loads as its own.

Axes in names: B rows, L positions, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput


class _Classifier(PreTrainedModel):
    """An encoder, dropout and a linear head.

    Attributes:
        encoder_class: made from the config; called as encoder(input_ids, attention_mask), gives the hidden states, the
            embedding output first and what the head reads last. It has `embeddings`, and the `width` of the last.
    """

    encoder_class: Any
    _supports_sdpa = True  # it has no attention; all models are made with the capturing attention function

    def __init__(self, config):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(self.encoder.width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.encoder.embeddings


class ForSequenceClassification(_Classifier):
    """Answers for a whole row, from the largest value of each feature over its real tokens."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        hidden = self.encoder(input_ids, attention_mask)
        padding_BL1 = attention_mask[..., None] == 0
        pooled_BW = hidden[-1].masked_fill(padding_BL1, torch.finfo(hidden[-1].dtype).min).amax(1)
        logits = self.classifier(self.dropout(pooled_BW))
        return SequenceClassifierOutput(logits=logits, hidden_states=hidden if output_hidden_states else None)


class ForTokenClassification(_Classifier):
    """Answers for each token, from its own features."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> TokenClassifierOutput:
        hidden = self.encoder(input_ids, attention_mask)
        logits = self.classifier(self.dropout(hidden[-1]))
        return TokenClassifierOutput(logits=logits, hidden_states=hidden if output_hidden_states else None)
