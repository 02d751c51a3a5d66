"""Words that may be replaced, and nltk's data: stop words of other languages, synonyms of WordNet."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nltk
import nltk.corpus
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.corpus.reader import WordListCorpusReader, WordNetCorpusReader
from nltk.corpus.util import LazyCorpusLoader

from data_aug import augment
from data_aug.replaceable_words import ENGLISH, Synonyms, content_words, stop_words
from data_aug.variants import Candidates, Settings, augment_rows
from data_aug.word_prediction import MaskedLM
from tests.data_aug.conftest import TEXTS

GERMAN = "der die das und nicht für".split()
SYNSETS = [["film", "movie", "motion_picture", "flick"], ["film", "cinema"], ["actor"]]
"""Nouns of a small WordNet, the words of each meaning."""


def parts(text: str, stops: frozenset[str] = ENGLISH) -> list[str]:
    return [text[a:b] for a, b in content_words(text, stops)]


def write_wordnet(directory: Path) -> None:
    """Write nouns in WordNet's own format (man 5 wndb), whose index holds the bytes at which synsets begin."""
    directory.mkdir(parents=True)
    header = "  1 This database: WordNet 3.0 Copyright\n"
    data, places = header, {}
    for words in SYNSETS:
        for word in words:
            places.setdefault(word, []).append(f"{len(data):08d}")
        written = " ".join(f"{word} 0" for word in words)
        data += f"{len(data):08d} 00 n {len(words):02x} {written} 000 | a meaning\n"
    index = "".join(
        f"{word} n {len(at)} 0 {len(at)} 0 {' '.join(at)}\n" for word, at in sorted(places.items())
    )
    files = {
        "lexnames": "00\tnoun.all\t1\n",
        "data.noun": data,
        "index.noun": header + index,
        "data.adj": header,
    }
    for part in ("noun", "verb", "adj", "adv"):
        for name in (f"data.{part}", f"index.{part}", f"{part}.exc"):
            (directory / name).write_text(files.get(name, ""))
    for name in ("lexnames", "index.sense", "cntlist.rev"):
        (directory / name).write_text(files.get(name, ""))


@pytest.fixture
def nltk_data(tmp_path, monkeypatch) -> Path:
    """A directory of nltk's data with one language and a small WordNet, the only one that nltk sees."""
    corpora = tmp_path / "corpora"
    (corpora / "stopwords").mkdir(parents=True)
    (corpora / "stopwords" / "german").write_text("\n".join(GERMAN) + "\n", encoding="utf-8")
    write_wordnet(corpora / "wordnet")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    for name, reader, args in (
        ("stopwords", WordListCorpusReader, [r"(?!README|\.).*"]),
        ("wordnet", WordNetCorpusReader, [None]),
    ):
        monkeypatch.setattr(
            nltk.corpus, name, LazyCorpusLoader(name, reader, *args)
        )  # not loaded by another test
    return tmp_path


words_and_noise = st.lists(
    st.sampled_from(["film", "NASA", "the", "don't", "7", "B2", "café", "cafe\u0301", "हिन्दी", "ไม้", "日本"])
    | st.sampled_from([" ", "\t", ", ", "-", " n't", "_", "'s", "ß", "\u00a0", "🎬", "\u0301"]),
    max_size=12,
).map("".join)


@given(words_and_noise)
def test_content_words_are_whole_runs_of_letters_and_no_stop_words(text: str) -> None:
    spans = content_words(text)
    for start, end in spans:
        word = text[start:end]
        assert any(map(str.isalpha, word)) and not re.search(r"[\d_\s-]", word)
        assert word.lower() not in ENGLISH
        assert not re.match(r"[\w\u0301]", text[end : end + 1] or " ")
        assert not re.match(r"\w", text[start - 1 : start] or " ")
    assert spans == sorted(spans)


def test_content_words_by_example() -> None:
    text = "The film isn't a B2-movie: it's Well-made, 7 x and cafe\u0301, do n't"
    assert parts(text) == ["film", "movie", "Well", "made", "x", "cafe\u0301"]
    assert len(ENGLISH) == 180
    assert parts("यह हिन्दी फ़िल्म है।") == ["यह", "हिन्दी", "फ़िल्म", "है"]  # vowel signs do not split a word


