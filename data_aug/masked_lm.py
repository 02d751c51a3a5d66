"""Words that a masked language model proposes, for many masked words at once.

The input of TinyBERT's augmentation is `[CLS] masked sentence [SEP] original sentence [SEP]`, one masked word
a row. Rows of many sentences are batched by length, and only masked positions go through the vocabulary.

Axes: B rows, L tokens, N masked positions of a batch, H hidden width, V vocabulary.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from checkpoints.errors import UserError
from stages.distillation.packed_linear import pack

ENOUGH_TOKENS = 512  # a batch of so many tokens runs nearly as fast, for each token, as one of thousands
MOST_PADDING = 0.04


class Query(NamedTuple):
    """A word to find candidates for: `text[start:end]`, with the original sentence shown beside it."""

    text: str
    start: int
    end: int
    original: str


@dataclass
class _Pair:
    """`[CLS] text [SEP] original [SEP]` in tokens, with the single-piece words asked: position -> queries."""

    ids: list[int]
    segments: list[int]
    asked: dict[int, list[int]] = field(default_factory=dict)


class _Row(NamedTuple):
    """A row of a batch: a pair, and the positions masked in it."""

    pair: _Pair
    masks: tuple[int, ...]


class MaskedLM:
    """Candidates from any `AutoModelForMaskedLM` with a fast tokenizer.

    The exact mode (`masks_per_pass` 1, the default) masks one word a row, as published. The approximate mode
    masks several words of a sentence in one row, at least `min_distance` pieces apart; the original sentence
    beside it still shows them all.

    Args:
        model: put in eval mode, left where it is; it must keep its head apart from its `base_model`.
        tokenizer: the model's fast tokenizer (offsets are needed).
        dtype: of the encoder, which is copied where it is another; the head stays in the model's own, whose
            logits do not tie. See `stages.distillation.packed_linear.bf16_pays`.
        masks_per_pass: the most words masked in one row.
        min_distance: pieces between two masks of a row, at least.
        batch_tokens: the most tokens in a batch, padding included.

    Raises:
        UserError: the tokenizer is slow or has no mask, or the model has no head apart from its base.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype = torch.float32,
        masks_per_pass: int = 1,
        min_distance: int = 3,
        batch_tokens: int = 4096,
    ):
        if not tokenizer.is_fast:
            raise UserError(
                f"{type(tokenizer).__name__} gives no offsets; load the fast tokenizer of the model"
            )
        if tokenizer.mask_token_id is None:
            raise UserError(f"{type(tokenizer).__name__} has no mask token; augmentation needs a masked LM")
        if model.get_output_embeddings() is None or model.base_model is model:
            raise UserError(
                f"{type(model).__name__} has no masked-LM head; name a masked LM, or fit a head first"
            )
        for name, value in (("masks_per_pass", masks_per_pass), ("min_distance", min_distance)):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be 1 or more")
        self.tokenizer = tokenizer
        self.limit = _length_limit(model, tokenizer)
        self.exact = masks_per_pass == 1
        self._masks_per_pass, self._min_distance = masks_per_pass, min_distance
        self._batch_tokens = batch_tokens
        self._base, self._head = model.eval().base_model, head_alone(model)
        if self._base.dtype != dtype:
            self._base = copy.deepcopy(self._base).to(dtype)
            pack(self._base)
        self._takes_segments = getattr(model.config, "type_vocab_size", 0) > 1
        self._words, self._spaced = _vocabulary(tokenizer, model.config.vocab_size)

    def pair_lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of `[CLS] text [SEP] text [SEP]` for each text; more than `limit` cannot be read."""
        if not texts:
            return []
        extra = self.tokenizer.num_special_tokens_to_add(pair=True)
        pieces = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [2 * len(ids) + extra for ids in pieces]

    def candidates(self, queries: Sequence[Query], k: int = 15) -> list[list[str] | None]:
        """The words among the k best pieces for each query, the best first.

        Of the k best by logit, pieces that are no words are dropped: those that continue a word, punctuation,
        numbers, special tokens. Where pieces carry the space before them (RoBERTa), a candidate carries one
        exactly when the piece it replaces does, so it begins a word too. It may be the word itself, as
        published.

        Returns:
            For each query a list (possibly empty), or None where the word is not a single piece of the
            vocabulary that begins a word, or its sentence does not fit the model.
        """
        answers: list[list[str] | None] = [None] * len(queries)
        rows = [
            _Row(pair, masks)
            for pair in self._pairs(queries)
            for masks in split_masks(sorted(pair.asked), self._masks_per_pass, self._min_distance)
        ]
        rows.sort(
            key=lambda row: len(row.pair.ids), reverse=True
        )  # the largest first: memory runs out at once
        with torch.inference_mode():
            for batch in _batches(rows, self._batch_tokens):
                places = [(row.pair, mask) for row in batch for mask in row.masks]
                for (pair, mask), pieces in zip(places, self._best(batch, k), strict=True):
                    spaced = self._spaced[pair.ids[mask]]
                    words = [self._words[piece] for piece in pieces if self._spaced[piece] == spaced]
                    for query in pair.asked[mask]:
                        answers[query] = [word for word in words if word is not None]
        return answers

    def _pairs(self, queries: Sequence[Query]) -> list[_Pair]:
        """The distinct pairs in tokens, each with the queries that can be answered on it."""
        if not queries:
            return []
        by_texts: dict[tuple[str, str], list[int]] = {}
        for i, query in enumerate(queries):
            by_texts.setdefault((query.text, query.original), []).append(i)
        texts, originals = map(list, zip(*by_texts, strict=True))
        encoded = self.tokenizer(
            texts, originals, return_offsets_mapping=True, return_token_type_ids=True, verbose=False
        )
        pairs: dict[
            tuple[int, ...], _Pair
        ] = {}  # by tokens: texts that differ in casing alone may share them
        for i, members in enumerate(by_texts.values()):
            ids = encoded["input_ids"][i]
            if len(ids) > self.limit:
                continue
            pair = pairs.setdefault(tuple(ids), _Pair(ids, encoded["token_type_ids"][i]))
            places = _single_pieces(texts[i], encoded["offset_mapping"][i], encoded.sequence_ids(i))
            for member in members:
                place = places.get((queries[member].start, queries[member].end))
                if place is not None and self._words[ids[place]] is not None:
                    pair.asked.setdefault(place, []).append(member)
        return list(pairs.values())

    def _best(self, batch: Sequence[_Row], k: int) -> list[list[int]]:
        """Ids of the k best pieces at every mask of the batch, row by row; the longest row comes first."""
        shape = (len(batch), len(batch[0].pair.ids))
        ids_BL = torch.full(shape, self.tokenizer.pad_token_id or 0)
        mask_BL, segments_BL = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for i, (pair, _) in enumerate(batch):
            length = len(pair.ids)
            ids_BL[i, :length] = torch.tensor(pair.ids)
            mask_BL[i, :length] = 1
            segments_BL[i, :length] = torch.tensor(pair.segments)
        row_N = torch.tensor([i for i, row in enumerate(batch) for _ in row.masks])
        place_N = torch.tensor([mask for row in batch for mask in row.masks])
        ids_BL[row_N, place_N] = self.tokenizer.mask_token_id
        device = self._base.device
        inputs = {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}
        if self._takes_segments:
            inputs["token_type_ids"] = segments_BL.to(device)
        logits_NV = self.logits(inputs, row_N.to(device), place_N.to(device))
        return logits_NV.topk(min(k, logits_NV.shape[1])).indices.tolist()

    def logits(
        self, inputs: dict[str, torch.Tensor], row_N: torch.Tensor, place_N: torch.Tensor
    ) -> torch.Tensor:
        """The full model's logits at the given (row, position) places only, (N, V)."""

        def gather(module: nn.Module, args: tuple, output: Sequence) -> tuple:
            return (output[0][row_N, place_N][None], *output[1:])

        with _hooked(_last_mixing(self._base), gather):
            states_1NH = self._base(**inputs)[0]
        return self._head(inputs_embeds=states_1NH.to(self._head.dtype)).logits[0]


