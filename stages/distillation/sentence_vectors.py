"""Sentence vectors: what an encoder says of the tokens of a text, pooled. The two texts of a pair are read apart.

Axes in names: B rows, L positions, W width.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput

from checkpoints.errors import UserError

POOLINGS = ("mean", "cls")
POOLING = "sentence_pooling"
"""Where a model's config has its pooling, if it is not the mean."""
MODULES = "modules.json"
"""Where a directory of sentence-transformers names what a text goes through."""


def pooling_of(config: PretrainedConfig) -> str:
    """How a model's sentence vectors are pooled: `mean` of the tokens' last states, or `cls`, the first token's.

    Raises:
        UserError: in another way.
    """
    pooling = getattr(config, POOLING, "mean")
    if pooling not in POOLINGS:
        raise UserError(
            f"the sentence vectors of this {config.model_type} are pooled by {pooling!r} ({MODULES}, 1_Pooling/config.json), "
            f"which is not read; give a model with {' or '.join(POOLINGS)} alone"
        )
    return pooling


def pool(states_BLW: Tensor, mask_BL: Tensor, pooling: str) -> Tensor:
    """(B, W) sentence vectors in fp32, not normalised, of the last hidden states; padding does not count.

    Example:
        >>> states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
        >>> pool(states, torch.tensor([[1, 1, 0]]), "mean")
        tensor([[2., 3.]])
    """
    if pooling == "cls":
        first_B = mask_BL.argmax(1)  # padding may stand on the left
        return states_BLW.float().gather(1, first_B[:, None, None].expand(-1, 1, states_BLW.shape[-1]))[:, 0]
    mask_BL1 = mask_BL[..., None].float()
    return (states_BLW.float() * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)


def apart(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The first texts of pairs, then the second ones, each with the special tokens that it has alone.

    Args:
        input_ids, attention_mask: (B, L) of rows `[CLS] A [SEP] B [SEP]`.
        token_type_ids: (B, L), 1 at B and the token behind it.

    Returns:
        (2 B, K) tokens, and their mask; K is the longest text's length, or on a GPU, where asking for it would wait, L.
    """
    second_BL = attention_mask * token_type_ids
    begins = torch.cat([attention_mask.argmax(1), (second_BL.argmax(1) - 1).clamp(min=0)])
    lengths = torch.cat([(attention_mask - second_BL).sum(1), second_BL.sum(1) + 1])
    places = torch.arange(input_ids.shape[1], device=input_ids.device)
    if input_ids.device.type == "cpu":
        places = places[: lengths.max()]
    wanted = (begins[:, None] + places).clamp(max=input_ids.shape[1] - 1)
    ids = input_ids.repeat(2, 1).gather(1, wanted)
    leading_B1 = input_ids.gather(1, attention_mask.argmax(1)[:, None])  # A has it, and B alone would
    ids = torch.where(places == 0, leading_B1.repeat(2, 1), ids)
    return ids, (places < lengths[:, None]).to(attention_mask.dtype)


def check_reads_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the tokenizer marks which tokens are of a pair's first text and which of its second."""
    if "token_type_ids" in tokenizer.model_input_names:
        pair = tokenizer(["a"], ["b a"], return_tensors="pt", return_attention_mask=True)
        ids, mask = apart(pair["input_ids"], pair["attention_mask"], pair["token_type_ids"])
        if ids[1][mask[1] == 1].tolist() == tokenizer("b a")["input_ids"]:
            return
    raise UserError(
        "its tokenizer does not tell the two texts of a pair apart by token types, as sentence vectors need; give a "
        "teacher with BERT's tokenizer",
        argument="teacher",
    )


@dataclass
class SimilarityOutput(ModelOutput):
    """What a model says of pairs of texts: (B, 1) cosines, and the sentence vectors (B, W) of the first and second texts."""

    logits: Tensor | None = None
    first_BW: Tensor | None = None
    second_BW: Tensor | None = None


class _ForSentenceSimilarity:
    """An encoder that reads the two texts of each pair apart, pools its states and answers with the cosine.

    Its weights have the names that they have below any stock head, so that `AutoModel` loads the encoder.
    """

    base_model_prefix: str

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        self.pooling = pooling_of(config)
        setattr(self, self.base_model_prefix, _encoder_of(type(config))(config))
        self.post_init()  # type: ignore[attr-defined]

    def vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, W) sentence vectors of single texts."""
        encoder = getattr(self, self.base_model_prefix)
        states_BLW = encoder(input_ids=input_ids, attention_mask=attention_mask)[0]
        return pool(states_BLW, attention_mask, self.pooling)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> SimilarityOutput:
        """Cosines of the pairs, and the vectors."""
        vectors = self.vectors(*apart(input_ids, attention_mask, token_type_ids))
        first_BW, second_BW = vectors.view(2, -1, vectors.shape[-1])
        return SimilarityOutput(cosine(first_BW, second_BW)[:, None], first_BW, second_BW)


def cosine(first_BW: Tensor, second_BW: Tensor) -> Tensor:
    """(B,) cosines of vectors."""
    return (functional.normalize(first_BW, dim=-1) * functional.normalize(second_BW, dim=-1)).sum(-1)


class AutoModelForSentenceSimilarity:
    """Makes and loads any stock encoder as one that answers with cosines, with transformers' Auto interface."""

    _model_mapping = AutoModel._model_mapping

    @classmethod
    def from_config(cls, config: PretrainedConfig, **how: Any) -> PreTrainedModel:
        """With random weights."""
        kind: Any = type(config)
        return _class_of(kind)._from_config(config, **how)

    @classmethod
    def from_pretrained(cls, name: str, config: PretrainedConfig, **how: Any) -> Any:
        """With the weights of an encoder, whatever head it has."""
        kind: Any = type(config)
        return _class_of(kind).from_pretrained(name, config=config, **how)


def _encoder_of(config: Any) -> Any:
    return AutoModel._model_mapping[config]


@cache
def _class_of(config: Any) -> Any:
    encoder = _encoder_of(config)
    base = next(parent for parent in encoder.__mro__[1:] if issubclass(parent, PreTrainedModel))
    return type(
        f"{encoder.__name__.removesuffix('Model')}ForSentenceSimilarity", (_ForSentenceSimilarity, base), {}
    )
