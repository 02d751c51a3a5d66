"""How this program was started: by make, as the command that pip installs, or by Python."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

INSTALLED = "tinydistil"


def as_started(text: str) -> str:
    """The commands in a text, as they are typed where this program was started otherwise than by make.

    Example:
        >>> sys.argv[0] = "/usr/bin/tinydistil"
        >>> as_started('make export RUN=mine ARGS="to=my-student"        # files')
        'tinydistil export run=mine to=my-student        # files'
    """
    installed = Path(sys.argv[0]).name == INSTALLED
    program = INSTALLED if installed else f"{python()} -m pipeline"
    text = text.replace("python -m pipeline", program)
    if "MAKELEVEL" in os.environ and not installed:  # make sets it
        return text

    def typed(command: re.Match[str]) -> str:
        given = re.findall(r'([A-Z]+)=("[^"]*"|\S+)', command[2])
        words = [v.strip('"') if name == "ARGS" else f"{name.lower()}={v}" for name, v in given]
        return " ".join([program, command[1], *words])

    return re.sub(r'\bmake ([a-z-]+)((?: [A-Z]+=(?:"[^"]*"|[^\s"]+))*)', typed, text)


def python() -> str:
    """What to type in a shell in this directory to start this Python."""
    found = shutil.which("python")
    return "python" if found and Path(found) == Path(sys.executable) else near(Path(sys.executable))


def near(path: Path) -> str:
    """What to type in a shell in this directory for a path: relative, if it lies below."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))
