"""CMOW/CBOW hybrid: a token is a vector and two matrices; a text is their sum and products (arXiv 2109.08449).

CBOW adds up vectors, which does not see the order of tokens. CMOW (Mai et al., arXiv 1902.06423) multiplies matrices,
which does. Pairs of texts are read as one text, or each for itself and compared (DiffCat).

Axes in names: B rows, L positions, D rows and columns of a matrix, W = D x D numbers of a token in a table, C numbers of
a text's code.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput, SequenceClassifierOutput

from checkpoints.errors import UserError
from stages.distillation.students.registry import register

PARTS = ("vectors", "forwards", "backwards")
PAIRS = ("joint", "diffcat")


class CMOWConfig(PretrainedConfig):
    """Sizes: `width`, the numbers of a token in each table, a square; `feed_forward` of the classifier's hidden layer.

    Attributes:
        parts: the tables of a token: `vectors`, which are added up, and matrices that are multiplied `forwards` and
            `backwards`. All three are the bidirectional hybrid; `vectors` alone is CBOW.
        pairs: `joint`, the row is one text; or `diffcat`, the codes a and b of the two texts are read as [a, b, |a - b|].
            Text B is where the token types are 1.
    """

    model_type = "cmow"
    sizes = {"width": "hidden_size", "feed_forward": "intermediate_size"}
    settings = ("parts", "pairs")

    vocab_size: int = 30522
    hidden_size: int = 400
    intermediate_size: int = 1000
    parts: list[str] | tuple[str, ...] = PARTS
    pairs: str = "joint"
    hidden_dropout_prob: float = 0.1
    initializer_range: float = 0.01
    pad_token_id: int | None = 0

    def check(self) -> None:
        """Raises UserError for sizes or settings that cannot be."""
        if math.isqrt(self.hidden_size) ** 2 != self.hidden_size:
            raise UserError(
                f"{self.hidden_size} must be a square for a cmow, such as 400: a token is a matrix",
                argument="width",
            )
        given = self.parts if isinstance(self.parts, (list, tuple)) else ()
        if not given or any(part not in PARTS for part in given) or len(set(given)) < len(given):
            raise UserError(
                f"{self.parts!r} must be a list of some of {', '.join(PARTS)}", argument="settings.parts"
            )
        if self.pairs not in PAIRS:
            raise UserError(f"{self.pairs!r} must be one of {', '.join(PAIRS)}", argument="settings.pairs")

    @property
    def reads_token_types(self) -> bool:
        """Whether it tells the two texts of a row apart."""
        return self.pairs == "diffcat"

    def forward_flops(self, tokens: float) -> float:
        """The product of two matrices for each token and direction, the sum of the vectors, and the classifier's hidden layer.

        A pair read apart goes over all positions for each text.
        """
        side = math.isqrt(self.hidden_size)
        each = {"vectors": self.hidden_size, "forwards": 2 * side**3, "backwards": 2 * side**3}
        encoder = sum(each[part] for part in self.parts) * tokens * (2 if self.pairs == "diffcat" else 1)
        return encoder + 2 * self.code_width * self.intermediate_size

    @property
    def code_width(self) -> int:
        """Numbers that the classifier reads of a row."""
        return len(self.parts) * self.hidden_size * (3 if self.pairs == "diffcat" else 1)


class _CMOW(PreTrainedModel):
    config_class = CMOWConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True  # it has no attention; all models are made with the capturing attention function


class CMOWModel(_CMOW):
    """The encoder: the code of a text, and of each token the codes of what is before and behind it.

    A table holds matrices less the identity. So one that is left out, as padding is, changes no product, and dropout and
    weight decay draw towards the identity.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.side = math.isqrt(config.hidden_size)
        self.tables = nn.ModuleDict(
            {part: nn.Embedding(config.vocab_size, config.hidden_size) for part in config.parts}
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.tables[self.config.parts[0]]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        """(B, L, .) of each token: sums and products up to it from the front, then from the end (both with itself)."""
        codes = []
        with torch.autocast(input_ids.device.type, enabled=False):
            for part, x in self._embedded(input_ids, attention_mask):
                if part == "vectors":
                    codes += [x.cumsum(1), x.flip(1).cumsum(1).flip(1)]
                elif part == "forwards":
                    codes.append(running_products(x).flatten(2))
                else:
                    codes.append(running_products(x.flip(1)).flip(1).flatten(2))
        return BaseModelOutput(last_hidden_state=torch.cat(codes, -1))

    def code(self, input_ids: Tensor, mask_BL: Tensor) -> Tensor:
        """(B, C) of the tokens whose mask is 1: the sum of vectors, and the products from the front and from the end."""
        multiply = torch.jit.script(product_in_order) if torch.jit.is_tracing() else product
        codes = []
        with torch.autocast(input_ids.device.type, enabled=False):  # rounding to bf16 would add up
            for part, x in self._embedded(input_ids, mask_BL):
                if part == "vectors":
                    codes.append(x.sum(1))
                else:
                    codes.append(multiply(x if part == "forwards" else x.flip(1)).flatten(1))
        return torch.cat(codes, -1)

    def _embedded(self, input_ids: Tensor, mask_BL: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Of each part the vectors (B, L, W) or matrices (B, L, D, D); 0 or the identity where the mask is 0."""
        for part, table in self.tables.items():
            x_BLW = self.dropout(table(input_ids)) * mask_BL[..., None]
            if part == "vectors":
                yield part, x_BLW
            else:
                identity_DD = torch.eye(self.side, device=x_BLW.device)
                yield part, x_BLW.view(*x_BLW.shape[:2], self.side, self.side) + identity_DD


def product(x_BLDD: Tensor) -> Tensor:
    """The product X_1 X_2 ... X_L (B, D, D) of matrices, pairwise: log2(L) batched products in sequence.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [0.0, 1.0]], [[1.0, 0.0], [3.0, 1.0]]]])
        >>> product(x)
        tensor([[[7., 2.],
                 [3., 1.]]])
    """
    while x_BLDD.shape[1] > 1:
        even = x_BLDD.shape[1] // 2 * 2
        x_BLDD = torch.cat([x_BLDD[:, 0:even:2] @ x_BLDD[:, 1:even:2], x_BLDD[:, even:]], 1)
    return x_BLDD[:, 0]


def product_in_order(x_BLDD: Tensor) -> Tensor:
    """`product`, from the first to the last: a loop that can be exported to ONNX for any length."""
    found = x_BLDD[:, 0]
    for position in range(1, x_BLDD.shape[1]):
        found = found @ x_BLDD[:, position]
    return found


def running_products(x_BLDD: Tensor) -> Tensor:
    """(B, L, D, D) the products X_1, X_1 X_2, ..., X_1 ... X_L."""
    products = [x_BLDD[:, 0]]
    for position in range(1, x_BLDD.shape[1]):
        products.append(products[-1] @ x_BLDD[:, position])
    return torch.stack(products, 1)


class CMOWForMaskedLM(_CMOW):
    """A linear layer reads the vocabulary from the codes of a token."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = CMOWModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        tables = len(config.parts) + ("vectors" in config.parts)  # which are added up from both ends
        self.vocabulary = nn.Linear(tables * config.hidden_size, config.vocab_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **states: Tensor
    ) -> MaskedLMOutput:
        """The vocabulary's scores; `states` are for what may stand in the encoder's place (`head_alone`)."""
        codes = self.encoder(input_ids, attention_mask, **states).last_hidden_state
        return MaskedLMOutput(logits=self.vocabulary(self.dropout(codes)))


class CMOWForSequenceClassification(_CMOW):
    """A linear layer, ReLU, LayerNorm and a linear layer, which read a row's code (`CMOWModel.code`).

    With pairs="diffcat" they read [a, b, |a - b|] of the codes of its two texts.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        self.encoder = CMOWModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.hidden = nn.Linear(config.code_width, config.intermediate_size)
        self.norm = nn.LayerNorm(config.intermediate_size)
        self.classifier = nn.Linear(config.intermediate_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> SequenceClassifierOutput:
        if self.config.pairs == "diffcat":
            of_b_BL = attention_mask * (0 if token_type_ids is None else token_type_ids)
            a_BC = self.encoder.code(input_ids, attention_mask - of_b_BL)
            b_BC = self.encoder.code(input_ids, of_b_BL)
            code = torch.cat([a_BC, b_BC, (a_BC - b_BC).abs()], -1)
        else:
            code = self.encoder.code(input_ids, attention_mask)
        hidden = self.norm(functional.relu(self.hidden(self.dropout(code))))
        return SequenceClassifierOutput(logits=self.classifier(hidden))


register(CMOWModel, CMOWForMaskedLM, CMOWForSequenceClassification)
