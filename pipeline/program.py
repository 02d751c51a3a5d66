"""How this program was started: by make, or as the command that pip installs."""

import re
import sys
from pathlib import Path

INSTALLED = "tinydistil"


def as_started(text: str) -> str:
    """The commands in a text, as they are typed where this program was started as `tinydistil`.

    Example:
        >>> sys.argv[0] = "/usr/bin/tinydistil"
        >>> as_started('make export RUN=mine ARGS="to=my-student"        # files')
        'tinydistil export run=mine to=my-student        # files'
    """
    if Path(sys.argv[0]).name != INSTALLED:
        return text
    text = text.replace("python -m pipeline", INSTALLED)
    return re.sub(r'\bmake ([a-z-]+)((?: [A-Z]+=(?:"[^"]*"|[^\s"]+))*)', _typed, text)


def _typed(command: re.Match[str]) -> str:
    given = re.findall(r'([A-Z]+)=("[^"]*"|\S+)', command[2])
    words = [value.strip('"') if name == "ARGS" else f"{name.lower()}={value}" for name, value in given]
    return " ".join([INSTALLED, command[1], *words])
