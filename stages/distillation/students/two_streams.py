"""Two streams: an image encoder, a text encoder, and fusion layers in which each stream reads the other.

The shape of METER (Dou et al., arXiv 2111.02387), which gives a pair one logit. Students have fewer fusion layers.

Axes in names: B images, N candidates of each, P patches (the first stands for the image), G texts, L tokens, W width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from stages.distillation.students.registry import register


class TwoStreamsConfig(PretrainedConfig):
    """The config; `num_hidden_layers` are the fusion layers, the other sizes are those of all parts."""

    model_type = "two_streams"

    vocab_size: int = 20
    text_length: int = 7
    image_size: int = 16
    patch_size: int = 8
    channels: int = 16
    hidden_size: int = 32
    intermediate_size: int = 64
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    hidden_dropout_prob: float = 0.0
    initializer_range: float = 0.1
    pad_token_id: int | None = 0

    def forward_flops(self, pairs: float) -> float:
        """The products of the fusion layers: what cannot be computed once for each image and each text."""
        w, f = self.hidden_size, self.intermediate_size
        p, length = 1 + (self.image_size // self.patch_size) ** 2, self.text_length
        streams = ((p, length), (length, p))
        layer = sum(6 * n * w**2 + 2 * m * w**2 + 2 * n * w * f + 2 * n * (n + m) * w for n, m in streams)
        return 2 * layer * self.num_hidden_layers * pairs

    def shape(self) -> dict[str, Any]:
        """The arguments of torch's transformer layers."""
        # SiLU: of torch's two activations its encoder has a form that looks into linear layers, which a teacher packs.
        return {
            "d_model": self.hidden_size, "nhead": self.num_attention_heads, "dim_feedforward": self.intermediate_size,
            "dropout": self.hidden_dropout_prob, "activation": functional.silu, "batch_first": True,
        }  # fmt: skip


class Encoders(nn.Module):
    """Patches of images, and tokens of texts, each on its own."""

    def __init__(self, config: TwoStreamsConfig):
        super().__init__()
        width, patches = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.patches = nn.Sequential(
            nn.Conv2d(3, config.channels, 3, padding=1), nn.SiLU(),
            nn.Conv2d(config.channels, width, config.patch_size, stride=config.patch_size),
        )  # fmt: skip
        self.patch_positions = nn.Embedding(1 + patches, width)
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.token_positions = nn.Embedding(config.text_length, width)
        self.text = nn.TransformerEncoderLayer(**config.shape())

    def see(self, pixel_values: Tensor) -> Tensor:
        """Patch states (B, P, W) of images (B, 3, S, S)."""
        x_BPW = self.patches(pixel_values).flatten(2).transpose(1, 2)
        return functional.pad(x_BPW, (0, 0, 1, 0)) + self.patch_positions.weight

    def read(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token states (G, L, W) of texts (G, L)."""
        x_GLW = self.tokens(input_ids) + self.token_positions.weight[: input_ids.shape[1]]
        return self.text(x_GLW, src_key_padding_mask=attention_mask == 0)


class FusionLayer(nn.Module):
    """In each stream self-attention, attention to the other stream as it came in, and a feed-forward layer."""

    def __init__(self, config: TwoStreamsConfig):
        super().__init__()
        self.image, self.text = (nn.TransformerDecoderLayer(**config.shape()) for _ in range(2))

    def forward(self, image: Tensor, text: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        return (
            self.image(image, text, memory_key_padding_mask=padding),
            self.text(text, image, tgt_key_padding_mask=padding),
        )


class TwoStreamsModel(PreTrainedModel):
    """The encoders, the fusion layers and both poolers."""

    config_class = TwoStreamsConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoders = Encoders(config)
        self.layer = nn.ModuleList(FusionLayer(config) for _ in range(config.num_hidden_layers))
        self.pool_image, self.pool_text = (
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(2)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Tensor | None = None,
        candidates: Tensor | None = None,
        image_states: Tensor | None = None,
        text_states: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Fuse each image with its candidates.

        Args:
            pixel_values: (B, 3, S, S).
            input_ids: (G, L).
            attention_mask: (G, L).
            candidates: (B, N) text indices; None: the i-th image with the i-th text.
            image_states, text_states: the encoders' outputs, if already computed.

        Returns:
            `pooler_output` is (B * N, 2 * W).
        """
        image = self.encoders.see(pixel_values) if image_states is None else image_states
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text = self.encoders.read(input_ids, attention_mask) if text_states is None else text_states
        if candidates is None:
            candidates = torch.arange(len(image), device=image.device)[:, None]
        image = image.repeat_interleave(candidates.shape[1], 0)
        text, padding = text[candidates.flatten()], attention_mask[candidates.flatten()] == 0
        for layer in self.layer:
            image, text = layer(image, text, padding)
        pooled = torch.cat([self.pool_image(image[:, 0]), self.pool_text(text[:, 0])], -1).tanh()
        return BaseModelOutputWithPooling(last_hidden_state=text, pooler_output=pooled)


class TwoStreamsForZeroShotImageClassification(PreTrainedModel):
    """One logit for each image and candidate: whether the text is true of the image."""

    config_class = TwoStreamsConfig
    base_model_prefix = "model"
    _supports_sdpa = True

    def __init__(self, config: Any):
        super().__init__(config)
        self.model = TwoStreamsModel(config)
        self.head = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Tensor | None = None,
        candidates: Tensor | None = None,
        image_states: Tensor | None = None,
        text_states: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """As `TwoStreamsModel.forward`; `logits` are (B, N)."""
        fused = self.model(pixel_values, input_ids, attention_mask, candidates, image_states, text_states)
        images = 1 if candidates is None else candidates.shape[1]
        return SequenceClassifierOutput(logits=self.head(fused.pooler_output).view(-1, images))


register(TwoStreamsModel, TwoStreamsForZeroShotImageClassification)
