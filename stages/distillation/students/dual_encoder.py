"""Dual encoders: one encoder reads question and candidate each for itself, and the score compares their vectors.

With one vector a text the score is an inner product. With one a token it is late interaction, ColBERT's (Khattab and
Zaharia, arXiv 2004.12832): each token of the question takes its best match in the candidate, and the matches are added.

Axes in names: B rows, P candidates of a row, L tokens, K layers, T and U vectors of a question and of a candidate, W width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from stages.distillation.sentence_vectors import apart
from stages.distillation.students.many_heads import without_pooler
from stages.distillation.students.registry import register

BODIES = ("bert", "electra")
"""Types of encoders whose tokenizers mark the second text of a pair by token types, by which the pair is parted."""
VECTORS = ("cls", "mean", "tokens")


class DualEncoderConfig(PretrainedConfig):
    """The config of the stock encoder, and how texts are compared.

    Attributes:
        stock: settings of the encoder.
        vectors: what a text has: the vector of its first token (`cls`), the mean of its tokens' (`mean`), or one a token.
        scale: vectors are compared by this number times their cosine; None: by their inner product.
    """

    model_type = "dual_encoder"

    stock: dict[str, Any] | None = None
    vectors: str = "cls"
    scale: float | None = None
    vocab_size: int = 30522
    type_vocab_size: int = 2
    pad_token_id: int | None = 0


@dataclass
class DualEncoderOutput(SequenceClassifierOutput):
    """`logits` are (0, score); `queries` (B, K, T, W) and `passages` (B, K, U, W) or (B, P, K, U, W) of each layer.

    Vectors of padding are 0.
    """

    queries: Tensor | None = None
    passages: Tensor | None = None


class DualEncoderForSequenceClassification(PreTrainedModel):
    """Reads pairs as a cross-encoder does, so it is trained, evaluated and asked as one; but it parts them first."""

    config_class = DualEncoderConfig
    base_model_prefix = "encoder"
    _supports_sdpa = True

    def __init__(self, config: Any):
        super().__init__(config)
        settings = dict(config.stock or {})
        stock = AutoConfig.for_model(settings.pop("model_type"), **settings)
        how = config._attn_implementation
        self.encoder = without_pooler(AutoModel.from_config(stock, attn_implementation=how))
        self.post_init()

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, K, T, W) the vectors of texts (B, L) at each layer."""
        states = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True
        ).hidden_states
        x_BKTW, mask_B1L1 = torch.stack(states[1:], 1), attention_mask[:, None, :, None]
        if self.config.vectors == "cls":
            x_BKTW = x_BKTW[:, :, :1]
        elif self.config.vectors == "mean":
            x_BKTW = (x_BKTW * mask_B1L1).sum(2, keepdim=True) / mask_B1L1.sum(2, keepdim=True)
        else:
            x_BKTW = x_BKTW * mask_B1L1
        if self.config.scale is None:
            return x_BKTW
        return functional.normalize(x_BKTW, dim=-1) * self.config.scale**0.5

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> DualEncoderOutput:
        """Compare pairs (B, L), or questions with P candidates each, which are pairs with the same question (B, P, L).

        Without token types the rows are single texts, of which it gives the vectors.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if token_type_ids is None:
            return DualEncoderOutput(queries=self.encode(input_ids, mask))
        candidates = input_ids.shape[1] if input_ids.ndim == 3 else 1
        texts = apart(*(x.flatten(0, -2) for x in (input_ids, mask, token_type_ids)))
        of_questions, of_passages = zip(*(x.chunk(2) for x in texts), strict=True)
        queries = self.encode(*_trimmed(*(x[::candidates] for x in of_questions)))
        passages = self.encode(*_trimmed(*of_passages))
        last = queries[:, -1]
        if input_ids.ndim == 3:
            passages, last = passages.unflatten(0, input_ids.shape[:2]), last[:, None]
        with torch.autocast(last.device.type, enabled=False):
            products = last.float() @ passages[..., -1, :, :].float().transpose(-1, -2)
        scores = best_matches(products, passages[..., -1, :, :])
        logits = torch.stack([torch.zeros_like(scores), scores], -1)
        return DualEncoderOutput(logits=logits, queries=queries, passages=passages)


def best_matches(products: Tensor, passages: Tensor) -> Tensor:
    """The sum over a question's vectors of their greatest products with a candidate's: (..., T, U) to (...).

    Args:
        products: (..., T, U).
        passages: (..., U, W) vectors of the candidates, 0 of padding.

    Example:
        >>> candidate = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]])   # two tokens and padding
        >>> best_matches(torch.tensor([[-1.0, -3.0, 0.0], [2.0, 4.0, 0.0]]), candidate)
        tensor(3.)
    """
    padding = (passages == 0).all(-1)
    return products.masked_fill(padding[..., None, :], -torch.inf).amax(-1).sum(-1)


def _trimmed(ids_BL: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Without columns of padding alone, where asking for them costs no wait and is not written into a traced model."""
    if ids_BL.device.type != "cpu" or torch.jit.is_tracing():
        return ids_BL, mask_BL
    width = int(mask_BL.sum(1).max())
    return ids_BL[:, :width], mask_BL[:, :width]


def as_dual_encoder(encoder: Any, vectors: str, scale: float | None) -> DualEncoderForSequenceClassification:
    """Let a stock encoder compare texts; it is taken over, without its pooler.

    Args:
        encoder: one of BODIES.
    """
    given = encoder.config
    config = DualEncoderConfig(
        stock=given.to_dict(), vectors=vectors, scale=scale, vocab_size=given.vocab_size,
        type_vocab_size=given.type_vocab_size, pad_token_id=given.pad_token_id,
    )  # fmt: skip
    config._attn_implementation = given._attn_implementation
    model = DualEncoderForSequenceClassification(config)
    model.encoder.load_state_dict(without_pooler(encoder).state_dict())
    return model


register(DualEncoderForSequenceClassification)
AutoModel.register(
    DualEncoderConfig, DualEncoderForSequenceClassification
)  # by which its operations are counted
