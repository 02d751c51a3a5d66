"""Variants of rows by TinyBERT's data augmentation (arXiv 1909.10351, Algorithm 1), and shards of them on disk.

A content word is a run of letters that is not a stop word. A word that is a single token of the masked language model
gets its candidates from that model, any other word from word vectors; either gets synonyms too, where they are given.
In each variant each content word is replaced with probability p by one of its candidates, drawn uniformly. Everything between content words (spaces, punctuation,
numbers, stop words) stays as written.

The variants of a row depend on the seed, the row's number and its texts alone. So any split of the rows over shards,
ranks and runs gives the same variants (up to how the model's arithmetic rounds near ties).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate, islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from checkpoints.errors import UserError
from data_aug.replaceable_words import ENGLISH, Span, Synonyms, content_words, is_word
from data_aug.word_prediction import MaskedLM, Query
from data_aug.word_vectors import WordVectors

Row = tuple[str, str | None]  # text_a and text_b; None where the task has single sentences
Given = Callable[[int], Mapping[tuple[int, int], list[str]]]
"""Of a row's number the candidates of words of its first text, by the numbers of first and last word."""
Label = int | float | str | tuple[float, ...] | None

SHARD_ROWS = 100


@dataclass(frozen=True)
class Settings:
    """How sentences are varied. By default p and variants are the paper's (whose code sets N for each task, 10 to 30).

    Attributes:
        p: probability that a content word is replaced.
        variants: variants drawn for each sentence (N); a pair draws them for each of its two.
        repredict: False finds a word's candidates once, in the original sentence (as the published code does). True
            finds them in the variant, after the replacements to the word's left (as the paper says).
        long_texts: a sentence that does not fit the model gets no variants ("keep") or raises an error ("refuse").
        stop_words: words that are never replaced, in lower case.

    Raises:
        UserError: a value is out of its limits.
    """

    p: float = 0.4
    variants: int = 20
    repredict: bool = False
    long_texts: Literal["keep", "refuse"] = "keep"
    stop_words: frozenset[str] = ENGLISH

    def __post_init__(self) -> None:
        if not isinstance(self.p, int | float | np.floating) or not 0 <= self.p <= 1:
            raise UserError(f"{self.p!r} is not a probability; give a number from 0 to 1", argument="p")
        if not isinstance(self.variants, int | np.integer) or self.variants < 0:
            raise UserError(
                f"{self.variants!r} is not a whole number of 0 or more; give one", argument="variants"
            )
        if self.long_texts not in ("refuse", "keep"):
            raise UserError(f"{self.long_texts!r} is unknown; choose refuse or keep", argument="long_texts")


@dataclass(frozen=True)
class Counts:
    """What augmentation did. Words are counted over all variants drawn, before duplicates are dropped.

    Attributes:
        sentences: sentences read, two in a pair.
        too_long: sentences without variants because they do not fit the model.
        by_masked_lm: words replaced by a candidate of the masked LM.
        by_vectors: words replaced by a neighbour among the word vectors.
        by_synonyms: words replaced by a synonym.
        by_given: words, or several together, replaced by a candidate that the caller gave.
        unchanged: words drawn for replacement that stayed: no candidate, or the candidate drawn was the word itself.
        duplicates: variants dropped because they equal the original or an earlier variant.
        barred: variants dropped because they are rows of another split.
        variants: variants kept, originals not counted.
    """

    rows: int = 0
    sentences: int = 0
    too_long: int = 0
    by_masked_lm: int = 0
    by_vectors: int = 0
    by_synonyms: int = 0
    by_given: int = 0
    unchanged: int = 0
    duplicates: int = 0
    barred: int = 0
    variants: int = 0

    @property
    def variants_per_sentence(self) -> float:
        return self.variants / max(self.sentences, 1)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Found(NamedTuple):
    """The candidates of one word.

    Attributes:
        words: the words of one source.
        source: the field of `Counts` that counts their use.
        synonyms: further candidates.
    """

    words: list[str]
    source: Literal["by_masked_lm", "by_vectors", "by_given"]
    synonyms: Sequence[str] = ()


