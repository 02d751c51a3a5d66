"""docs/options.md, made from the options themselves: `make docs` writes it."""

import inspect
from dataclasses import fields, is_dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from pipeline.config.options import Options, load
from pipeline.config.schema import describe, show

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """\
# Every option

`make docs` writes this page from the options themselves. `.venv/bin/python -m pipeline COMMAND --help` shows the options of each command.

Options go into `ARGS="key=value ..."` or, as YAML, into a file for `PRESET=my.yaml`. The command line wins over the preset, the preset over
the default. A preset may begin with `extends: other`. Where no preset is given it is `small`: its column shows where it differs
([what it sets for single tasks](../pipeline/config/presets/small.yaml)).
"""


def page() -> str:
    """The page as Markdown: a table for each group of options."""
    small = load("small", [])
    groups = {entry.name: entry.type for entry in fields(Options) if is_dataclass(entry.type)}
    parts = [HEAD]
    for group, settings in groupby(describe(Options), lambda setting: setting.name.rpartition(".")[0]):
        title = f"`{group}`" if group else "The run"
        about = " ".join((inspect.getdoc(groups.get(group, Options)) or "").split())
        parts.append(f"\n## {title}\n\n{about}\n\n| option | default | `small` | |\n|---|---|---|---|\n")
        for setting in settings:
            value = attrgetter(setting.name)(small)
            default = show(setting.default)
            given = "" if show(value) == default else show(value)
            text = setting.help.replace("<", "&lt;").replace("|", "\\|")
            parts.append(f"| `{setting.name}` | {default} | {given} | {text} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
