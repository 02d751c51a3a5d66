"""TinyBERT's data augmentation (arXiv 1909.10351, Algorithm 1): N variants of a sentence, words replaced.

A content word is a run of letters that is no stop word. A word that is a single piece of the masked language
model's vocabulary gets its candidates from that model, any other from word vectors. In each variant each
content word is replaced with probability p by one of its candidates, drawn uniformly. Words are found by
their offsets in the sentence as written; all between them (spaces, punctuation, numbers, stop words) stays.

What comes out depends on the seed, the row's number and its texts alone, so any split of the rows over
shards, ranks and runs gives the same variants (up to how the model's arithmetic rounds near ties).
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from checkpoints.errors import UserError
from data_aug.masked_lm import MaskedLM, Query
from data_aug.word_vectors import WordVectors

Row = tuple[str, str | None]  # text_a and text_b; None where the task has single sentences
Span = tuple[int, int]
Label = int | float | str | None

# Accents written as marks of their own belong to the word; a run with digits or marks is no content word.
_RUN = re.compile(r"[\w\u0300-\u036f]+")
STOP_WORDS = frozenset(
    word
    for line in Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
    for word in line.split()
)


@dataclass(frozen=True)
class Settings:
    """How sentences are varied. The defaults are the paper's (its code sets N for each task, 10 to 30).

    Attributes:
        p: probability that a content word is replaced.
        variants: variants drawn for each sentence (N); a pair draws them for each of its two.
        repredict: False finds a word's candidates once, in the original sentence (the published code); True
            finds them in the variant as it stands, after the replacements to its left (the paper).
        long_texts: what becomes of a sentence that does not fit the model: "refuse" stops with an error,
            "keep" leaves it as it is, without variants.
    """

    p: float = 0.4
    variants: int = 20
    repredict: bool = False
    long_texts: Literal["refuse", "keep"] = "refuse"

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise UserError(f"p is {self.p}; a probability lies between 0 and 1")
        if self.variants < 0:
            raise UserError(f"variants is {self.variants}; it must be 0 or more")
        if self.long_texts not in ("refuse", "keep"):
            raise UserError(f"long_texts is {self.long_texts!r}; choose refuse or keep")


@dataclass(frozen=True)
class Counts:
    """What augmentation did. Word counts are over all variants drawn, before duplicates are dropped.

    Attributes:
        rows: rows read.
        sentences: sentences read; two to a pair.
        too_long: sentences left without variants because they do not fit the model.
        by_masked_lm: words changed to a proposal of the masked LM.
        by_vectors: words changed to a neighbour of their vector.
        unchanged: words drawn for replacement that stayed: no candidate, or the candidate drawn was the word.
        duplicates: variants dropped, being the original or an earlier variant.
        barred: variants dropped because they are rows of another split.
        variants: variants kept, the originals not counted.
    """

    rows: int = 0
    sentences: int = 0
    too_long: int = 0
    by_masked_lm: int = 0
    by_vectors: int = 0
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
    """Candidates for one word, and the field of `Counts` that counts them."""

    words: list[str]
    source: Literal["by_masked_lm", "by_vectors"]


class Candidates:
    """Algorithm 1's two sources: the masked LM for words of a single piece, word vectors for the others.

    Args:
        masked_lm: also decides which words are single pieces, and how long a sentence may be.
        vectors: None leaves words of several pieces as they are.
        k: candidates asked of either source (K); those that are no words are then dropped.
    """

    def __init__(self, masked_lm: MaskedLM, vectors: WordVectors | None, k: int = 15):
        if k < 1:
            raise UserError(f"k is {k}; it must be 1 or more")
        self.masked_lm, self.vectors, self.k = masked_lm, vectors, k

    def __call__(self, queries: Sequence[Query]) -> list[Found]:
        predicted = self.masked_lm.candidates(queries, self.k)
        words = [query.text[query.start : query.end] for query in queries]
        others = [word for word, found in zip(words, predicted, strict=True) if found is None]
        near = self.vectors.neighbours(others, self.k) if self.vectors else {}
        return [
            Found([w for w in near.get(word, []) if w.isalpha()], "by_vectors")
            if found is None
            else Found(found, "by_masked_lm")
            for word, found in zip(words, predicted, strict=True)
        ]


@dataclass(frozen=True)
class _Sentence:
    """A sentence to vary, and its random numbers."""

    text: str
    spans: list[Span]
    draws: np.ndarray  # (variants, content words, 2): is it replaced, and by which candidate


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows and their variants: for each row its texts, the original first."""

    index: int
    first_row_id: int
    rows: list[list[Row]]
    counts: Counts


