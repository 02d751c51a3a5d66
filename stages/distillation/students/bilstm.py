"""BiLSTM: embeddings, and layers that read each row from both ends (Graves and Schmidhuber 2005)."""

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.students.classifier_heads import ForSequenceClassification, ForTokenClassification
from stages.distillation.students.registry import register


class BiLSTMConfig(PretrainedConfig):
    """Sizes: `layers`, each of two directions; `width` of the embeddings and of every layer, half for each direction."""

    model_type = "bilstm"
    sizes = {"layers": "num_hidden_layers", "width": "hidden_size"}

    vocab_size: int = 30522
    hidden_size: int = 128
    num_hidden_layers: int = 1
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Raises UserError for sizes that cannot be."""
        if self.hidden_size % 2:
            raise UserError(
                f"{self.hidden_size} must be even for a bilstm: half for each direction", argument="width"
            )

    def forward_flops(self, tokens: float) -> float:
        """Two directions of four gates, each from a whole and a half width to a half."""
        return 12 * self.hidden_size**2 * self.num_hidden_layers * tokens


class BiLSTM(nn.Module):
    """The encoder: hidden states (B, L, W), the embedding output first.

    Each row is turned round within its own length, so that the second direction, too, begins at a real token. (Packed
    sequences give the same, and took two to four times as long to train on CPU.)
    """

    def __init__(self, config: BiLSTMConfig):
        super().__init__()
        self.width = width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        layers = range(config.num_hidden_layers)
        self.forwards = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in layers)
        self.backwards = nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        lengths_B1 = attention_mask.sum(1, keepdim=True)
        places_BL = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        turned_BL1 = torch.where(places_BL < lengths_B1, lengths_B1 - 1 - places_BL, places_BL)[..., None]

        def turned(x_BLW: Tensor) -> Tensor:
            return x_BLW.gather(1, turned_BL1.expand_as(x_BLW))

        hidden = [self.embeddings(input_ids)]
        for forwards, backwards in zip(self.forwards, self.backwards, strict=True):
            x_BLW = self.dropout(hidden[-1])
            hidden.append(torch.cat([forwards(x_BLW)[0], turned(backwards(turned(x_BLW))[0])], dim=-1))
        return tuple(hidden)


class BiLSTMForSequenceClassification(ForSequenceClassification):
    config_class, encoder_class = BiLSTMConfig, BiLSTM


class BiLSTMForTokenClassification(ForTokenClassification):
    config_class, encoder_class = BiLSTMConfig, BiLSTM


register(BiLSTMForSequenceClassification, BiLSTMForTokenClassification)
