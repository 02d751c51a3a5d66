"""The demo ends with its pages and with what to do next."""

import re
from pathlib import Path

from pipeline.cli import commands


def test_the_demo_ends_with_its_page_and_three_commands_that_there_are(monkeypatch, capsys):
    given = {}
    monkeypatch.setenv("MAKELEVEL", "1")
    monkeypatch.setattr(
        commands, "make", lambda options, _: given.update(options) or [Path("runs/a"), Path("runs/b")]
    )
    monkeypatch.setattr(
        commands, "report", lambda settings: print(f"the report is in runs/{settings.run}/report.html")
    )
    assert commands.main(["demo", "seeds=1 2"]) == 0
    output = capsys.readouterr().out
    assert given["preset"] == "demo" and given["seeds"] == "1 2"
    assert "runs/a/report.html" in output and "runs/b/report.html" in output
    names = re.findall(r"^  make ([\w-]+) ", output.partition("What to do next:")[2], re.M)
    assert len(names) == 3 and set(names) <= commands.COMMANDS.keys() and "RUN=a " in output