def content_words(text: str) -> list[Span]:
    """Where the words that may be replaced stand: letters alone, and no stop word."""
    return [
        run.span() for run in _RUN.finditer(text) if run[0].isalpha() and run[0].lower() not in STOP_WORDS
    ]


def match_case(candidate: str, word: str) -> str:
    """The candidate in the casing of the word it replaces: lower, UPPER or Capitalised; else as it is."""
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
) -> tuple[list[list[Row]], Counts]:
    """The variants of consecutive rows.

    A row's list opens with the row itself. Of a pair, variants of sentence A keep the original B, and then
    variants of B the original A. Equal variants are kept once. Memory grows with the number of rows: use
    `augment_shards` for many.

    Args:
        rows: the texts; labels are the caller's, and hold for all variants of a row.
        candidates: a `Candidates`, or anything that answers like it.
        settings: how they are varied.
        seed: 0 or more.
        first_row_id: number of the first row, 0 or more; the others follow.
        barred: says of a variant that it must not be, being a row of dev or test by chance.

    Raises:
        UserError: a text is empty, or too long for the model (unless `settings.long_texts` keeps it); or
            re-prediction is asked of the approximate masked LM.
    """
    masked_lm = candidates.masked_lm if isinstance(candidates, Candidates) else None
    if settings.repredict and masked_lm and not masked_lm.exact:
        raise UserError("repredict finds one word of a variant at a time; use it with masks_per_pass=1")
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
            raise UserError(f"{name} is empty; fill it in, or leave the row out")
    too_long = _too_long([named for row in texts for named in row], masked_lm, settings)
    sentences: list[_Sentence] = []
    for row_id, row in enumerate(texts, start=first_row_id):
        random = np.random.default_rng((seed, row_id))
        for _, text in row:
            spans, variants = ([], 0) if text in too_long else (content_words(text), settings.variants)
            sentences.append(_Sentence(text, spans, random.random((variants, len(spans), 2))))

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


def augment_shards(
    rows: Iterable[Row],
    candidates: Callable[[Sequence[Query]], Sequence[Found]],
    settings: Settings,
    seed: int,
    shard_rows: int = 1000,
    wanted: Callable[[int], bool] = lambda index: True,
    barred: Callable[[Row], bool] = lambda row: False,
) -> Iterator[Shard]:
    """Rows numbered from 0, `shard_rows` at a time: memory does not grow with their number.

    A shard not `wanted` (on disk already, or another rank's) costs no more than reading its rows.
    """
    rows = iter(rows)
    index = 0
    while chunk := list(islice(rows, shard_rows)):
        if wanted(index):
            first = index * shard_rows
            yield Shard(index, first, *augment_rows(chunk, candidates, settings, seed, first, barred))
        index += 1


