"""Words that a masked language model predicts, for many masked words at once.

The model reads `[CLS] masked sentence [SEP] original sentence [SEP]`, one masked word a row (TinyBERT's published
code). Rows of many sentences are batched by length, and only masked positions go through the vocabulary's head.

Axes: B rows, L tokens, N masked positions of a batch, H hidden width, V vocabulary.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from checkpoints.errors import UserError
from data_aug.replaceable_words import is_word
from stages.distillation.compatibility import longest_row
from stages.distillation.model_surgery import head_alone, pack

ENOUGH_TOKENS = {"cpu": 512, "cuda": 16_384}
"""By device: the number of tokens from which a larger batch saves hardly any time per token. The CPU's was measured. The
GPU's is an estimate: it computes some 20,000 tokens of BERT-base while Python launches the kernels of a pass."""
MOST_TOKENS = {"cpu": 4_096, "cuda": 32_768}
"""By device: maximum number of tokens in a batch, padding included."""
MOST_LOGITS = 2**29
"""Maximum number of logits of a batch, one for each masked word and token of the vocabulary: 2 GB in fp32."""
MAX_PADDING = 0.04
"""The fraction of a batch of ENOUGH_TOKENS or more that may be padding."""


class Query(NamedTuple):
    """A word to find candidates for: `text[start:end]`, read beside the original sentence."""

    text: str
    start: int
    end: int
    original: str


@dataclass
class _Pair:
    """`[CLS] text [SEP] original [SEP]` in tokens, with the queries to answer at each position to be masked."""

    ids: list[int]
    segments: list[int]
    queries: dict[int, list[int]] = field(default_factory=dict)


class _Row(NamedTuple):
    """A row of a batch: a pair, and the positions that are masked in it."""

    pair: _Pair
    masks: tuple[int, ...]


