"""Models that read a strip of symbols, frame by frame, for CTC: a convnet, and an oracle that also reads the string.

`strip_ctc` is both a student and an ordinary teacher. `strip_oracle` is a reconstruction of the Oracle Teacher (Yoon et
al., arXiv 2111.03664) from its abstract: the frames of an image are queries, the symbols of its string keys and values.

Axes in names: B rows, T frames, L symbols of the longest string, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput, ModelOutput

from checkpoints.errors import UserError
from stages.distillation.settings import number
from stages.distillation.students.registry import register
from stages.tasks.strip_rows import COLUMNS


class StripConfig(PretrainedConfig):
    """Sizes: `layers`, convolutions after the first; `width`, their channels.

    Attributes:
        image_size: height and width of a strip in pixels.
    """

    model_type = "strip_ctc"
    sizes = {"layers": "num_hidden_layers", "width": "hidden_size"}
    of_teacher = ("image_size", "num_channels")

    image_size: list[int] | tuple[int, ...] = (8, 64)
    num_channels: int = 3
    num_hidden_layers: int = 3
    hidden_size: int = 32
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.1

    @property
    def frames(self) -> int:
        """T."""
        return self.image_size[1] // COLUMNS

    def check(self) -> None:
        """Raises UserError where the teacher's images are no strips."""
        if isinstance(self.image_size, int):
            raise UserError(
                f"the teacher reads squares of {self.image_size} pixels, not strips; give packaged-strip-reader, or "
                "another with a height and a width",
                argument="teacher",
            )

    def forward_flops(self, images: float) -> float:
        """Convolutions of 3 x 3 at half the height, and the layer that joins a frame's rows."""
        width, rows = self.hidden_size, -(-self.image_size[0] // 2)
        first = 9 * self.num_channels * width
        return 2 * images * self.frames * rows * (first + (9 * self.num_hidden_layers + 1) * width**2)


class StripOracleConfig(StripConfig):
    """The sizes of the part that reads the image. The other parts have the same width.

    Attributes:
        mask: probability that a symbol of the string is hidden from the model in training, so that it cannot copy it.
    """

    model_type = "strip_oracle"
    settings = ("mask",)

    mask: float = 0.5

    def check(self) -> None:
        """Raises UserError for settings that cannot be."""
        number(self.mask, "from 0 to below 1", "settings.mask")

    def forward_flops(self, images: float) -> float:
        """Also the products of queries, of the attention over as many symbols as can be, and of the layer after it."""
        width, symbols = self.hidden_size, self.frames // 2
        return super().forward_flops(images) + 2 * images * self.frames * width * (3 * width + 2 * symbols)


class StripEncoder(nn.Module):
    """(B, C, H, S) pixels to (B, T, W) frames."""

    def __init__(self, config: StripConfig):
        super().__init__()
        width, (self.height, self.columns) = config.hidden_size, config.image_size
        layers = [nn.BatchNorm2d(config.num_channels), nn.Conv2d(config.num_channels, width, 3, COLUMNS, 1)]
        for _ in range(config.num_hidden_layers):
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1)]
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU())
        self.join = nn.Linear(width * -(-self.height // COLUMNS), width)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.shape[-2:] != (self.height, self.columns):
            given = " x ".join(map(str, pixel_values.shape[-2:]))
            raise UserError(
                f"the strips have {given} pixels, the model reads {self.height} x {self.columns}; give it the image "
                "processor of that size"
            )
        features_BWHT = self.layers(pixel_values)
        return self.dropout(self.join(features_BWHT.flatten(1, 2).transpose(1, 2)).relu())


class StripForCTC(PreTrainedModel):
    """A convnet that says of each frame which symbol it emits."""

    config_class = StripConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True  # it has no attention; all models are made with the capturing attention function

    def __init__(self, config):
        super().__init__(config)
        self.encoder = StripEncoder(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.classifier(self.encoder(pixel_values)))


@dataclass
class OracleOutput(ModelOutput):
    """What an oracle says of each frame: `logits` by image and string, `image_logits` by the image alone."""

    logits: Tensor | None = None
    image_logits: Tensor | None = None


class StripOracleForCTC(PreTrainedModel):
    """A reader of strips that is given the string, too.

    Each frame attends to the symbols, to which their neighbours are mixed in. Frames and symbols have learned positions.
    """

    config_class = StripOracleConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        width = config.hidden_size
        self.encoder = StripEncoder(config)
        # 0: a hidden symbol; the last: a string's begin.
        self.symbols = nn.Embedding(config.num_labels + 1, width)
        self.frame_places, self.symbol_places = (nn.Embedding(config.frames + 1, width) for _ in range(2))
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.fuse = nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, config.num_labels)
        self.image_classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, symbols: Tensor) -> OracleOutput:
        frames_BTW = self.encoder(pixel_values)
        memory_BLW, known_BL = self._memory(symbols)
        query_BTW = self.query(frames_BTW + self.frame_places.weight[: frames_BTW.shape[1]])
        found_BTW = functional.scaled_dot_product_attention(
            query_BTW, self.key(memory_BLW), self.value(memory_BLW), known_BL[:, None]
        )
        fused_BTW = self.fuse(torch.cat([frames_BTW, found_BTW], -1)).relu()
        return OracleOutput(self.classifier(fused_BTW), self.image_classifier(frames_BTW))

    def _memory(self, symbols_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The symbols' states, the string's begin first, and which of them are there."""
        if self.training and self.config.mask:
            hidden_BL = torch.rand(symbols_BL.shape, device=symbols_BL.device) < self.config.mask
            symbols_BL = symbols_BL.masked_fill(hidden_BL & (symbols_BL > 0), 0)
        ids_BL = functional.pad(symbols_BL, (1, 0), value=self.config.num_labels)
        known_BL = ids_BL >= 0
        x_BLW = self.symbols(ids_BL.clamp(min=0)) + self.symbol_places.weight[: ids_BL.shape[1]]
        x_BWL = (x_BLW * known_BL[..., None]).transpose(1, 2)
        return self.neighbours(x_BWL).transpose(1, 2).relu(), known_BL


register(StripForCTC, StripOracleForCTC)

STRIPS = {config.model_type: config for config in (StripConfig, StripOracleConfig)}
"""Kinds of students that read strips, and their configs."""
