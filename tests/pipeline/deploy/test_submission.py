"""Several runs' answers become one submission to GLUE's site."""

import zipfile
from pathlib import Path

import pytest

from pipeline.cli import commands
from pipeline.cli.commands import main
from pipeline.deploy.submission import FILES


def answered(runs: Path, name: str, **files: str) -> None:
    run = runs / name
    run.mkdir(parents=True)
    for file in ("options.json", "results.json"):
        (run / file).write_text('{"any": 1}')
    if files:
        with zipfile.ZipFile(run / "glue_submission.zip", "w") as archive:
            for file, text in files.items():
                archive.writestr(f"{file}.tsv", text)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert not commands.RUNS.is_absolute()
    answered(tmp_path / "runs", "a-rte", RTE="index\tprediction\n0\tentailment\n")
    answered(tmp_path / "runs", "b-rte", RTE="index\tprediction\n0\tnot_entailment\n")
    answered(tmp_path / "runs", "cola", CoLA="index\tprediction\n0\t1\n")
    answered(tmp_path / "runs", "reviews")
    return tmp_path / "runs"


def test_the_answers_of_all_runs_are_in_one_file_and_what_is_missing_is_said(runs, capsys):
    assert main(["submission", "runs=b-rte cola"]) == 0
    told = capsys.readouterr().out
    with zipfile.ZipFile(runs / "glue_submission.zip") as archive:
        assert archive.namelist() == ["CoLA.tsv", "RTE.tsv"]
        assert archive.read("RTE.tsv") == b"index\tprediction\n0\tnot_entailment\n"
    assert len(FILES) == 11 and told.count("missing") == 9 and "without 9 of 11 files" in told
    assert any(line.split() == ["RTE.tsv", "rte", "b-rte"] for line in told.splitlines()), told


@pytest.mark.parametrize(
    "given, words",
    [
        ([], "a-rte and b-rte both answer RTE.tsv: name one of them in runs="),
        (["runs=reviews"], "run 'reviews' has no answers to test rows of GLUE"),
        (["runs=nosuch"], "there is no run 'nosuch'"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_a_line(runs, capsys, given, words):
    assert main(["submission", *given]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (runs / "glue_submission.zip").exists()


def test_a_damaged_file_of_answers_is_named(runs, capsys):
    (runs / "cola" / "glue_submission.zip").write_bytes(b"PK")
    assert main(["submission", "runs=b-rte cola"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "cola/glue_submission.zip is damaged (File is not a zip file): remove runs/cola/evaluate" in line
    assert not (runs / "glue_submission.zip").exists()


def test_damage_inside_of_a_file_of_answers_is_named(runs, capsys):
    path = runs / "cola" / "glue_submission.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("CoLA.tsv", "index\tprediction\n" + "".join(f"{i}\t1\n" for i in range(99)))
    content = bytearray(path.read_bytes())
    content[38] |= 0b110  # the first byte of the compressed answers: a block of a type that there is not
    path.write_bytes(content)
    assert main(["submission", "runs=b-rte cola"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert (
        "cola/glue_submission.zip is damaged (Error -3 while decompressing data: invalid block type" in line
    )
