"""Signals that stop a job."""

import os
import signal
import threading
from typing import Any


class StopSignal:
    """Remembers SIGINT and SIGTERM, so that a job stops at the end of its step. A second signal ends the process at once.

    Attributes:
        number: the number of the signal that came, 0 if none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over both signals, until `close`. No effect off the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before.setdefault(number, signal.signal(number, self._note))

    def close(self) -> None:
        """Restore the former handlers, and raise the caught signal again unless the job obeyed it."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self.number:
            signal.raise_signal(self.number)

    def obeyed(self) -> None:
        """Forget the signal: the job has saved, and ends."""
        self.number = 0

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            os._exit(128 + number)  # the last checkpoint stands
        self.number = number
