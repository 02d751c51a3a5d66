"""Ctrl-C and SIGTERM of a command: noted from its first line on, so that none is lost.

A handler that only raises is not enough. Python forgets an exception that is raised while a finaliser or a callback
runs, and a library may catch one that is raised during its import. So the signal is noted as well, and looked at before
each stage and at the end. While a stage runs, the launcher passes signals on to it instead.
"""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_came = 0


def listen() -> None:
    """From now on the first signal is noted and raised. A second one ends the process at once."""
    for number in SIGNALS:
        signal.signal(number, _note)


def look() -> None:
    """Raise the signal that came, if one did.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        SystemExit: it was SIGTERM.
    """
    if _came:
        raise exception_of(_came)


def status() -> int:
    """The exit status for the signal that came, 0 if none did."""
    return 128 + _came if _came else 0


def exception_of(number: int) -> BaseException:
    """What a signal raises: Python's own KeyboardInterrupt, or a SystemExit of the status that a shell expects."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def _note(number: int, frame: FrameType | None) -> None:
    global _came
    if _came:
        os._exit(128 + number)
    _came = number
    raise exception_of(number)
