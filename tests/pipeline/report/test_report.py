"""The pages: everything from data is escaped, nothing is loaded, and a browser has nothing to complain about."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from pipeline.cli import commands as cli
from pipeline.config.run_options import load
from pipeline.report.page import write_comparison, write_report
from pipeline.report.pareto import write_pareto
from pipeline.report.run_record import read_run_record
from pipeline.report.tables import notes_of, results_table, runs_table

EVIL = "<script>alert(1)</script> \"'>$x_1$ & {{ 7 * 7 }}"
LABELS = ["good", EVIL]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def make_run(path: Path, labels: list[str] | None = LABELS, given=(), augmented: bool = True) -> Path:
    """What a finished run leaves, with hostile text wherever text comes from data."""
    bins = [{"rows": 5, "confidence": 0.7, "accuracy": 0.6}, {"rows": 3, "confidence": 0.95, "accuracy": 1.0}]
    metrics = ("accuracy", "f1") if labels else ("pearson", "spearman")
    percentiles = {"p50": 2.0, "p90": 3.0, "p99": 4.0}
    entry = {
        "metric": 0.75, "scores": dict.fromkeys(metrics, 0.75), "intervals": dict.fromkeys(metrics, [0.7, 0.8]),
        "retained": 0.9, "retained_interval": [0.8, 1.0], "parameters": 7_000_000, "bytes": 28_000_000, "flops": 5e7,
        "costs": {
            "latency": percentiles, "batch": percentiles, "rows_per_second": 500.0, "threads": 2,
            "lengths": {"mean": 9.0, "least": 3, "most": 20},
        },
    }  # fmt: skip
    if labels:
        entry["calibration"] = {
            "bins": bins, "bins_scaled": bins, "error": 0.1, "error_scaled": 0.05, "temperature": 1.4
        }  # fmt: skip
        entry["confusion"] = [[5, 1], [2, 0]]
        entry["classes"] = [{"precision": 0.7, "recall": 0.8, "f1": 0.75, "rows": n} for n in (6, 2)]
    student = entry | (
        {"label_loyalty": 0.9, "probability_loyalty": 0.8} if labels else {"pearson_to_teacher": 0.9}
    )
    row = {"row": 3, "texts": [EVIL, "https://evil.example/x.js"], "label": 1}
    row |= {"student": [0.9, 0.1], "teacher": [0.2, 0.8]} if labels else {"student": [0.3], "teacher": [1.5]}
    results = {"teacher": entry, "finetuned": student, "distilled": student | {"differ_most": [row]}}

    about = {"split": "test", "rows": 8, "selection": metrics[0], "constant": 0.5, "labels": labels}
    about["kind"] = "classes" if labels else "scores"
    about["student"] = "distilled"
    task = {
        "name": "tiny",
        "identity": {"reader": "files", "files": {"train": EVIL}},
        "content": {"train": "abc"},
    }
    training = {"dev": 0.7, "metric": metrics[0], "steps": 20}
    lines = [
        {"step": s, "epoch": 0, "soft_labels": 1 / s, "tokens_per_second": 9, "seconds": s} for s in (10, 20)
    ]
    lines += [{"step": 20, "epoch": 0, "dev": 0.7, "best": True}]
    stages = {
        "check": ("check", {"flops": 1e12}, []),
        "augment": ("augment", {"variants": 1}, []),
        "prediction-learning_rate=0.1": ("prediction", training, lines),
        "prediction-learning_rate=0.2": ("prediction", training, lines),
        "prediction": ("select", training | {
            "chosen": "prediction-learning_rate=0.2",
            "candidates": {f"prediction-learning_rate=0.{i}": training for i in (1, 2)},
        }, []),
        "evaluate": ("evaluate", about, []),
    }  # fmt: skip
    if not augmented:
        del stages["augment"]
    machine = {
        "processor": EVIL,
        "cores": 2,
        "memory": 8e9,
        "system": "Linux",
        "python": "3.11",
        "torch": "2",
    }
    for name, (kind, scores, logged) in stages.items():
        (path / name / "model").mkdir(parents=True)
        options = {"models": list(results)} if kind == "evaluate" else {}
        spec = {"name": name, "stage_type": kind, "inputs": {"task": task}, "options": options}
        finished = {
            "fingerprint": name,
            "scores": scores,
            "time": "2026-01-01",
            "machine": machine,
            "seconds_of_last_start": 30.0,
        }
        (path / name / "stage.json").write_text(json.dumps(spec))
        (path / name / "finished.json").write_text(json.dumps(finished))
        if logged:
            (path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in logged))
        if kind == "augment":
            (path / name / "model" / "samples.txt").write_text(f"{EVIL}\n\n3 variants of {EVIL}\n")
    options = asdict(load("small", ["task=tiny", f"data={EVIL}", *given]))
    options |= {"run": path.name, "preset": "small", "stages": list(stages)}
    (path / "options.json").write_text(json.dumps(options))
    (path / "results.json").write_text(json.dumps(results))
    return path


@pytest.fixture
def pages(tmp_path) -> dict[str, Path]:
    """A report of classes, one of scores, and a comparison."""
    run, other = (
        read_run_record(make_run(tmp_path / "a run")),
        read_run_record(make_run(tmp_path / "b", given=["seed=7"])),
    )
    scores = read_run_record(make_run(tmp_path / "scores", labels=None, augmented=False))
    made = {name: tmp_path / f"{name}.html" for name in ("report", "scores", "compare")}
    write_report(run, [other, scores], made["report"])
    write_report(scores, [], made["scores"])
    write_comparison([run, other], made["compare"])
    return made


class Loads(HTMLParser):
    """What a page would load or run."""

    def __init__(self):
        super().__init__()
        self.found, self.tags = [], set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.found += [
            value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action")
        ]
        self.found += [name for name, _ in attributes if name.startswith("on")]


def test_text_from_data_is_escaped_and_nothing_is_loaded(pages):
    for path in pages.values():
        page = path.read_text()
        parser = Loads()
        parser.feed(page)
        assert not parser.tags & {"script", "iframe", "object", "embed", "base", "form"}
        assert all(value.startswith(("#", "data:")) for value in parser.found), parser.found
        assert not re.findall(r"@import|url\((?!#)", page)
        assert "default-src 'none'" in page
        assert "{{" not in page.replace("{{ 7 * 7 }}", "")
    report = pages["report"].read_text()
    assert "https://evil.example" in report  # as text
    assert report.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 10
    assert "90.0% of the teacher" in report and "chosen: prediction-learning_rate=0.2" in report
    assert "of 1 other run on the same rows" in report
    assert "Pearson with teacher" in pages["scores"].read_text()
    compared = pages["compare"].read_text()
    assert "<code>seed</code>" in compared and "learning rate=0.1" not in compared


def console(page: Path, tmp_path: Path, *flags: str) -> tuple[list[str], str]:
    """What a browser's console says of a page, and the page as the browser has it."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", *flags, "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed to open the pages with")
