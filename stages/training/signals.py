"""Signals that stop a job."""

import os
import signal
import threading


class StopSignal:
    """Remembers SIGINT and SIGTERM, so that a job stops at the end of its step. A second signal ends the process at once.

    Attributes:
        number: of the signal that came, 0 if none.
    """

    def __init__(self) -> None:
        self.number = 0

    def listen(self) -> None:
        """Take over both signals, until the process ends. Python lets the main thread alone do so."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
            signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, frame: object) -> None:
        if self.number:
            os._exit(128 + number)  # the last checkpoint stands
        self.number = number
