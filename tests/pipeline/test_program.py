"""Commands in what is printed are those that the user has."""

import re
import sys

import pytest

from pipeline.cli.commands import COMMANDS, main
from pipeline.program import as_started


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
    assert as_started(text) == text
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tinydistil", "report"])
    assert as_started(text) == typed


def test_no_help_of_the_installed_command_names_make(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/tinydistil"])
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        found = capsys.readouterr().out
        assert f"usage: tinydistil {name}" in found and f"Example: tinydistil {name}" in found
        assert "python -m" not in found
        assert set(re.findall("tinydistil ([a-z-]+)", found)) <= set(COMMANDS)