class Candidates:
    """Algorithm 1's two sources: the masked LM for words of a single token, word vectors for the others; and synonyms.

    Args:
        masked_lm: proposes words; also decides which words are single tokens, and how long a sentence may be.
        vectors: None leaves words of several tokens as they are.
        k: candidates asked of each source (K); those that are not words are then dropped.
        synonyms: None adds none.

    Raises:
        UserError: `k` is below 1.
    """

    def __init__(
        self, masked_lm: MaskedLM, vectors: WordVectors | None, k: int = 15, synonyms: Synonyms | None = None
    ):
        if not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"{k!r} is not a whole number of 1 or more; give one", argument="candidates")
        self.masked_lm, self.vectors, self.k, self.synonyms = masked_lm, vectors, k, synonyms

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        predicted = self.masked_lm.candidates(queries, self.k)
        words = [query.text[query.start : query.end] for query in queries]
        others = [word for word, found in zip(words, predicted, strict=True) if found is None]
        near = self.vectors.neighbours(others, self.k) if self.vectors else {}
        return [
            self._found([w for w in near.get(word, []) if is_word(w)], "by_vectors", word)
            if found is None
            else self._found(found, "by_masked_lm", word)
            for word, found in zip(words, predicted, strict=True)
        ]

    def _found(self, words: list[str], source: Literal["by_masked_lm", "by_vectors"], word: str) -> Found:
        synonyms = self.synonyms.of(word)[: self.k] if self.synonyms else ()
        return Found(words, source, [synonym for synonym in synonyms if synonym not in words])


@dataclass(frozen=True)
class _Sentence:
    """A sentence to vary, with the random numbers in [0, 1) that decide its variants."""

    text: str
    spans: list[Span]
    given: dict[Span, Found]  # those of them whose candidates the caller gave
    draws: np.ndarray  # (variants, spans, 2): whether the word is replaced, and by which candidate


def match_case(candidate: str, word: str) -> str:
    """Return the candidate in the casing of the word it replaces: lower, UPPER, Capitalised; otherwise as it is."""
    if word.islower():
        return candidate.lower()
    if word.isupper() and len(word) > 1:
        return candidate.upper()
    if word[0].isupper() and not any(map(str.isupper, word[1:])):
        return candidate[0].upper() + candidate[1:]
    return candidate


def augment_rows(
    rows: Sequence[Row],
    candidates: Callable[[Sequence[Query]], Sequence[Found]],
    settings: Settings,
    seed: int,
    first_row_id: int = 0,
    barred: Callable[[Row], bool] = lambda row: False,
    given: Given = lambda row_id: {},
) -> tuple[list[list[Row]], Counts]:
    """Make the variants of consecutive rows.

    A row's list opens with the row itself. In a pair, variants of sentence A keep the original B; then variants of B
    keep the original A. Equal variants are kept once. Memory grows with the number of rows: of many rows give
    `SHARD_ROWS` at a time.

    Args:
        rows: the texts. Labels are the caller's; a row's label holds for all its variants.
        candidates: a `Candidates`, or any callable that answers as one does.
        settings: how rows are varied.
        seed: 0 or more.
        first_row_id: number of the first row, 0 or more; the others follow.
        barred: whether a variant must be dropped, for example because it is a row of dev or test.
        given: row number -> {(first word, last word): candidates} of its texts, whose words single spaces separate. Such
            words are replaced as a whole; if their list is empty, they stay.

    Returns:
        For each row its texts and those of its variants; and what was done.

    Raises:
        UserError: a text is empty, or too long for the model while `settings.long_texts` is "refuse"; or re-prediction
            is combined with a masked LM that masks several words at once.
    """
    masked_lm = candidates.masked_lm if isinstance(candidates, Candidates) else None
    if settings.repredict and masked_lm and not masked_lm.exact:
        raise UserError(
            "must be 1 with re-prediction, which predicts one word at a time",
            argument="masks_per_pass",
        )
    texts = [
        [
            (f"row {row_id}, text_{side}", text)
            for side, text in zip("ab", row, strict=True)
            if text is not None
        ]
        for row_id, row in enumerate(rows, start=first_row_id)
    ]
    for name, text in (named for row in texts for named in row):
        if not text.strip():
            raise UserError(f"{name} is empty; fill it in, or remove the row")
    too_long = _too_long([named for row in texts for named in row], masked_lm, settings)
    sentences: list[_Sentence] = []
    for row_id, row in enumerate(texts, start=first_row_id):
        random = np.random.default_rng((seed, row_id))
        for _, text in row:
            spans, variants = (
                ([], 0) if text in too_long else (content_words(text, settings.stop_words), settings.variants)
            )
            known = _spans_of_words(text, given(row_id))
            free = [
                span for span in spans if not any(span[0] < end and start < span[1] for start, end in known)
            ]
            given_words = {
                span: Found(words, "by_given") for span, words in known.items() if words and variants
            }
            spans = sorted([*free, *given_words])
            sentences.append(_Sentence(text, spans, given_words, random.random((variants, len(spans), 2))))

    totals = dict.fromkeys((f.name for f in fields(Counts)), 0)
    vary = _vary_stepwise if settings.repredict else _vary_at_once
    varied = iter(vary(sentences, candidates, settings.p, totals))
    result: list[list[Row]] = []
    for text_a, text_b in rows:
        pairs: list[Row] = [(text_a, text_b)]
        pairs += [(variant, text_b) for variant in next(varied)]
        if text_b is not None:
            pairs += [(text_a, variant) for variant in next(varied)]
        distinct = list(dict.fromkeys(pairs))
        result.append([distinct[0], *(pair for pair in distinct[1:] if not barred(pair))])
        totals["duplicates"] += len(pairs) - len(distinct)
        totals["barred"] += len(distinct) - len(result[-1])
        totals["variants"] += len(result[-1]) - 1
    totals["rows"], totals["sentences"] = len(rows), len(sentences)
    totals["too_long"] = sum(sentence.text in too_long for sentence in sentences)
    return result, Counts(**totals)


