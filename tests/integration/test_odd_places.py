"""Odd data, odd places, odd clocks, through the commands: each works, or ends in one line that names what is odd."""

import copy
import csv
import json
import os
import shutil

import pytest

from checkpoints import fingerprint
from pipeline.cli.commands import main
from tests.conftest import sentences
from tests.integration.conftest import ROOT
from tests.integration.test_commands import refused

GIVEN = ("reuse=false", "student=teacher-layers")
SHORT = tuple(f"{stage}.epochs=1" for stage in ("tuning", "intermediate", "prediction"))
CLOCK_SET_BACK = """
import time
ten_years, now, now_ns = 10 * 365 * 86400, time.time, time.time_ns
time.time = lambda: now() - ten_years
time.time_ns = lambda: now_ns() - ten_years * 10**9
"""


@pytest.mark.slow
def test_a_half_done_run_moved_elsewhere_goes_on_though_the_clock_was_set_back(
    place, started_place, tmp_path
):
    """And with the times of its files in 1970 or to come; the finished run, moved again, is finished."""
    status, output = place.run("task-distill", "run=stays", *GIVEN)
    assert status == 0, output
    place.kill_during("moves", "intermediate", *GIVEN)
    there = tmp_path / "другое мес'то"
    there.mkdir()
    shutil.move(place.path / "runs" / "moves", there / "runs" / "moves")
    for i, path in enumerate(sorted((there / "runs").rglob("*"))):
        os.utime(path, (0, 0) if i % 2 else (4e9, 4e9))
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK_SET_BACK)
    moved = copy.copy(started_place)
    moved.path, moved.prefix = there, ["env", f"PYTHONPATH={tmp_path / 'clock'}{os.pathsep}{ROOT}"]
    data = [
        f"{name}={place.path / value}"
        for name, value in (("teacher", "teacher"), ("corpus", "corpus.txt"), ("data", "data"))
    ]
    status, output = moved.run("task-distill", "run=moves", *GIVEN, *data)
    assert status == 0 and "resumed at step" in output and "[teacher]" not in output, output
    year = json.loads((there / "runs/moves/prediction/finished.json").read_text())["time"][:4]
    assert moved.weights("moves") == place.weights("stays") and int(year) > 2000
    shutil.move(there / "runs", tmp_path / "runs")
    moved.path = tmp_path
    status, output = moved.run("task-distill", "run=moves", *GIVEN, *data)
    assert status == 0 and "starts" not in output and "resumes\n" not in output, output


@pytest.mark.parametrize("way", ["runs", "runs/.cache", "runs/odd", "runs/odd/.lock/x", "runs/odd/check"])
def test_what_is_in_the_way_is_named(place, tmp_path, monkeypatch, capsys, way):
    """As where the disk is read-only: a directory or a file cannot be made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "RECENT", -(10**19))  # hashes of new files are kept, too
    (tmp_path / "runs" / "odd").mkdir(parents=True)
    (tmp_path / "runs" / "odd" / "options.json").write_text("{}")
    path = tmp_path / way
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")
    given = [f"teacher={place.path / 'teacher'}", f"corpus={place.path / 'corpus.txt'}"]
    status, error = main(["general-distill", "run=odd", *given]), capsys.readouterr().err
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert way.removesuffix("/x") in error


def test_odd_rows_that_are_read(place):
    """A byte order mark, CRLF, quotes, line ends in quotes, 10,000 letters, ids that come twice, a NUL's neighbours."""
    (place.path / "odd").mkdir()
    for name, count in (("train", 40), ("dev", 12)):
        rows = [
            [i % 3, f"{text} {name}", "fresh" if label else "rotten"]
            for i, (text, label) in enumerate(sentences(count, count))
        ]
        rows[0][1] = "a good film " * 833
        rows[1][1], rows[2][1], rows[3][1] = 'he said "good', "two\r\nlines", "\u200b\x01\u2028dull\x85"
        with open(place.path / "odd" / f"{name}.csv", "w", newline="", encoding="utf-8-sig") as file:
            csv.writer(file, lineterminator="\r\n").writerows([["id", "text", "label"], *rows])
    status, output = place.run("task-distill", "run=oddrows", "data=odd", "task=odd", *GIVEN, *SHORT)
    assert status == 0 and "Traceback" not in output, output


def test_glue_files_of_one_class_with_empty_texts_and_lone_quotes_work(place):
    (place.path / "one").mkdir()
    texts = ['"', "", "  ", 'a "good film', *(text for text, _ in sentences(12, 4))]
    for name, label in (("train", 1), ("dev", 0)):  # a label seen only in dev
        lines = "".join(f"{text}\t{label}\r\n" for text in texts)
        (place.path / "one" / f"{name}.tsv").write_bytes(f"sentence\tlabel\r\n{lines}".encode())
    given = ("task=sst-2", "data=one", "text_columns=", "label_column=")
    status, output = place.run("task-distill", "run=one", *given, *GIVEN, *SHORT)
    assert status == 0 and "no better than a constant" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    "row, words",
    [
        (b"caf\x81,fresh", "encoding"),
        (b" \t ,fresh", "line 4: 'text' is empty"),
        (b"a\0b,fresh", "line 4 holds a NUL"),
        (b'"a,fresh', "line 4: not CSV"),
    ],
)
def test_odd_rows_that_are_refused_are_named(place, row, words):
    (place.path / "refused").mkdir(exist_ok=True)
    rows = [b"text,label", b"a,fresh", b"b,rotten", row, *(b"%d,fresh" % i for i in range(40))]
    (place.path / "refused" / "train.csv").write_bytes(b"\n".join(rows))
    refused(place, "task-distill", "run=refused", "data=refused", *GIVEN, words=[words, "train.csv"])
