"""Makes rows of tokens from documents and from the rows of a task, without files: arrays in, arrays out.

A `RowMaker` can be pickled and needs no transformers, so that other processes make rows too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from checkpoints.errors import UserError
from stages.tasks.types import CONTINUED, IGNORE_INDEX, Split
from stages.tasks.windows import windows

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 1000  # rows of a task tokenized at once
CHUNK_CHARACTERS = 1_000_000  # characters of a corpus tokenized at once
MIN_TOKENS = 16  # a shorter document is not split in two, and a shorter tail of a document is dropped


@dataclass(frozen=True)
class Segments:
    """The token types that a tokenizer gives, whatever the texts of a row are.

    Attributes:
        before, between, after: the number of special tokens before text A, between the texts, and at the end.
        single: types of the special tokens before A, of A as a whole, of the special tokens at the end.
        pair: types of the special tokens before A, of A, of those between, of B, of those at the end.
    """

    before: int
    between: int
    after: int
    single: list[int]
    pair: list[int]

    def types(self, lengths: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the types of all tokens of some rows, one row after the other.

        Args:
            lengths: (B,) tokens of each row.
            second: (B,) where in its row text B starts, 0 without one.
        """
        pair, a, b = second > 0, self.before, self.before + self.between + 1
        runs = np.ones((len(lengths), len(self.pair)), np.int64)
        runs[:, a] = np.where(pair, second - self.between, lengths - self.after) - self.before
        runs[:, a + 1 : b] = pair[:, None]
        runs[:, b] = np.where(pair, lengths - self.after - second, 0)
        single = self.single[: a + 1] + [0] * (b - a) + self.single[a + 1 :]
        return np.repeat(np.where(pair[:, None], self.pair, single).ravel(), runs.ravel())


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts around texts: BERT's [CLS] A [SEP] B [SEP], RoBERTa's <s> A </s> </s> B </s>.

    Attributes:
        before, between, after: special tokens.
        segments: None where the tokenizer gives no token_type_ids.
    """

    before: list[int]
    between: list[int]
    after: list[int]
    segments: Segments | None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Frame:
        """Take it from the encodings of a text and of a pair.

        Raises:
            UserError: the tokenizer puts other special tokens around a text than around a pair.
        """
        counted = (
            (text, len(tokenizer.encode(text, add_special_tokens=False))) for text in _texts(tokenizer)
        )
        text, n = next(((text, n) for text, n in counted if n), ("", 0))
        if not n:
            raise UserError("the tokenizer makes no token of any text; give the model's own")
        single, pair = tokenizer([text]).encodings[0], tokenizer([text], [text]).encodings[0]
        first, second = pair.sequence_ids.index(0), pair.sequence_ids.index(1)
        before, between, after = pair.ids[:first], pair.ids[first + n : second], pair.ids[second + n :]
        if single.ids != [*before, *pair.ids[first : first + n], *after]:
            raise UserError(
                f"the tokenizer writes a text as {single.tokens}, but a pair as {pair.tokens}; give one that puts the "
                "same special tokens at the ends of both"
            )
        segments = None
        if "token_type_ids" in tokenizer.model_input_names:
            one, two = single.type_ids, pair.type_ids
            of_pair = two[: first + 1] + two[first + n : second + 1] + two[second + n :]
            sizes = len(before), len(between), len(after)
            segments = Segments(*sizes, one[: first + 1] + one[first + n :], of_pair)
        return cls(before, between, after, segments)

    @property
    def width(self) -> int:
        """The number of special tokens in a row of two segments."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True)
