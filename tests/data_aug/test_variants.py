"""Variants of rows: what stays, what is replaced, and that nothing but the seed and the row decides."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_aug.replaceable_words import content_words, is_word
from data_aug.variants import (
    Candidates,
    Counts,
    Found,
    Settings,
    augment_rows,
    match_case,
    read_counts,
    write_shard,
)
from data_aug.word_prediction import MaskedLM, Query
from data_aug.word_vectors import WordVectors


def fake(queries: Sequence[Query]) -> list[Found]:
    """Candidates that depend on the word and on the sentence as it stands; words with a z have none."""
    found = []
    for query in queries:
        word = query.text[query.start : query.end]
        assert is_word(word)
        source = "by_vectors" if len(word) > 6 else "by_masked_lm"
        options = [f"{'xyq'[len(query.text) % 3]}{n}".replace("0", "aa").replace("1", "bb") for n in (0, 1)]
        found.append(Found([] if "z" in word else [*options, word], source))
    return found


@pytest.fixture(scope="module")
def candidates(bert) -> Candidates:
    words = ["unforgettable", "memorable", "zebra", "horse", "1990s", "donkey", "actors", "players"]
    return Candidates(MaskedLM(*bert), WordVectors(words, np.random.default_rng(0).normal(size=(8, 4))), k=4)


def outside(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """What stands between the spans."""
    ends = [0, *(end for _, end in spans)]
    return [
        text[end:start] for end, start in zip(ends, [*(start for start, _ in spans), len(text)], strict=True)
    ]


words_and_noise = st.lists(
    st.sampled_from(
        ["film", "Zebra", "NASA", "the", "don't", "7", "B2", "fourteen", "café", "cafe\u0301", "iPhone"]
    )
    | st.sampled_from([" ", "  ", "\t", ", ", "-", "...", " n't", "_", "'s", "ß", "日本", "\u00a0", "🎬"]),
    min_size=1,
    max_size=12,
).map("".join)
real_texts = words_and_noise.filter(lambda text: text.strip())


def test_match_case() -> None:
    pairs = {"story": "film", "Story": "Film", "STORY": "FILM", "sTory": "fiLm", "S": "Film"}
    assert {word: match_case("fiLm" if word != "story" else "FILM", word) for word in pairs} == {
        "story": "film",
        "Story": "FiLm",
        "STORY": "FILM",
        "sTory": "fiLm",
        "S": "FiLm",
    }


@settings(max_examples=60, deadline=None)
@given(real_texts, st.booleans(), st.integers(0, 5))
def test_only_content_words_change_and_the_original_comes_first(
    text: str, repredict: bool, seed: int
) -> None:
    [variants], counts = augment_rows([(text, None)], fake, Settings(repredict=repredict, variants=8), seed)
    assert variants[0] == (text, None)
    assert len(set(variants)) == len(variants) <= 9
    assert counts.variants == len(variants) - 1 == 8 - counts.duplicates
    spans = content_words(text)
    kept = outside(text, spans)
    for variant, _ in variants:
        pattern = re.fullmatch("(.+?)".join(map(re.escape, kept)), variant, re.DOTALL)
        assert pattern, (kept, variant)
        for (start, end), new in zip(spans, pattern.groups(), strict=True):
            word = text[start:end]
            assert new == word or "z" not in word
            assert not word.islower() or new.islower() or new == word
            assert not word.isupper() or new.isupper() or len(word) == 1


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(real_texts, st.none() | real_texts), min_size=1, max_size=6), st.booleans(), st.data()
)
def test_the_split_into_shards_changes_nothing(rows: list, repredict: bool, data: st.DataObject) -> None:
    how = Settings(repredict=repredict, variants=5)
    whole, counts = augment_rows(rows, fake, how, seed=3)
    size = data.draw(st.integers(1, len(rows)))
    shards = [augment_rows(rows[i : i + size], fake, how, 3, i) for i in range(0, len(rows), size)]
    assert [row for made, _ in shards for row in made] == whole
    assert sum((of_shard for _, of_shard in shards), Counts()) == counts


@pytest.mark.parametrize("repredict", [False, True])
def test_the_split_changes_nothing_with_a_model(candidates, texts, repredict: bool) -> None:
    rows = [(text, None) for text in texts]
    how = Settings(repredict=repredict, variants=6, p=0.7)
    whole, counts = augment_rows(rows, candidates, how, seed=1)
    shards = [augment_rows(rows[i : i + 2], candidates, how, 1, i)[0] for i in range(0, len(rows), 2)]
    assert [row for made in shards for row in made] == whole
    assert counts.by_masked_lm > 10 and counts.by_vectors > 0
    assert augment_rows(rows, candidates, how, seed=2)[0] != whole
    assert augment_rows(rows, candidates, how, seed=1, first_row_id=1)[0] != whole


def test_a_pair_keeps_the_other_original() -> None:
    row = ("great film", "dull story")
    [variants], counts = augment_rows([row], fake, Settings(p=0.6, variants=10), seed=0)
    assert variants[0] == row
    of_a = [pair for pair in variants[1:] if pair[0] != row[0]]
    of_b = [pair for pair in variants[1:] if pair[1] != row[1]]
    assert of_a and of_b
    assert {b for _, b in of_a} == {row[1]} and {a for a, _ in of_b} == {row[0]}
    assert counts.sentences == 2 and counts.rows == 1
    assert counts.duplicates + counts.variants == 20


def test_a_row_of_another_split_is_never_made() -> None:
    rows = [("great film", None), ("dull story", None)]
    [first, _], free = augment_rows(rows, fake, Settings(p=0.6), seed=0)
    unwanted = first[1]
    [barred, _], counts = augment_rows(rows, fake, Settings(p=0.6), 0, barred=lambda row: row == unwanted)
    assert barred == [row for row in first if row != unwanted] and counts.barred == 1
    assert counts.variants == free.variants - 1


def test_p_of_nothing_and_everything() -> None:
    [nothing], counts = augment_rows([("great film", None)], fake, Settings(p=0), seed=0)
    assert nothing == [("great film", None)] and counts.duplicates == 20
    [_], counts = augment_rows([("great film zebra", None)], fake, Settings(p=1), seed=0)
    assert counts.by_masked_lm + counts.by_vectors + counts.unchanged == 60
    assert counts.unchanged >= 20  # zebra has no candidates


def test_repredict_shows_the_variant_beside_the_original() -> None:
    asked: list[Query] = []

    def spy(queries: Sequence[Query]) -> list[Found]:
        asked.extend(queries)
        return [Found(["longer"], "by_masked_lm") for _ in queries]

    augment_rows([("great film", None)], spy, Settings(p=1, variants=1, repredict=True), seed=0)
    assert asked == [Query("great film", 0, 5, "great film"), Query("longer film", 7, 11, "great film")]
    asked.clear()
    augment_rows([("great film", None)], spy, Settings(p=1, variants=1), seed=0)
    assert asked == [Query("great film", 0, 5, "great film"), Query("great film", 6, 10, "great film")]


def test_candidates_come_from_both_sources(candidates) -> None:
    text = "great zebra unicorn"
    queries = [Query(text, *span, text) for span in content_words(text)]
    great, zebra, unicorn = candidates(queries)
    assert great.source == "by_masked_lm" and 0 < len(great.words) <= 4
    assert zebra.source == "by_vectors" and zebra.words and "1990s" not in zebra.words
    assert unicorn.words == []
    assert Candidates(candidates.masked_lm, None)(queries)[1].words == []


def test_refusals(bert, candidates) -> None:
    def run(row: tuple[str, str | None], **how: object) -> list:
        return augment_rows(
            [("film", row[1] and "film"), row], candidates, Settings(**how), 0, first_row_id=40
        )[0]

    with pytest.raises(ValueError, match="row 41, text_a is empty"):
        run((" ", None))
    with pytest.raises(ValueError, match="row 41, text_b is empty"):
        run(("film", "\n"))
    long = "film " * 31
    with pytest.raises(ValueError, match="long_texts: row 41, text_b takes 65 tokens .* reads 64: .*keep"):
        run(("great film", long), long_texts="refuse")
    kept = run(("great film", long))[1]
    assert len(kept) > 1 and {b for _, b in kept} == {long}
    how = Settings(long_texts="keep", variants=4)
    [[only]], counts = augment_rows([(long, None)], candidates, how, 0)
    assert only == (long, None) and counts == Counts(rows=1, sentences=1, too_long=1)
    for how in ({"p": 1.5}, {"variants": -1}, {"long_texts": "cut"}):
        with pytest.raises(ValueError, match=next(iter(how))):
            Settings(**how)
    several = Candidates(MaskedLM(*bert, masks_per_pass=3), None)
    with pytest.raises(ValueError, match="masks_per_pass: must be 1 with re-prediction"):
        augment_rows([("film", None)], several, Settings(repredict=True), 0)


@pytest.mark.parametrize(
    ("rows", "labels"), [([("great film", None)] * 3, [1, 0, 1]), ([("a film", "story")] * 3, [0.5, 2, 1])]
)
def test_shards_on_disk(tmp_path: Path, rows: list, labels: list) -> None:
    for first in (0, 2):
        made, counts = augment_rows(rows[first : first + 2], fake, Settings(variants=4), 0, first)
        path, mine = tmp_path / f"{first}.arrow", labels[first : first + 2]
        write_shard(path, made, counts, mine, first)
        once = path.read_bytes()
        write_shard(path, made, counts, mine, first)
        assert path.read_bytes() == once
        assert read_counts(path) == counts
        data = Dataset.from_file(str(path))
        assert data.column_names == ["text_a", "text_b", "label", "row", "variant"]
        expected = [
            {"text_a": a, "text_b": b, "label": label, "row": i, "variant": variant}
            for i, (variants, label) in enumerate(zip(made, mine, strict=True), start=first)
            for variant, (a, b) in enumerate(variants)
        ]
        assert list(data) == expected
    with pytest.raises(ValueError, match="1 labels for"):
        write_shard(path, [[row] for row in rows], counts, labels[:1])


@pytest.mark.parametrize("repredict", [False, True])
def test_given_words_are_swapped_as_given_or_stay_and_the_others_are_replaced(repredict) -> None:
    row = ("film by ada lovelace in Rome shows zebra", None)
    given_words = {(2, 3): ["Paul Erdos", "MARIE CURIE"], (5, 5): []}
    [variants], counts = augment_rows(
        [row], fake, Settings(p=0.7, variants=12, repredict=repredict), 0, given=lambda row_id: given_words
    )
    found = [re.fullmatch(r"(.+) by (.+) in Rome (.+) zebra", text) for text, _ in variants]
    assert all(found) and {match[2] for match in found} == {"ada lovelace", "Paul Erdos", "MARIE CURIE"}
    assert len({match[1] for match in found}) > 1 and counts.by_given > 0 < counts.by_masked_lm