def split_masks(places: Sequence[int], most: int, distance: int) -> list[tuple[int, ...]]:
    """Sorted places in few passes: at most `most` in one, neighbours in it at least `distance` apart."""
    passes: list[list[int]] = []
    for place in places:
        for masks in passes:
            if len(masks) < most and place - masks[-1] >= distance:
                masks.append(place)
                break
        else:
            passes.append([place])
    return [tuple(masks) for masks in passes]


class _States(nn.Module):
    """Stands where the encoder was, and hands on the states it is given."""

    def forward(self, *args: object, inputs_embeds: torch.Tensor, **kwargs: object) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)


def head_alone(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its encoder, weights shared: its `inputs_embeds` are the encoder's last states."""
    head = copy.copy(model)
    head._modules = {**model._modules, model.base_model_prefix: _States()}
    return head


def _last_mixing(base: nn.Module) -> nn.Module:
    """The last module in which positions see each other; what follows may run at the masks alone.

    In the BERT family that is the last layer's attention, and the feed-forward after it (a twentieth of the
    work of 12 layers) is saved. For others it is the whole encoder.
    """
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    if layers and hasattr(layers[-1], "feed_forward_chunk"):
        return layers[-1].attention
    return base


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _length_limit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens the model reads: its position embeddings, less those that RoBERTa's kind never uses."""
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return tokenizer.model_max_length


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str | None], list[bool]]:
    """For each id below `size` or known: the word it begins or None, and whether it carries a space."""
    size = max(size, *(i + 1 for i in tokenizer.get_vocab().values()))
    words: list[str | None] = [None] * size
    spaced = [False] * size
    special = set(tokenizer.all_special_ids)
    for piece, i in tokenizer.get_vocab().items():
        spaced[i] = piece.startswith(("Ġ", "▁"))
        text = tokenizer.convert_tokens_to_string(
            [piece]
        ).strip()  # "##ing" keeps its marks, so it is no word
        if text.isalpha() and i not in special:
            words[i] = text
    return words, spaced


def _single_pieces(
    text: str, offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> dict[tuple[int, int], int | None]:
    """Span in the first sentence -> position of the one piece that covers it; None where several do."""
    places: dict[tuple[int, int], int | None] = {}
    for place, ((start, end), sequence) in enumerate(zip(offsets, sequences, strict=True)):
        if sequence == 0:
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space
            places[start, end] = None if (start, end) in places else place
    return places


def _batches(rows: Sequence[_Row], most_tokens: int) -> Iterator[list[_Row]]:
    """Consecutive rows, the longest first: one at least, and at most `most_tokens` when padded.

    From `ENOUGH_TOKENS` on, it ends where the next row would make more than `MOST_PADDING` of it padding.
    """
    batch: list[_Row] = []
    tokens = 0
    for row in rows:
        length = len(row.pair.ids)
        padded = (len(batch) + 1) * len(batch[0].pair.ids) if batch else 0
        wasteful = tokens >= ENOUGH_TOKENS and tokens + length < (1 - MOST_PADDING) * padded
        if padded > most_tokens or wasteful:
            yield batch
            batch, tokens = [], 0
        batch.append(row)
        tokens += length
    if batch:
        yield batch
