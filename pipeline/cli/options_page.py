"""docs/options.md, made from the options themselves: `make docs` writes it."""

import inspect
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from pipeline.config.run_options import Options, load
from pipeline.config.schema import describe, groups_of, show

PAGE = Path(__file__).parents[2] / "docs" / "options.md"
SHOWN_PRESETS = ("small", "layers", "compact", "tinybert4", "tinybert6")
HEAD = """\
# Every option

`make docs` writes this page from the options themselves. `.venv/bin/python -m pipeline COMMAND --help` shows the options of each command.

Options go into `ARGS="key=value ..."` or, as YAML, into a file for `PRESET=my.yaml`. The command line wins over the preset, and the preset
over the default. A preset may begin with `extends: other`. A recipe's options win even over its preset's for single tasks. If you
give no preset, it is `small`: the column of that name shows its value if that is not the default.
"""
PRESETS_HEAD = """
## Presets

All options whose value is not the default in one of the presets. The presets also set a few options for single tasks:
[small](../pipeline/config/presets/small.yaml), [layers](../pipeline/config/presets/layers.yaml), [compact](../pipeline/config/presets/compact.yaml), [tinybert4](../pipeline/config/presets/tinybert4.yaml) (and so tinybert6).

"""


def page() -> str:
    """The page as Markdown: a table for each group of options."""
    small = load("small", [])
    groups = groups_of(Options)
    parts = [HEAD, PRESETS_HEAD, _presets()]
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


def _presets() -> str:
    """A table of what the presets set."""
    presets = [load(name, []) for name in SHOWN_PRESETS]
    lines = [
        f"| option | default | {' | '.join(f'`{name}`' for name in SHOWN_PRESETS)} |\n{'|---' * (2 + len(SHOWN_PRESETS))}|\n"
    ]
    for setting in describe(Options):
        default = show(setting.default)
        values = [show(attrgetter(setting.name)(preset)) for preset in presets]
        if setting.name != "preset" and set(values) != {default}:
            lines.append(f"| `{setting.name}` | {default} | {' | '.join(values)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
