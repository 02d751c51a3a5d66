"""The front of the commands: help, and arguments that are refused before anything is imported."""

import pytest

from pipeline.cli.commands import COMMANDS, main
from pipeline.config.recipe import UNUSED
from pipeline.config.schema import describe
from pipeline.program import python


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_does_shows_an_example_and_lists_its_options(name, capsys, monkeypatch):
    monkeypatch.setenv("MAKELEVEL", "1")
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    program = f"{python()} -m pipeline"
    given = " [key=value ...]" if describe(COMMANDS[name].settings) else ""
    assert text.startswith(f"usage: {program} {name}{given}\n") and f"Example: make {name}" in text
    for setting in describe(COMMANDS[name].settings):
        unused = name == "recipe" and setting.name.split(".")[0] in UNUSED
        assert (f"\n  {setting.name} " in text) != unused, setting.name
    assert max(map(len, text.splitlines())) <= 120


def test_help_lists_the_commands_and_no_command_is_a_mistake(capsys):
    for arguments, status in (["--help"], 0), (["help"], 0), (["-h"], 0), ([], 2):
        assert main(arguments) == status
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task-distil"], "did you mean task-distill"),
        (
            ["task-distill", "general.epochs=0", "--job.zero=7"],
            "epochs=0 must be greater than 0; job.zero=7 must",
        ),
        (["general-distill", "--genral.epochs", "2"], "did you mean general.epochs"),
        (["serve", "--port", "70000"], "port=70000 must be less than or equal to 65535"),
        (["serve", "port"], "'port' has no value: write key=value or --key value"),
        (["report", "--to"], "'--to' has no value: write --to VALUE"),
        (["predict", "model=nowhere", "file=no.csv"], "file: no.csv: no such file; give a table of texts"),
        (["predict", "model=nowhere", "file=."], "file: .: it is a directory; give a table of texts"),
        (["export", "onnx=int9"], "onnx.0='int9' must be 'int8', 'int8_static' or 'fp16'"),
        (["recipes", "x=1"], "unknown option 'x'"),
        (["export", "run=a\0b"], "NUL"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, said = capsys.readouterr()
    assert not out and words in said and said.startswith("error: ") and len(said.splitlines()) == 1


@pytest.mark.parametrize(("name", "preset", "epochs"), [("task-distill", "small", 6), ("demo", "demo", 3)])
def test_help_shows_the_values_that_hold_if_none_is_given(name, preset, epochs, capsys):
    main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("  preset ")) and f"preset {preset}" in "".join(
        lines
    )
    assert next(line for line in lines if line.startswith("  intermediate.epochs ")).endswith(f"[{epochs}]")


def test_the_help_of_recipe_tells_what_each_group_of_lines_is(capsys):
    main(["recipe", "--help"])
    heads, head = {}, ""
    for block in capsys.readouterr().out.split("\n\n"):
        if block.startswith("  "):
            assert head not in heads, "two groups of one heading"
            heads |= {head: {line.split()[0] for line in block.splitlines() if line[2] != " "}}
        head = block
    of = {name: head for head, names in heads.items() for name in names}
    assert of["students"] == of["grid"] == "Lines of a recipe, beside the options below"
    assert of["losses"] == of["layer_map"] and of["losses"].startswith("Lines of a student: under base")
    assert of["training.batch_size"].startswith("How a recipe's student learns from rows")
    assert of["training.tokens"].startswith("How a recipe's student learns from unlabelled text")
    assert of["seeds"].startswith("Options, in brackets")