def test_stop_words_of_a_language_are_those_of_nltks_data(nltk_data) -> None:
    german = stop_words("german")
    assert german == frozenset(GERMAN)
    assert parts("Das war nicht für die Katz", german) == ["war", "Katz"]
    assert parts("Fu\u0308r den Film", german) == ["den", "Film"]  # a decomposed umlaut is the same letter
    with pytest.raises(ValueError, match=r"language: 'klingon': nltk has no stop words of it; .* german"):
        stop_words("klingon")


def test_missing_data_is_one_line_that_says_where_to_get_it(nltk_data, monkeypatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(nltk_data / "none")])
    assert stop_words("english") is ENGLISH  # shipped: needs no data
    for call, name, argument in ((lambda: stop_words("german"), "stopwords", "language"),
                                 (Synonyms, "wordnet", "synonyms")):  # fmt: skip
        with pytest.raises(
            ValueError,
            match=f"^{argument}: .* is not on this machine: run `{re.escape(sys.executable)} -m nltk.*r {name}`",
        ):
            call()
    monkeypatch.setattr(nltk, "download", lambda name, quiet: False)
    with pytest.raises(ValueError, match="^language: .* could not be fetched"):
        stop_words("german", download=True)

    def download(name: str, quiet: bool) -> bool:
        nltk.data.path.append(str(nltk_data))
        return True

    monkeypatch.setattr(nltk, "download", download)
    assert stop_words("german", download=True) == frozenset(GERMAN)


def test_ranks_of_a_host_fetch_data_once(nltk_data, monkeypatch) -> None:
    monkeypatch.setattr(nltk.data, "path", [str(nltk_data / "none")])
    fetched = []

    def download(name: str, quiet: bool) -> bool:
        fetched.append(name)
        time.sleep(0.2)
        nltk.data.path.append(str(nltk_data))
        return True

    monkeypatch.setattr(nltk, "download", download)
    with ThreadPoolExecutor() as ranks:
        found = list(ranks.map(lambda _: Synonyms(download=True).version, range(3)))
    assert found == ["3.0"] * 3 and fetched == ["wordnet"]


def test_incomplete_data_is_one_line(nltk_data) -> None:
    (nltk_data / "corpora" / "wordnet" / "lexnames").unlink()
    with pytest.raises(ValueError, match="^synonyms: nltk's data of WordNet is incomplete"):
        Synonyms()


def test_synonyms_are_single_words_of_the_same_form(nltk_data) -> None:
    synonyms = Synonyms()
    assert synonyms.version == "3.0"
    assert synonyms.of("Film") == ("movie", "flick", "cinema")
    assert synonyms.of("films") == () == synonyms.of("actor") == synonyms.of("unicorn")
    with pytest.raises(ValueError, match="^synonyms: WordNet has English synonyms, the language is 'german'"):
        Synonyms("german")


def test_synonyms_are_drawn_beside_the_other_candidates_and_counted(nltk_data, bert) -> None:
    rows = [(text, None) for text in ("a film", "the actor")]
    settings = Settings(p=1, variants=30)
    plain, before = augment_rows(rows, Candidates(MaskedLM(*bert), None, 4), settings, 0)
    both, after = augment_rows(rows, Candidates(MaskedLM(*bert), None, 4, Synonyms()), settings, 0)
    texts = {text for text, _ in both[0]}
    assert before.by_synonyms == 0 < after.by_synonyms < 30
    assert {text for text, _ in plain[0]} <= texts and {"a movie", "a flick", "a cinema"} <= texts
    assert both[1] == plain[1]  # no synonyms, no difference


def test_from_python(nltk_data, bert) -> None:
    rows = augment(["die film", "nicht great"], bert, language="german", p=1)
    assert {text.split()[0] for row in rows for text in row} == {"die", "nicht"}
    assert augment(["die film"], bert, language="German") == augment(["die film"], bert, language="german")
    assert augment(TEXTS, bert) == augment(TEXTS, bert, language="English", synonyms="none")
    with pytest.raises(ValueError, match="synonyms: 'roget' is unknown; choose none or wordnet"):
        augment(TEXTS, bert, synonyms="roget")