class MaskedLM:
    """Proposes words with any `AutoModelForMaskedLM` that has a fast tokenizer.

    The exact mode (`masks_per_pass` 1, the default) masks one word a row, as published. The approximate mode masks
    several words of a sentence in one row, at least `min_distance` tokens apart. The original sentence beside it
    still shows them all.

    Args:
        model: set to eval mode, left on its device. Its masked-LM head must lie outside `model.base_model`.
        tokenizer: the model's fast tokenizer (offsets are needed).
        dtype: the encoder's, which is copied if it has another. The head keeps the model's own type: bf16 logits
            would tie. See `stages.distillation.device.has_fast_bf16`.
        masks_per_pass: maximum number of words masked in one row.
        min_distance: minimum distance in tokens between two masks of a row.
        batch_tokens: maximum number of tokens in a batch, padding included; None: `MOST_TOKENS` of the device.

    Raises:
        UserError: the tokenizer is slow or has no mask token, the model has no masked-LM head, or a number is below 1.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype = torch.float32,
        masks_per_pass: int = 1,
        min_distance: int = 3,
        batch_tokens: int | None = None,
    ):
        if not tokenizer.is_fast:
            raise UserError(f"{type(tokenizer).__name__} gives no offsets; load the model's fast tokenizer")
        if tokenizer.mask_token_id is None:
            raise UserError(f"{type(tokenizer).__name__} has no mask token; give a masked language model")
        causal = (
            type(model.config) not in MODEL_FOR_MASKED_LM_MAPPING
            and type(model.config) in MODEL_FOR_CAUSAL_LM_MAPPING
        )
        if model.get_output_embeddings() is None or model.base_model is model or causal:
            raise UserError(
                f"{type(model).__name__} has no masked-LM head; give a masked LM, or fit a head first"
            )
        for name, value in (("masks_per_pass", masks_per_pass), ("min_distance", min_distance)):
            if value < 1:
                raise UserError(f"{value} is below 1; give 1 or more", argument=name)
        self.tokenizer = tokenizer
        self.limit = longest_row(model) or tokenizer.model_max_length
        self.exact = masks_per_pass == 1
        self._masks_per_pass, self._min_distance = masks_per_pass, min_distance
        device = "cpu" if model.device.type == "cpu" else "cuda"
        self._enough, self._most = ENOUGH_TOKENS[device], batch_tokens or MOST_TOKENS[device]
        self._most_masks = MOST_LOGITS // model.config.vocab_size
        self._base, self._head = model.eval().base_model, head_alone(model)
        if self._base.dtype != dtype:
            self._base = copy.deepcopy(self._base).to(dtype)
            pack(self._base)
        gives = "token_type_ids" in tokenizer.model_input_names
        self._takes_segments = gives and getattr(model.config, "type_vocab_size", 0) > 1
        self._words, self._spaced = _vocabulary(tokenizer, model.config.vocab_size)

    def pair_lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens in `[CLS] text [SEP] text [SEP]` for each text; more than `limit` cannot be read."""
        if not texts:
            return []
        extra = self.tokenizer.num_special_tokens_to_add(pair=True)
        tokens = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [2 * len(ids) + extra for ids in tokens]

    def candidates(self, queries: Sequence[Query], k: int = 15) -> list[list[str] | None]:
        """Return the words among the k tokens with the highest logits for each query, the best first.

        Tokens that are not words are dropped: those that continue a word, punctuation, numbers, special tokens. Where
        tokens include the space before them (RoBERTa), a candidate has one exactly if the token it replaces has. The
        word itself may be among its candidates, as published.

        Returns:
            For each query a list, which may be empty; or None where the word is not a single token that begins a
            word, or where its sentence does not fit the model.
        """
        answers: list[list[str] | None] = [None] * len(queries)
        rows = [
            _Row(pair, masks)
            for pair in self._pairs(queries)
            for masks in split_masks(sorted(pair.queries), self._masks_per_pass, self._min_distance)
        ]
        rows.sort(key=lambda row: len(row.pair.ids), reverse=True)  # if memory runs out, then at once
        with torch.inference_mode():
            batches = list(_batches(rows, self._enough, self._most, self._most_masks))
            # Read only when all are under way: a GPU need not wait for Python.
            for batch, best_NK in zip(batches, [self._best(batch, k) for batch in batches], strict=True):
                masks = [(row.pair, mask) for row in batch for mask in row.masks]
                for (pair, mask), best in zip(masks, best_NK.tolist(), strict=True):
                    spaced = self._spaced[pair.ids[mask]]
                    words = [self._words[token] for token in best if self._spaced[token] == spaced]
                    for query in pair.queries[mask]:
                        answers[query] = [word for word in words if word is not None]
        return answers

    def _pairs(self, queries: Sequence[Query]) -> list[_Pair]:
        """Return the distinct tokenized pairs, each with the queries that can be answered on it."""
        if not queries:
            return []
        by_texts: dict[tuple[str, str], list[int]] = {}
        for i, query in enumerate(queries):
            by_texts.setdefault((query.text, query.original), []).append(i)
        texts, originals = map(list, zip(*by_texts, strict=True))
        encoded = self.tokenizer(
            texts, originals, return_offsets_mapping=True, return_token_type_ids=True, verbose=False
        )
        pairs: dict[tuple[int, ...], _Pair] = {}  # by tokens, which texts of another casing may share
        for i, members in enumerate(by_texts.values()):
            ids = encoded["input_ids"][i]
            if len(ids) > self.limit:
                continue
            pair = pairs.setdefault(tuple(ids), _Pair(ids, encoded["token_type_ids"][i]))
            positions = _single_tokens(texts[i], encoded["offset_mapping"][i], encoded.sequence_ids(i))
            for member in members:
                position = positions.get((queries[member].start, queries[member].end))
                if position is not None and self._words[ids[position]] is not None:
                    pair.queries.setdefault(position, []).append(member)
        return list(pairs.values())

    def _best(self, batch: Sequence[_Row], k: int) -> torch.Tensor:
        """Return the k best token ids (N, k) at every mask of the batch, row by row; its first row is its longest."""
        shape = (len(batch), len(batch[0].pair.ids))
        ids_BL = torch.full(shape, self.tokenizer.pad_token_id or 0)
        mask_BL, segments_BL = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        for i, (pair, _) in enumerate(batch):
            length = len(pair.ids)
            ids_BL[i, :length] = torch.tensor(pair.ids)
            mask_BL[i, :length] = 1
            segments_BL[i, :length] = torch.tensor(pair.segments)
        row_N = torch.tensor([i for i, row in enumerate(batch) for _ in row.masks])
        position_N = torch.tensor([mask for row in batch for mask in row.masks])
        ids_BL[row_N, position_N] = self.tokenizer.mask_token_id
        device = self._base.device
        inputs = {"input_ids": ids_BL.to(device), "attention_mask": mask_BL.to(device)}
        if self._takes_segments:
            inputs["token_type_ids"] = segments_BL.to(device)
        logits_NV = self.logits(inputs, row_N.to(device), position_N.to(device))
        return logits_NV.topk(min(k, logits_NV.shape[1])).indices

    def logits(
        self, inputs: dict[str, torch.Tensor], row_N: torch.Tensor, position_N: torch.Tensor
    ) -> torch.Tensor:
        """Return the model's logits (N, V) at N positions, each a row and a position in it."""

        def gather(module: nn.Module, args: tuple, output: Sequence) -> tuple:
            return (output[0][row_N, position_N][None], *output[1:])

        with _hooked(_last_mixing(self._base), gather):
            states_1NH = self._base(**inputs)[0]
        return self._head(inputs_embeds=states_1NH.to(self._head.dtype)).logits[0]