def write_shard(
    path: Path, rows: list[list[Row]], counts: Counts, labels: Sequence[Label], first_row_id: int = 0
) -> None:
    """Write a shard as an Arrow stream, which `datasets.Dataset.from_file` reads.

    Columns: text_a, text_b (null for single sentences), label, row (number of the source row), variant (0: the
    original). The counts lie in the schema's metadata: see `read_counts`.

    Args:
        rows, counts: what `augment_rows` returned.
        labels: one for each source row.
        first_row_id: number of the first of these.

    Raises:
        UserError: there are more or fewer labels than rows.
    """
    if len(labels) != len(rows):
        raise UserError(f"{len(labels)} labels for {len(rows)} rows; give one a row", argument="labels")
    lengths = [len(row) for row in rows]
    source = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table(
        {
            "text_a": pa.array([text_a for row in rows for text_a, _ in row], pa.string()),
            "text_b": pa.array([text_b for row in rows for _, text_b in row], pa.string()),
            "label": pa.array(labels, _arrow_type(labels)).take(pa.array(source)),
            "row": pa.array(first_row_id + source, pa.int64()),
            "variant": pa.array([i for length in lengths for i in range(length)], pa.int32()),
        }
    ).replace_schema_metadata({"counts": json.dumps(asdict(counts))})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table)


def _arrow_type(labels: Sequence[Label]) -> pa.DataType | None:
    """The type of a column of tuples, all equally long; None where Arrow finds it."""
    return pa.list_(pa.float32(), len(labels[0])) if isinstance(labels[0], tuple) else None


