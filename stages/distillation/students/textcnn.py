"""TextCNN: embeddings, and one convolution over 3, 4 and 5 tokens (Kim, arXiv 1408.5882)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from stages.distillation.students.classifier_heads import ForSequenceClassification, ForTokenClassification
from stages.distillation.students.registry import register

KERNELS = (3, 4, 5)
"""Tokens that a filter sees at once (section 3.1)."""


class TextCNNConfig(PretrainedConfig):
    """Sizes: `width` of the embeddings; `feed_forward`, the filters of each of the three kernels."""

    model_type = "textcnn"
    sizes = {"width": "hidden_size", "feed_forward": "filters"}

    vocab_size: int = 30522
    hidden_size: int = 128
    filters: int = 100
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Nothing is refused."""

    def forward_flops(self, tokens: float) -> float:
        """A product and a sum for each token under each filter."""
        return 2 * sum(KERNELS) * self.hidden_size * self.filters * tokens


class TextCNN(nn.Module):
    """The encoder: the embedding output (B, L, W), and the features around each token (B, L, 3 filters).

    Before the convolutions padding is zero, as beyond the ends.
    """

    def __init__(self, config: TextCNNConfig):
        super().__init__()
        self.width = len(KERNELS) * config.filters
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.convolutions = nn.ModuleList(nn.Conv1d(config.hidden_size, config.filters, k) for k in KERNELS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        embedded_BLW = self.embeddings(input_ids)
        x_BWL = (self.dropout(embedded_BLW) * attention_mask[..., None]).transpose(1, 2)
        features = [
            functional.relu(convolution(functional.pad(x_BWL, ((kernel - 1) // 2, kernel // 2))))
            for kernel, convolution in zip(KERNELS, self.convolutions, strict=True)
        ]
        return embedded_BLW, torch.cat(features, dim=1).transpose(1, 2)


class TextCNNForSequenceClassification(ForSequenceClassification):
    config_class, encoder_class = TextCNNConfig, TextCNN


class TextCNNForTokenClassification(ForTokenClassification):
    config_class, encoder_class = TextCNNConfig, TextCNN


register(TextCNNForSequenceClassification, TextCNNForTokenClassification)