def split_masks(positions: Sequence[int], count: int, distance: int) -> list[tuple[int, ...]]:
    """Split sorted positions into few passes: each has at most `count`, neighbours at least `distance` apart."""
    passes: list[list[int]] = []
    for position in positions:
        for masks in passes:
            if len(masks) < count and position - masks[-1] >= distance:
                masks.append(position)
                break
        else:
            passes.append([position])
    return [tuple(masks) for masks in passes]


def _last_mixing(base: nn.Module) -> nn.Module:
    """Return the last module in which positions see each other; what follows it runs at the masks alone.

    In the BERT family that is the last layer's attention, which saves its feed-forward layer (a twentieth of the work
    of 12 layers). For other models it is the whole encoder.
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


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str | None], list[bool]]:
    """For each token id: the word that the token is, or None; and whether it includes the space before it."""
    size = max(size, *(i + 1 for i in tokenizer.get_vocab().values()))
    words: list[str | None] = [None] * size
    spaced = [False] * size
    special = set(tokenizer.all_special_ids)
    for token, i in tokenizer.get_vocab().items():
        spaced[i] = token.startswith(("Ġ", "▁"))
        # "##ing" keeps its marks: it is not a word.
        text = tokenizer.convert_tokens_to_string([token]).strip()
        if is_word(text) and i not in special:
            words[i] = text
    return words, spaced


def _single_tokens(
    text: str, offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> dict[tuple[int, int], int | None]:
    """Map a span in the first sentence to the position of the token that covers it; to None where several do."""
    positions: dict[tuple[int, int], int | None] = {}
    for position, ((start, end), sequence) in enumerate(zip(offsets, sequences, strict=True)):
        if sequence == 0:
            start += len(text[start:end]) - len(text[start:end].lstrip())  # some tokenizers count the space
            positions[start, end] = None if (start, end) in positions else position
    return positions


def _batches(rows: Sequence[_Row], enough: int, most: int, most_masks: int) -> Iterator[list[_Row]]:
    """Yield batches of consecutive rows, given the longest first: at most `most` tokens, padded, or a single row.

    A batch has at most `most_masks` masked words, too.

    A batch of `enough` tokens or more ends before the row that would make more than `MAX_PADDING` of it padding.
    """
    batch: list[_Row] = []
    tokens = masks = 0
    for row in rows:
        length = len(row.pair.ids)
        padded = (len(batch) + 1) * len(batch[0].pair.ids) if batch else 0
        wasteful = tokens >= enough and tokens + length < (1 - MAX_PADDING) * padded
        if batch and (padded > most or wasteful or masks + len(row.masks) > most_masks):
            yield batch
            batch, tokens, masks = [], 0, 0
        batch.append(row)
        tokens += length
        masks += len(row.masks)
    if batch:
        yield batch