class Block:
    """Some consecutive rows.

    Attributes:
        tokens: the tokens of all rows, one after the other, special tokens included.
        second: where in its row segment B starts, 0 without one.
        labels: the labels of the rows, or of all tokens if words have labels; None for a corpus.
        words: whether words have the labels.
        truncated: how many of the rows were truncated.
        begins: which windows are the first of their text or question; None for whole texts.
        places: (T, 2) start and end in the context of what may be answered, window after window, in characters; None where
            no questions are asked.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    second: np.ndarray
    labels: np.ndarray | None = None
    words: bool = False
    truncated: int = 0
    begins: np.ndarray | None = None
    places: np.ndarray | None = None

    def until(self, row: int) -> Block:
        """The block's rows before number `row`. For a corpus alone: labels, windows and places are not cut."""
        tokens = int(self.lengths[:row].sum())
        return replace(
            self, tokens=self.tokens[:tokens], lengths=self.lengths[:row], second=self.second[:row]
        )


@dataclass(frozen=True)
class RowMaker:
    """Makes rows of at most `max_length` tokens, special tokens included.

    Attributes:
        tokenizer: as JSON.
        frame: the special tokens of a row.
        truncation_side, padding_side: those of the tokenizer.
        vocabulary, pad, unknown, unknown_token, special: the tokenizer's size and token ids; `special` without `unknown`.
        windows: whether longer texts are cut into windows, as contexts of questions always are; else truncated.
        one_segment: whether rows of a corpus are not cut in two.
    """

    tokenizer: str
    frame: Frame
    max_length: int
    truncation_side: str
    padding_side: str
    vocabulary: int
    pad: int
    unknown: int | None
    unknown_token: str | None
    special: list[int]
    windows: bool = False
    one_segment: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, max_length: int, windows: bool = False) -> RowMaker:
        """Make one for a fast tokenizer.

        Raises:
            UserError: the length has no room for text.
        """
        frame = Frame.of(tokenizer)
        if max_length < frame.width + 2:
            raise UserError(
                f"{max_length} tokens have no room for two segments; give at least {frame.width + 2}",
                argument="max_length",
            )
        unknown = tokenizer.unk_token_id
        special = [token for token in tokenizer.all_special_ids if token != unknown]
        return cls(
            tokenizer.backend_tokenizer.to_str(), frame, max_length, tokenizer.truncation_side,
            tokenizer.padding_side, len(tokenizer), tokenizer.pad_token_id or 0, unknown, tokenizer.unk_token, special,
            windows,
        )  # fmt: skip

    @property
    def settings(self) -> dict[str, Any]:
        """What decides rows and is not in the tokenizer's JSON: part of a cache's key."""
        own = {name: getattr(self, name) for name in ("truncation_side", "padding_side", "pad", "windows")}
        return own | {"segments": self.frame.segments and asdict(self.frame.segments)}

    @property
    def dtype(self) -> str:
        """The type in which tokens are stored."""
        return "uint16" if self.vocabulary <= np.iinfo(np.uint16).max + 1 else "uint32"

    def blocks(
        self, content: Iterable[str] | Iterable[Split], first_row: int = 0, limit: int | None = None
    ) -> Iterator[Block]:
        """Yield the rows of documents (`corpus_blocks`), or of parts of a task (`task_blocks`)."""
        items = iter(content)
        if (first := next(items, None)) is not None:
            rest: Any = chain([first], items)
            task = isinstance(first, Split)
            yield from self.task_blocks(rest) if task else self.corpus_blocks(rest, first_row, limit)

    def corpus_blocks(
        self, documents: Iterable[str], first_row: int = 0, limit: int | None = None
    ) -> Iterator[Block]:
        """Yield rows of two segments of one document, so that the student learns segment B too.

        A document is cut into chunks that fill a row. A chunk is cut in two at the start of a word, between a quarter
        and three quarters of it, drawn by the number of the row. A document under 16 tokens becomes one segment; a tail
        under 16 tokens is dropped. Documents are never joined.

        Args:
            documents: read once, as a stream.
            first_row: number of the first row.
            limit: stop after the row that reaches this many tokens.
        """
        size = 0
        for chunk in _chunks(documents):
            tokens, lengths, begins_word = self._encode(chunk)
            block = self._corpus_block(tokens, lengths, begins_word, first_row)
            if limit is not None:
                block = block.until(int(np.searchsorted(np.cumsum(block.lengths), limit - size)) + 1)
            yield block
            size += len(block.tokens)
            first_row += len(block.lengths)
            if limit is not None and size >= limit:
                return

    def task_blocks(self, parts: Iterable[Split]) -> Iterator[Block]:
        """Yield the rows of a task. A pair that is too long loses tokens of its longer text, or gets windows."""
        for split in slices(parts):
            if split.asks or self.windows:
                yield self._windows(split)
                continue
            words = split.token_level
            texts: list = [text.split(" ") for text in split.text_a] if words else split.text_a
            if split.text_b is not None:
                texts = list(zip(texts, split.text_b, strict=True))
            # The fast one leaves out which word a token belongs to.
            encode = self._truncating.encode_batch if words else self._truncating.encode_batch_fast
            encodings = encode(texts, is_pretokenized=words)
            labels = np.array(split.labels) if not words else None
            if words:
                of_row = partial(_of_tokens, continued=split.continued)
                labels = np.concatenate(list(map(of_row, encodings, split.labels)))
            truncated = sum(bool(encoding.overflowing) for encoding in encodings)
            yield replace(self._block(encodings, split), labels=labels, words=words, truncated=truncated)

    def _windows(self, split: Split) -> Block:
        """The windows of texts, or of questions' contexts."""
        cut = windows(split, self.tokenizer, self.frame, self.max_length)
        block = self._block(cut.encodings, split)
        return replace(block, labels=cut.labels, words=split.asks, begins=cut.begins, places=cut.places)

    def _block(self, encodings: Sequence[Encoding], split: Split) -> Block:
        """The tokens of a task's rows, without labels."""
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        tokens = np.fromiter(chain.from_iterable(e.ids for e in encodings), self.dtype, lengths.sum())
        second = np.zeros(len(encodings), np.int32)
        if split.text_b is not None:
            lead = len(self.frame.before) + len(self.frame.between)
            second[:] = [lead + encoding.sequence_ids.count(0) for encoding in encodings]
        return Block(tokens, lengths, second)

    def _encode(self, documents: list[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The tokens of some documents, the number of each one's, and of each token whether it begins a word."""
        by_id = self._begins_word
        encode = self._backend.encode_batch if by_id is None else self._backend.encode_batch_fast
        encodings = encode(documents, add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        tokens = np.concatenate([np.array(encoding.ids, self.dtype) for encoding in encodings])
        if by_id is not None:
            return tokens, lengths, by_id[tokens]
        words = chain.from_iterable(encoding.word_ids for encoding in encodings)
        words_of = np.fromiter((-1 if word is None else word for word in words), np.int64, len(tokens))
        return tokens, lengths, np.diff(words_of, prepend=-2) != 0

    def _corpus_block(
        self, tokens: np.ndarray, lengths: np.ndarray, begins_word: np.ndarray, first_row: int
    ) -> Block:
        """Rows of whole documents. D: documents, R: rows, T: the tokens of all rows."""
        before, between, after = map(len, (self.frame.before, self.frame.between, self.frame.after))
        room = self.max_length - self.frame.width
        full_D, tail_D = np.divmod(lengths, room)
        if room < MIN_TOKENS:
            full_D = np.minimum(full_D, 1)
        rows_D = full_D + ((tail_D >= MIN_TOKENS) | ((full_D == 0) & (tail_D > 0)))
        start_R = room * _places(rows_D)
        begin_R = np.repeat(np.cumsum(lengths) - lengths, rows_D) + start_R
        text_R = np.minimum(room, np.repeat(lengths, rows_D) - start_R)
        two_R = (text_R >= MIN_TOKENS) & (not self.one_segment)

        low_R, high_R = text_R // 4, 3 * text_R // 4
        words_before = np.concatenate([[0], np.cumsum(begins_word)])  # so many words begin before a token
        first_R = words_before[begin_R + low_R]
        choices_R = words_before[np.minimum(begin_R + high_R + 1, len(tokens))] - first_R
        draw_R = _draws(first_row, len(text_R))
        word_R = first_R + (draw_R * choices_R).astype(np.int64)
        begin_of_word = np.append(np.flatnonzero(begins_word), 0)
        cut_R = np.where(
            choices_R > 0,
            begin_of_word[np.minimum(word_R, len(begin_of_word) - 1)] - begin_R,
            low_R + (draw_R * (high_R - low_R + 1)).astype(np.int64),
        )

        length_R = text_R + before + after + np.where(two_R, between, 0)
        place_R = np.cumsum(length_R) - length_R
        second_R = np.where(two_R, before + cut_R + between, 0)
        in_row_T = _places(text_R)
        in_second_T = np.repeat(two_R, text_R) & (in_row_T >= np.repeat(cut_R, text_R))
        rows = np.empty(length_R.sum(), tokens.dtype)
        places_T = np.repeat(place_R, text_R) + before + in_row_T + between * in_second_T
        rows[places_T] = tokens[np.repeat(begin_R, text_R) + in_row_T]
        ends_R = place_R + length_R
        for places_R, special in (
            (place_R, self.frame.before),
            ((place_R + before + cut_R)[two_R], self.frame.between),
            (ends_R - after, self.frame.after),
        ):
            for i, token in enumerate(special):
                rows[places_R + i] = token
        return Block(rows, length_R, second_R.astype(np.int32))

    @cached_property
    def _backend(self) -> Tokenizer:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(self.tokenizer)
        backend.no_truncation()
        backend.no_padding()
        return backend

    @cached_property
    def _truncating(self) -> Tokenizer:
        from tokenizers import Tokenizer

        backend = Tokenizer.from_str(self.tokenizer)
        backend.no_padding()
        backend.enable_truncation(self.max_length, strategy="longest_first", direction=self.truncation_side)
        return backend

    @cached_property
    def _begins_word(self) -> np.ndarray | None:
        """Of each token id whether it begins a word, where the id tells: WordPiece's "##" after BERT's split into words."""
        state: dict[str, Any] = json.loads(self.tokenizer)
        model, split = state["model"], state.get("pre_tokenizer") or {}
        if model.get("type") != "WordPiece" or split.get("type") != "BertPreTokenizer":
            return None
        added = {token["id"] for token in state.get("added_tokens", ())}
        prefix = model["continuing_subword_prefix"]
        begins = np.ones(max({*model["vocab"].values(), *added}) + 1, bool)
        inside = [i for token, i in model["vocab"].items() if token.startswith(prefix) and i not in added]
        begins[inside] = False
        return begins


def slices(parts: Iterable[Split]) -> Iterator[Split]:
    """Yield the rows of splits in splits of at most 1,000 rows."""
    for split in parts:
        for start in range(0, len(split), CHUNK_ROWS):
            yield replace(split.part(range(start, min(start + CHUNK_ROWS, len(split)))), answers=None)


def _texts(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts of which at least one is more than special tokens."""
    yield "a"
    yield from tokenizer.get_vocab()


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _places(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... length - 1 of each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _draws(first: int, count: int) -> np.ndarray:
    """A number in [0, 1) for each of consecutive row numbers."""
    generator = random.Random()

    def draw(number: int) -> float:
        generator.seed(number)
        return generator.random()

    return np.fromiter(map(draw, range(first, first + count)), np.float64, count)


def _of_tokens(encoding: Encoding, labels: list[int], continued: tuple[int, ...] | None) -> np.ndarray:
    """Return the label of each of a row's tokens.

    It is the word's at the word's first token; at its others IGNORE_INDEX, or CONTINUED + what `continued` has for it.
    """
    found, before = [], None
    for word in encoding.word_ids:
        label = IGNORE_INDEX if word is None else labels[word]
        if word is not None and word == before:
            further = continued[label] if continued is not None and label >= 0 else label
            label = IGNORE_INDEX if continued is None else CONTINUED + further
        found.append(label)
        before = word
    return np.array(found)