def test_a_browser_shows_the_pages_and_its_console_is_empty(pages, tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text(
        pages["report"].read_text().replace("</main>", "<img src='https://evil.example/x.png'></main>")
    )
    assert console(bad, tmp_path)[0], "the console is not heard"
    narrow = ("--force-dark-mode", "--window-size=390,800")
    for path, *flags in [*((path,) for path in pages.values()), (pages["report"], *narrow)]:
        said, shown = console(path, tmp_path, *flags)
        assert not said
        assert "<h1>" in shown and "</footer>" in shown and shown.count("<img") >= 3


def test_the_command_of_a_run_reads_back_as_its_options(tmp_path):
    given = [
        "seed=3",
        "text_columns=[one, 'two, too']",
        "prediction.grid={learning_rate: [1e-5, 3e-5]}",
        "finetuning.grid=",
    ]
    run = read_run_record(make_run(tmp_path / "again", given=given))
    words = shlex.split(run.command())
    assert words[:4] == ["python", "-m", "pipeline", "task-distill"] and words[4] == "preset=small"
    assert asdict(load("small", words[5:])) == run.options | {"run": "again", "preset": "small"}


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_a_terminal(tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    runs = [
        read_run_record(make_run(tmp_path / name, labels)) for name, labels in (("a", LABELS), ("b", None))
    ]
    for text in (results_table(runs[0]), results_table(runs[1]), runs_table(runs)):
        assert max(map(len, text.splitlines())) <= columns, text
    assert "ECE" in results_table(runs[0]) and "Pearson with teacher" in results_table(runs[1])


@pytest.mark.parametrize(
    "labels, heads",
    [
        (["1", "5"], ["gold", "1", "5"]),
        (
            ["gold", "silver"],
            ["gold", "0", "gold", "1", "silver"],
        ),  # no column replaces that of the gold labels
        (["a-long-name-1", "a-long-name-2"], ["gold", "0", "a-long-...", "1", "a-long-..."]),
    ],
)
def test_classes_of_the_confusion_have_their_names_alone_if_they_differ(tmp_path, labels, heads):
    table = results_table(read_run_record(make_run(tmp_path, labels)))
    confusion = table.split("predicted labels across\n\n")[1].splitlines()
    assert confusion[0].split() == heads
    assert [line.split()[-2:] for line in confusion[2:4]] == [["5", "1"], ["2", "0"]]


def test_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        make_run(tmp_path / "runs" / name)
    shutil.copytree("runs/one", "runs/one more")
    assert cli.main(["compare", "runs=one more, two"]) == 0 and "\none more  " in capsys.readouterr().out
    shutil.rmtree("runs/one more")
    assert cli.main(["report", "run=one"]) == 0 and Path("runs/one/report.html").is_file()
    assert cli.main(["compare", "runs=one two", "to=side.html"]) == 0 and Path("side.html").is_file()
    assert "two  " in capsys.readouterr().out
    for arguments, words in (
        (["compare", "runs=one"], "two runs or more"),
        (["compare", "runs=one three"], "no run 'three'"),
        (["report", "runs=one"], "unknown option 'runs'"),
    ):
        assert cli.main(arguments) == 2 and words in capsys.readouterr().err
    record = Path("runs/two/evaluate/finished.json")
    old = json.loads(record.read_text())
    for change, words in (
        ({"kind": "riddles"}, "has a kind of task that this version lacks, 'riddles'"),
        ({"student": None}, "was evaluated by another version"),
    ):
        record.write_text(json.dumps(old | {"scores": old["scores"] | change}))
        assert cli.main(["report", "run=two"]) == 2
        assert words in capsys.readouterr().err
    with pytest.raises(UserError):
        read_run_record(Path("runs/two"))
    assert cli.main(["report", "run=one"]) == 0  # and is passed over as a point
    capsys.readouterr()
    assert cli.main(["pareto"]) == 0
    assert "left out: run 'two' was evaluated by another version" in capsys.readouterr().out
    shutil.rmtree("runs/one")
    assert cli.main(["pareto"]) == 2
    out, said = capsys.readouterr()
    assert out.startswith("left out: run 'two' was") and said.startswith("error: no other finished run")
    Path("runs/two/options.json").write_text(json.dumps({"stages": ["check", "general"]}))
    assert cli.main(["report", "run=two"]) == 2
    assert "run 'two' has no results: its command (general-distill or augment)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("results.json", "its results.json lacks 'teacher'"),
        ("options.json", "its options.json is incomplete"),
    ],
)
def test_a_run_with_a_torn_file_is_left_out_of_the_others_report(tmp_path, monkeypatch, capsys, file, words):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        make_run(tmp_path / "runs" / name)
    Path("runs/two", file).write_text("{}")
    assert cli.main(["report", "run=one"]) == 0
    capsys.readouterr()
    assert cli.main(["pareto"]) == 0
    assert f"left out: run 'two': {words}: run the run's own" in capsys.readouterr().out