def write_shard(path: Path, shard: Shard, labels: Sequence[Label]) -> None:
    """Writes a shard as an Arrow stream, aside and then renamed; `datasets.Dataset.from_file` reads it.

    Columns: text_a, text_b (null for single sentences), label, row (number of the source row) and variant (0
    the original). The counts lie in the schema's metadata, see `read_counts`.

    Args:
        path: the file; its folder is made.
        shard: what `augment_shards` gave.
        labels: one for each source row of the shard.

    Raises:
        UserError: there are more or fewer labels than rows.
    """
    if len(labels) != len(shard.rows):
        raise UserError(
            f"shard {shard.index}: {len(labels)} labels for {len(shard.rows)} rows; give one a row"
        )
    lengths = [len(row) for row in shard.rows]
    labels = pa.array(labels)
    source = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table(
        {
            "text_a": pa.array([text_a for row in shard.rows for text_a, _ in row], pa.string()),
            "text_b": pa.array([text_b for row in shard.rows for _, text_b in row], pa.string()),
            "label": labels.take(pa.array(source)),
            "row": pa.array(shard.first_row_id + source, pa.int64()),
            "variant": pa.array([i for length in lengths for i in range(length)], pa.int32()),
        }
    ).replace_schema_metadata({"counts": json.dumps(asdict(shard.counts))})
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.staging")
    with staging.open("wb") as file:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)


def read_shard(path: Path) -> tuple[list[str], list[str] | None, list[Label], list[int], list[int]]:
    """The columns of a written shard: text_a, text_b (None for single sentences), label, row, variant.

    Raises:
        UserError: it is no such file.
    """
    try:
        with pa.memory_map(str(path)) as file:
            columns = pa.ipc.open_stream(file).read_all().to_pydict()
        if set(columns["text_b"]) <= {None}:
            columns["text_b"] = None
        return tuple(columns[name] for name in ("text_a", "text_b", "label", "row", "variant"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} holds no augmented rows ({error}); remove its stage's directory") from error


def read_counts(path: Path) -> Counts:
    """The counts of a written shard."""
    with pa.memory_map(str(path)) as file:
        return Counts(**json.loads(pa.ipc.open_stream(file).schema.metadata[b"counts"]))


def _too_long(named: Sequence[tuple[str, str]], masked_lm: MaskedLM | None, settings: Settings) -> set[str]:
    """The texts that do not fit the model, where they are kept; where not, the first is an error."""
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
            f"{name} takes {length} tokens (the sentence twice), and the masked LM reads {masked_lm.limit}; "
            f"shorten it, or set long_texts=keep: such sentences ({len(long)} in this shard) get no variants"
        )
    return {text for _, text, _ in long}


def _vary_at_once(
    sentences: Sequence[_Sentence], candidates: Callable, p: float, totals: dict[str, int]
) -> Iterator[list[str]]:
    """Variants of each sentence, with candidates from the original."""
    queries = [Query(s.text, *span, s.text) for s in sentences for span in s.spans]
    found = iter(candidates(queries) if queries else [])
    for sentence in sentences:
        originals = [sentence.text[start:end] for start, end in sentence.spans]
        options = list(islice(found, len(originals)))
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
    """Variants of each sentence, each word predicted after the replacements before it.

    All variants of all sentences go in lock step, each at its next word to be replaced: no other is asked.
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
            queries.append(Query(text, *spans[i], sentence.text))
        for (_, draws, words, i), found in zip(active, candidates(queries), strict=True):
            words[i] = _replacement(words[i], found, draws[i, 1], totals)
    texts = (_splice(sentence, words)[0] for sentence, _, words, _ in drafts)
    for sentence in sentences:
        yield list(islice(texts, len(sentence.draws)))


def _replacement(word: str, found: Found, draw: float, totals: dict[str, int]) -> str:
    """The candidate that a number in [0, 1) picks, in the word's casing; without candidates the word."""
    new = match_case(found.words[int(draw * len(found.words))], word) if found.words else word
    totals[found.source if new != word else "unchanged"] += 1
    return new


def _splice(sentence: _Sentence, words: Sequence[str]) -> tuple[str, list[Span]]:
    """The sentence with its content words exchanged, and where they stand now."""
    parts: list[str] = []
    spans: list[Span] = []
    at = end = 0
    for (start, stop), word in zip(sentence.spans, words, strict=True):
        parts += [sentence.text[end:start], word]
        at += start - end
        spans.append((at, at + len(word)))
        at, end = at + len(word), stop
    return "".join([*parts, sentence.text[end:]]), spans
