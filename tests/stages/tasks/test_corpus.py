"""Corpora: what a name means, and streaming from each format."""

import gzip
import json

import pytest

from checkpoints.errors import UserError
from stages.tasks import corpus
from stages.tasks.corpus import find_corpus
from tests.corpora import documents


def read(spec):
    return list(documents(find_corpus(str(spec))))


def test_text_documents_end_at_blank_lines(tmp_path):
    text = "One sentence.\nAnother.\n\n\nSecond document.\n"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "a.txt") == ["One sentence. Another.", "Second document."]
    assert read(tmp_path / "b.txt.gz") == read(tmp_path / "a.txt")


def test_text_without_blank_lines_still_streams(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "MAX_CHARACTERS", 20)
    (tmp_path / "a.txt").write_text("ten chars\n" * 9)
    assert len(read(tmp_path / "a.txt")) == 3


def test_jsonl_and_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": 1, "text": "first"}, {"id": 2, "text": "second"}]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    assert read(tmp_path / "a.jsonl.gz") == read(tmp_path / "b.parquet") == ["first", "second"]


def test_directory_and_glob_are_sorted(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("no corpus")
    assert read(tmp_path) == ["a.txt", "b.txt", "deep/c.txt"]
    assert read(tmp_path / "?.txt") == ["a.txt", "b.txt"]
    assert list(find_corpus(str(tmp_path)).files) == ["a.txt", "b.txt", "deep/c.txt"]


def test_packaged():
    source = find_corpus("packaged")
    assert source.name == "wikipedia-introductions"
    assert next(documents(source)).startswith("20th-century classical music is")


def test_hub_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    source = find_corpus("wikimedia/wikipedia:20231101.en")
    assert source.hub == "wikimedia/wikipedia"
    assert source.config == "20231101.en"

    def load_dataset(name, config, **options):
        assert (name, config) == ("wikimedia/wikipedia", "20231101.en")
        assert options == {"revision": "abc", "split": "train", "streaming": True}
        return iter([{"text": "page"}, {"title": "none"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    stream = documents(source, "abc")
    assert next(stream) == "page"
    with pytest.raises(UserError, match="no field 'text'; it has 'title'"):
        next(stream)


@pytest.mark.parametrize("spec", ["", "nothing", "a/b.txt", "/no/such/place", "./owner/name", "tests/gone"])
def test_nothing_there(spec):
    with pytest.raises(UserError, match="corpus: no corpus at .*owner/name:config"):
        find_corpus(spec)


def test_bad_corpora(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UserError, match="the corpus .*empty.txt is empty"):
        read(tmp_path / "empty.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"body": "b"}\n')
    with pytest.raises(UserError, match="a.jsonl, line 2: no field 'text'; it has 'body'"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        read(tmp_path / "a.parquet")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"some text " * 100)[:-9])
    with pytest.raises(UserError, match="cut.txt.gz: cannot be read"):
        read(tmp_path / "cut.txt.gz")
    (tmp_path / "a.pdf").write_bytes(b"x")
    with pytest.raises(UserError, match="a.pdf: a corpus is read from .txt"):
        read(tmp_path / "a.pdf")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no file that ends in .txt"):
        read(tmp_path / "none")
