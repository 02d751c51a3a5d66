"""Answers to lines, tables and the page's questions are those of the student that was measured."""

import csv
import json
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import commands as cli
from pipeline.deploy import serve
from pipeline.deploy.classifier import Classifier
from pipeline.report.run_record import read_run_record
from tests.pipeline.deploy.test_export import make_finished
from tests.pipeline.report.test_report import CHROMIUM, EVIL


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("predict")
    make_finished(path / "runs" / "one", ["good", EVIL])
    make_finished(path / "runs" / "pairs", ["same", "other"], pairs=True)
    make_finished(path / "runs" / "scores", None)
    return path


@pytest.fixture
def place(there, monkeypatch) -> Path:
    monkeypatch.chdir(there)
    return there


def stock(directory: Path, *columns: list[str]) -> list[tuple[str, float]]:
    """The answers as plain transformers gives them, row by row."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(directory).eval(), AutoTokenizer
    tokenizer, found = tokenizer.from_pretrained(directory), []
    for row in zip(*columns, strict=True):
        inputs = tokenizer(*row, truncation=True, max_length=24, return_tensors="pt")
        with torch.no_grad():
            values = model(**inputs).logits.softmax(-1)[0]
        found.append((model.config.id2label[int(values.argmax())], float(values.max())))
    return found


def test_scores_have_their_digits_whatever_their_unit(place, monkeypatch):
    scores = np.array([[1.25e-5], [123456.75]])
    monkeypatch.setattr(Classifier, "__call__", lambda self, rows, progress: scores)
    classifier = Classifier.of_run(read_run_record(Path("runs/scores")), "distilled")
    assert classifier.predict([["a"], ["b"]]) == [("", "1.25e-05"), ("", "123456.8")]


@pytest.mark.parametrize("name", ["one", "pairs"])
def test_a_table_is_answered_as_stock_transformers_does(place, capsys, monkeypatch, name):
    monkeypatch.setattr("pipeline.deploy.classifier.POOL", 7)  # several pools of several batches
    monkeypatch.setattr("pipeline.deploy.classifier.BATCH", 3)
    table = place / "runs" / name / "test_predictions.csv"
    assert cli.main(["predict", f"run={name}", f"file={table}", "to=out.csv"]) == 0, capsys.readouterr().err
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [[row[c] for row in rows] for c in ("text", "text_b") if c in rows[0]]
    assert len(columns) == (2 if name == "pairs" else 1) and len(rows) == 30
    expected = stock(place / "runs" / name / "prediction" / "model", *columns)
    assert [row["predicted_label"] for row in rows] == [label for label, _ in expected]
    assert [float(row["predicted_score"]) for row in rows] == pytest.approx(
        [p for _, p in expected], abs=1e-4
    )
    assert not list(place.glob(".out.csv*"))


def test_other_columns_a_regression_and_an_export(place, capsys, monkeypatch):
    Path("in.jsonl").write_text('{"review": "a good film", "n": 1}\n{"review": "dull", "n": 2}\n')
    assert cli.main(["predict", "run=scores", "file=in.jsonl", "text_columns=review"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "review,n,score" and len(lines) == 3
    if not Path("export").exists():
        assert cli.main(["export", "run=one", "to=export", "onnx=false"]) == 0
    capsys.readouterr()
    for source in ("run=one", "model=export"):
        assert cli.main(["predict", source, "text=a good film"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.endswith("\ta good film")
    for source in ("run=one", "model=export"):  # of one text a line, whatever is in it
        monkeypatch.setattr("sys.stdin", StringIO("a good\tfilm\n"))
        assert cli.main(["predict", source]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second and first.endswith("\ta good\tfilm")


def test_lines(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", StringIO("a good film\n\ndull\r\n"))
    assert cli.main(["predict", "run=one"]) == 0
    assert [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()] == ["a good film", "dull"]
    monkeypatch.setattr("sys.stdin", StringIO("a good film\tdull\n"))
    assert cli.main(["predict", "run=pairs"]) == 0
    assert capsys.readouterr().out.endswith("\ta good film\tdull\n")


def test_a_byte_order_mark_is_no_part_of_the_first_line(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO("\ufeffa good film\ndull\n".encode())))
    assert cli.main(["predict", "run=one"]) == 0
    assert [line.split("\t")[2] for line in capsys.readouterr().out.splitlines()] == ["a good film", "dull"]


def test_bytes_that_are_no_text_are_refused_also_where_a_locale_takes_them(place, capsys, monkeypatch):
    stdin = TextIOWrapper(
        BytesIO(b"a good film\n\xff\xfe dull\n"), encoding="utf-8", errors="surrogateescape"
    )
    monkeypatch.setattr("sys.stdin", stdin)
    assert cli.main(["predict", "run=one"]) == 2
    assert "standard input is not UTF-8 (invalid start byte): save it as UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run=one", "text="], "is empty"),
        (["run=one", "text=a", "text_b=b"], "give one text"),
        (["run=pairs", "text=a"], "give two texts"),
        (["run=none", "text=a"], "no run 'none'"),
        (["model=runs", "text=a"], "no config.json"),
        (["run=one", "to=x.csv"], "give file=FILE"),
        (["run=one", "file=none.csv"], "none.csv"),
        (["run=one", "file=other.csv"], "other.csv, line 2: no column 'text'"),
        (["run=one", "file=hole.csv", "to=x.csv"], "hole.csv, line 3 is empty"),
        (["run=one"], "there is no text"),
        (["run=one", "colour=red"], "unknown option 'colour'"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(place, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("sys.stdin", StringIO(""))
    Path("other.csv").write_text("review\na film\n")
    Path("hole.csv").write_text('text,n\na film,1\n" ",2\n')
    assert cli.main(["predict", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1, said
    assert not Path("x.csv").exists()


@pytest.fixture(params=["one", "pairs", "scores"])
def served(place, request):
    """(run, address) of a page that is served."""
    run = read_run_record(Path("runs") / request.param)
    with serve.make_server(run, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield run, f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def ask(address: str, body: bytes) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(address + "answer", data=body, timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_page_asks_and_is_answered(served, tmp_path):
    run, address = served
    texts = ["a good film", "a dull plot"][: len(run.text_columns)]
    status, found = ask(address, json.dumps({"texts": texts}).encode())
    assert status == 200 and found["labels"] == run.about.labels
    for name, of in (("teacher", "teacher"), ("student", "distilled")):
        assert found[name]["values"] == pytest.approx(
            Classifier.of_run(run, of)([texts])[0].tolist(), abs=1e-5
        )
        assert found[name]["milliseconds"] > 0
    for body in (b"", b"{}", b"[1]", b"\xff", b"[" * 9999, b'{"texts": 3}', b'{"texts": "ab"}',
                 b'{"texts": []}'):  # fmt: skip
        status, found = ask(address, body)
        assert status == 400 and found["error"].startswith('send {"texts": '), body
    for body, words in ((b"[3]", "not a string"), (b'[" "]', "empty"), (b'["a", "b", "c"]', "number of texts is 3"),
                        (b'["\\u0000"]', "NUL")):  # fmt: skip
        status, found = ask(address, b'{"texts": %b}' % body)
        assert status == 400 and words in found["error"], body
    assert ask(address, b" " * (serve.MAX_REQUEST_BYTES + 1))[0] == 413
    with urllib.request.urlopen(address, timeout=20) as reply:
        shown = reply.read().decode()
    assert "<script>alert" not in shown and "http" not in shown.replace("http-equiv", "").replace(
        "https://evil", ""
    )
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(address + "../secret", timeout=20)
    with pytest.raises(Exception, match="give another port="):
        serve.make_server(run, int(address.rsplit(":")[-1].strip("/")))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the page with")
def test_a_browser_shows_the_answers_and_its_console_is_empty(served, tmp_path):
    run, address = served
    asked = urllib.parse.quote("\t".join(["<b>good</b> film", "dull"][: len(run.text_columns)]))
    for flags in ((), ("--force-dark-mode", "--window-size=390,800")):
        done = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=8000",
                *flags, "--dump-dom", f"{address}#{asked}",
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert "× as fast." in done.stdout and '<div id="answers">' in done.stdout
        assert done.stdout.count('class="probability"') == 2 * len(run.about.labels or ())
        assert "<script>alert" not in done.stdout


def test_no_such_port(capsys):
    assert cli.main(["serve", "port=80000"]) == 2 and "port=80000" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_one_line(place, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(serve.ThreadingHTTPServer, "serve_forever", interrupted)
    monkeypatch.setattr(serve, "make_server", lambda run, port, make=serve.make_server: make(run, 0))
    assert cli.main(["serve", "run=one"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["", "ended"]


ODD = [
    {"text": "a good film", "note": 'tab\there, "quoted"\nand\r\nmore\rlines', "n": "1", "": "x"},
    {"text": 'dull, "really"', "note": "", "n": "007", "": " "},
    {"text": "x" * 200_000, "note": "é’日本\u2028", "n": "NA", "": "\\"},
]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_answers_to_answers_lose_nothing(place, capsys, suffix):
    """Whatever `predict` writes it reads again; what stood in the file before stays as it was, four times over."""
    from stages.tasks.tables import read_rows

    with open("odd.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([ODD[0], *(row.values() for row in ODD)])
    before = [{name or "column 4": value for name, value in row.items()} for row in ODD]
    previous = "odd.csv"
    for turn in range(4):
        target = f"odd-{turn}{suffix}"
        given = ("run=one", f"file={previous}", f"to={target}", "text_columns=text")
        assert cli.main(["predict", *given]) == 0, capsys.readouterr().err
        after = [row for _, row in read_rows(Path(target))]
        assert len(after) == 3
        for old, new in zip(before, after, strict=True):
            assert old.items() <= new.items() and len(new) == len(old) + 2
        before, previous = after, target
    assert [name for name in after[0] if "label" in name] == [
        "label", "predicted_label", "label2", "predicted_label2",
    ]  # fmt: skip
    assert cli.main(["predict", "run=one", f"file={target}", f"to={target}", "text_columns=text"]) == 0
    assert before[0].items() <= next(read_rows(Path(target)))[1].items()


def test_values_that_are_no_texts_are_written_as_json(place, capsys):
    Path("in.jsonl").write_text(
        '{"text": "fine", "tags": ["a", "b"], "on": true, "no": null, "x": {"y": 1.5}}\n'
    )
    assert cli.main(["predict", "run=scores", "file=in.jsonl"]) == 0
    row = next(csv.DictReader(StringIO(capsys.readouterr().out)))
    assert (
        row["tags"] == '["a", "b"]' and row["on"] == "true" and row["no"] == "" and row["x"] == '{"y": 1.5}'
    )
    assert cli.main(["predict", "run=scores", "file=in.jsonl", "to=out.jsonl"]) == 0
    assert json.loads(Path("out.jsonl").read_text())["tags"] == ["a", "b"]
    assert cli.main(["predict", "run=scores", "file=in.jsonl", "to=out.xlsx"]) == 2
    assert "to=out.xlsx: predictions are written as .csv, .tsv or .jsonl" in capsys.readouterr().err


def test_predict_reads_the_files_that_training_reads(place, capsys):
    Path("a.csv").write_bytes("text;n\nИ это хорошо;1\n".encode("cp1251"))
    assert cli.main(["predict", "run=one", "file=a.csv"]) == 2
    assert "encoding: a.csv, line 2: not UTF-8" in capsys.readouterr().err
    assert cli.main(["predict", "run=one", "file=a.csv", "encoding=cp1251", "delimiter=semicolon"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("И это хорошо;1;")


def test_predictions_of_a_table_with_semicolons_have_semicolons(place, capsys):
    Path("german.csv").write_text('text;note\na good film;"x;y"\nbad, poor;z\n')
    for target, start in (
        ("new/out.csv", 'a good film;"x;y";'),
        ("out.tsv", "a good film\tx;y\t"),
        ("", 'a good film;"x;y";'),
    ):
        assert cli.main(["predict", "run=one", "file=german.csv", f"to={target}"]) == 0
        said = capsys.readouterr().out
        assert (Path(target).read_text() if target else said).splitlines()[1].startswith(start)
    assert cli.main(["predict", "run=one", "file=out.tsv", "to=again.csv"]) == 0
    assert Path("again.csv").read_text().startswith("text,note,")
    assert cli.main(["predict", "run=one", "file=german.csv", "text=a film"]) == 2
    assert "text= and file= are two inputs: give one" in capsys.readouterr().err
