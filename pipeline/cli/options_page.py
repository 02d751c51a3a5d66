"""docs/options.md, made from the options themselves: `make docs` writes it."""

import inspect
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path

from pipeline.config.options import Options, describe, load, show

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """\
# Every option

Written by `make docs` from `pipeline/config/options.py`; `.venv/bin/python -m pipeline --help` shows the same, and what single commands take
besides (`to=`, `file=`, `port=`). Options go into `ARGS="key=value ..."` or, as YAML, into a file for `PRESET=my.yaml`. The command line wins
over the preset, the preset over the default. `small` is the preset where none is given: its column shows where it differs
([what it sets for single tasks](../pipeline/presets/small.yaml)).
"""


def page() -> str:
    """The page as Markdown: a table for each group of options."""
    small = load("small", [])
    groups = {entry.name: entry.type for entry in fields(Options) if is_dataclass(entry.type)}
    parts = [HEAD]
    for group, rows in groupby(describe(), lambda row: row[0].rpartition(".")[0]):
        title = f"`{group}`" if group else "The run"
        about = " ".join(inspect.getdoc(groups.get(group, Options)).split())
        parts.append(f"\n## {title}\n\n{about}\n\n| option | default | `small` | |\n|---|---|---|---|\n")
        for name, default, text in rows:
            value = small
            for part in name.split("."):
                value = getattr(value, part)
            given = "" if show(value) == default else show(value)
            parts.append(f"| `{name}` | {default} | {given} | {text.replace('<', '&lt;')} |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