def read_shard(path: Path) -> tuple[list[str], list[str] | None, list[Label], list[int], list[int]]:
    """Read the columns of a written shard: text_a, text_b (None for single sentences), label, row, variant.

    Raises:
        UserError: the file is not a shard.
    """
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_stream(file).read_all()
            columns = table.to_pydict()
            if pa.types.is_fixed_size_list(table.schema.field("label").type):
                columns["label"] = [tuple(label) for label in columns["label"]]
        if set(columns["text_b"]) <= {None}:
            columns["text_b"] = None
        return tuple(columns[name] for name in ("text_a", "text_b", "label", "row", "variant"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{path} does not hold augmented rows ({error}); remove it and make it again"
        ) from error


def read_counts(path: Path) -> Counts:
    """Read the counts of a written shard."""
    with pa.memory_map(str(path)) as file:
        return Counts(**json.loads(pa.ipc.open_stream(file).schema.metadata[b"counts"]))


def _too_long(named: Sequence[tuple[str, str]], masked_lm: MaskedLM | None, settings: Settings) -> set[str]:
    """Return the texts that do not fit the model; raise for the first of them where the settings refuse them."""
    if masked_lm is None:
        return set()
    lengths = masked_lm.pair_lengths([text for _, text in named])
    long = [
        (name, text, length)
        for (name, text), length in zip(named, lengths, strict=True)
        if length > masked_lm.limit
    ]
    if long and settings.long_texts == "refuse":
        name, _, length = long[0]
        raise UserError(
            f"{name} takes {length} tokens (the sentence twice), the masked LM reads {masked_lm.limit}: shorten it, "
            f"or choose keep, which leaves such sentences ({len(long)} in this shard) without variants",
            argument="long_texts",
        )
    return {text for _, text, _ in long}


def _vary_at_once(
    sentences: Sequence[_Sentence], candidates: Callable, p: float, totals: dict[str, int]
) -> Iterator[list[str]]:
    """Yield the variants of each sentence, with candidates from the original sentence."""
    queries = [Query(s.text, *span, s.text) for s in sentences for span in s.spans if span not in s.given]
    found = iter(candidates(queries) if queries else [])
    for sentence in sentences:
        originals = [sentence.text[start:end] for start, end in sentence.spans]
        options = [sentence.given.get(span) or next(found) for span in sentence.spans]
        variants = []
        for draws in sentence.draws:
            words = list(originals)
            for i in np.flatnonzero(draws[:, 0] < p):
                words[i] = _replacement(words[i], options[i], draws[i, 1], totals)
            variants.append(_splice(sentence, words)[0])
        yield variants


def _vary_stepwise(
    sentences: Sequence[_Sentence], candidates: Callable, p: float, totals: dict[str, int]
) -> Iterator[list[str]]:
    """Yield the variants of each sentence, each word predicted after the replacements to its left.

    All variants of all sentences advance together, one replacement each, so that their words are predicted in batches.
    """
    drafts = []
    for sentence in sentences:
        originals = [sentence.text[start:end] for start, end in sentence.spans]
        for draws in sentence.draws:
            drafts.append((sentence, draws, list(originals), np.flatnonzero(draws[:, 0] < p)))
    for step in range(max((len(chosen) for *_, chosen in drafts), default=0)):
        active = [(s, draws, words, chosen[step]) for s, draws, words, chosen in drafts if step < len(chosen)]
        queries = []
        for sentence, _, words, i in active:
            text, spans = _splice(sentence, words)
            if sentence.spans[i] not in sentence.given:
                start, end = spans[i]
                queries.append(Query(text, start, end, sentence.text))
        found = iter(candidates(queries) if queries else [])
        for sentence, draws, words, i in active:
            option = sentence.given.get(sentence.spans[i]) or next(found)
            words[i] = _replacement(words[i], option, draws[i, 1], totals)
    texts = (_splice(sentence, words)[0] for sentence, _, words, _ in drafts)
    for sentence in sentences:
        yield list(islice(texts, len(sentence.draws)))


def _replacement(word: str, found: Found, draw: float, totals: dict[str, int]) -> str:
    """Return the candidate that `draw` in [0, 1) picks; the word itself if it has none.

    The candidate takes the word's casing, unless the caller gave it.
    """
    words = [*found.words, *found.synonyms]
    i = int(draw * len(words))
    new = words[i] if words else word
    if found.source != "by_given":
        new = match_case(new, word)
    totals["unchanged" if new == word else found.source if i < len(found.words) else "by_synonyms"] += 1
    return new


def _spans_of_words(text: str, given: Mapping[tuple[int, int], list[str]]) -> dict[Span, list[str]]:
    """By their characters what is given by the numbers of first and last word."""
    if not given:
        return {}
    starts = list(accumulate((len(word) + 1 for word in text.split(" ")), initial=0))
    return {(starts[first], starts[last + 1] - 1): words for (first, last), words in given.items()}


def _splice(sentence: _Sentence, words: Sequence[str]) -> tuple[str, list[Span]]:
    """Return the sentence with its content words replaced, and their new spans."""
    parts: list[str] = []
    spans: list[Span] = []
    at = end = 0
    for (start, stop), word in zip(sentence.spans, words, strict=True):
        parts += [sentence.text[end:start], word]
        at += start - end
        spans.append((at, at + len(word)))
        at, end = at + len(word), stop
    return "".join([*parts, sentence.text[end:]]), spans
