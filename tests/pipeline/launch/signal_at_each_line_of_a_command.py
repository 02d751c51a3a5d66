"""Makes two runs again and again, each time with a signal at the next line of `pipeline`: none may be lost.

Run as `python -m tests.pipeline.launch.signal_at_each_line_of_a_command DIRECTORY HOW NUMBER`. HOW is "raised", or
"swallowed": the signal then comes while a finaliser runs, whose exceptions Python forgets. NUMBER is that of the signal.
What runs the stages is replaced, so that a command takes milliseconds.
"""

import io
import json
import mmap
import os
import sys
from pathlib import Path

import pipeline
from pipeline import __main__ as command
from pipeline.launch import launcher
from pipeline.report import tables  # noqa: F401 (imported before the lines are counted)

HERE = pipeline.__path__[0]
SENT, STARTED, ENDED = 0, 1, 2
"""Places in the memory shared with a fork: the signal came; stages that started after it; stages in all."""


class Stages:
    """Stands in for the fork server: finishes a stage at once, or stops it where a signal is passed on to it."""

    def __init__(self, run: Path):
        self.process, self.number = self, 0  # a signal that was passed on

    def send_signal(self, number: int) -> None:
        self.number = number

    def run_stage(self, stage: Path, ranks: int) -> int:
        if self.number:
            return 128 + self.number
        SHARED[STARTED] += SHARED[SENT]
        SHARED[ENDED] += 1
        spec = json.loads((stage / "stage.json").read_text())
        (stage / "model").mkdir()
        (stage / "model" / "manifest.json").write_text('{"files": {}}')
        (stage / "finished.json").write_text(json.dumps({"fingerprint": spec["fingerprint"], "scores": {}}))
        return 0

    def close(self) -> None:
        pass


class Finalised:
    """Sends a signal while it is finalised."""

    def __init__(self, number: int):
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(3):  # Python handles a signal between two instructions
            pass


class Tracer:
    """Sends a signal before the `line`-th line of pipeline that runs."""

    def __init__(self, line: int, swallowed: bool, number: int):
        self.line, self.swallowed, self.number = line, swallowed, number
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line" and not SHARED[SENT]:
            self.seen.add((frame.f_code.co_filename, frame.f_lineno))
            if len(self.seen) == self.line:
                SHARED[SENT] = 1
                if self.swallowed:
                    Finalised(self.number)
                else:
                    os.kill(os.getpid(), self.number)
        return self


def run_command(name: str) -> int:
    """The exit status of a command that makes two runs of that name."""
    sys.argv[1:] = ["general-distill", f"run={name}", "seeds=1 2", "reuse=false", *GIVEN]
    try:
        command.run()
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:  # at the last line of all
        return 130


def interrupted(line: int, swallowed: bool, number: int) -> int:
    """The exit status of a fork that runs the command, with a signal at that line."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    sys.unraisablehook, sys.stderr = lambda _: None, io.StringIO()
    sys.settrace(Tracer(line, swallowed, number))
    status = run_command(f"at{line}")
    sys.settrace(None)
    os._exit(status)


GIVEN = ("teacher=bert", "corpus=corpus.txt")
SHARED = mmap.mmap(-1, 3)


def main() -> int:
    """Returns 1 if a signal was lost."""
    directory, swallowed, number = Path(sys.argv[1]), sys.argv[2] == "swallowed", int(sys.argv[3])
    told, sys.stdout = sys.stdout, io.StringIO()
    os.chdir(directory)
    launcher._ForkServer = Stages
    run_command("first")  # imports what the forks then have
    if SHARED[ENDED] != 4:
        print(f"{SHARED[ENDED]} stages ran instead of 4", file=told)
        return 1
    for sent in range(1000):
        SHARED[:] = bytes(3)
        status = interrupted(sent + 1, swallowed, number)
        if not SHARED[SENT]:
            print(f"{sent} signals", file=told)
            return int(sent < 100)
        if status != 128 + number or SHARED[STARTED]:
            where = f"line {sent + 1}: status {status}, {SHARED[STARTED]} stages started after the signal"
            print(f"lost at {where}", file=told)
            return 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