def test_start_up_needs_no_plots():
    code = "import sys, pipeline.cli.commands; print({'matplotlib', 'jinja2', 'torch'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "set()"


def test_a_busy_machine_and_the_class_of_f1_are_told(tmp_path):
    make_run(tmp_path / "runs" / "one", ["bad", "good"])
    path = tmp_path / "runs" / "one" / "results.json"
    run = read_run_record(path.parent)
    assert "F1 is that of the class 'good'" in results_table(run) and "busy machine" not in results_table(run)
    results = json.loads(path.read_text())
    results["distilled"]["costs"]["waiting"] = 0.4
    path.write_text(json.dumps(results))
    run = read_run_record(path.parent)
    assert "measured on a busy machine (threads waited 40% of the time" in results_table(run)
    write_report(run, [], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "measured on a busy machine" in page and "F1 is that of the class" in page
    other = read_run_record(make_run(tmp_path / "runs" / "two", ["good", "bad"]))
    assert notes_of([run, run]) == [run.f1_note, run.busy_note] and all(notes_of([run, run]))
    notes = [f"one: {run.f1_note}", f"one: {run.busy_note}", "two: F1 is that of the class 'bad'"]
    assert notes_of([run, other]) == notes and runs_table([run, other]).endswith("\n".join(notes))
    assert all(note in write_pareto([run, other], tmp_path / "front") for note in notes)
    write_comparison([run, other], tmp_path / "compare.html")
    assert (tmp_path / "compare.html").read_text().count('<p class="note">') >= 4
    assert run.same_rows(other)
    run.about, other.about = (replace(of.about, selection="f1") for of in (run, other))
    assert not run.same_rows(other)
    warning = "warning: other metrics, or other rows: these numbers cannot be compared"
    assert warning in runs_table([run, other]).splitlines() and warning not in runs_table([run, run])
    with pytest.raises(UserError, match="to: .* is a directory; give the name of an HTML file"):
        write_report(run, [], tmp_path)
