"""Processes that tokenize. Each writes shards of rows, one after the other, and dies with the process that started it.

They are programs of their own, not forks: a rank has threads (of torch, gloo or CUDA), which a fork would not survive.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from checkpoints import store
from checkpoints.errors import UserError
from stages.tasks.row_maker import RowMaker
from stages.tasks.token_rows import write_shard
from stages.tasks.types import Split


@dataclass(frozen=True)
class Shard:
    """A shard to write.

    Attributes:
        content: documents, or rows of a task.
        first_row: number of its first row. Rows' numbers seed the places at which rows of a corpus are cut in two.
        last: whether no shard of its part follows.
    """

    path: Path
    content: list[str] | list[Split]
    first_row: int
    last: bool


def write(maker: RowMaker, shard: Shard) -> int:
    """Tokenize a shard and seal it. Returns the number of its tokens."""
    blocks = maker.blocks(shard.content, shard.first_row)
    with store.sealed(shard.path, shared=True) as directory:
        return write_shard(maker, blocks, directory, first=shard.first_row == 0, last=shard.last)


def write_all(maker: RowMaker, shards: Iterable[Shard], processes: int) -> Generator[int]:
    """Write shards, and yield the number of tokens of each when it is there.

    Args:
        shards: read as a stream; while processes work, one more is read.
        processes: how many at most; with one the caller's own does the work.

    Raises:
        UserError: as of `write_shard`; the disk is full; or a process was killed.
    """
    if processes == 1:
        yield from (write(maker, shard) for shard in shards)
        return
    working: dict[Any, subprocess.Popen[bytes]] = {}  # by the stream of their answers
    idle: list[subprocess.Popen[bytes]] = []
    started: list[subprocess.Popen[bytes]] = []

    def answers(timeout: float | None = None) -> Iterator[int]:
        for stream in wait(list(working), timeout):
            yield _answer(stream)
            idle.append(working.pop(stream))

    try:
        for shard in shards:
            yield from answers(timeout=0)
            if not idle and len(started) < processes:
                started.append(_start(maker))
                idle.append(started[-1])
            while not idle:
                yield from answers()
            process = idle.pop()
            _send(process, shard)
            working[process.stdout] = process
        while working:
            yield from answers()
    finally:
        for process in started:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            process.stdout.close()  # type: ignore[union-attr]


def _start(maker: RowMaker) -> subprocess.Popen[bytes]:
    """Start a process. It has a process group of its own, so that Ctrl-C ends only its parent, and it with that."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}, process_group=0,
    )  # fmt: skip
    _send(process, maker)
    return process


def _send(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin
    try:
        pickle.dump(value, process.stdin)
        process.stdin.flush()
    except BrokenPipeError:
        raise _ended() from None


def _answer(stream: Any) -> int:
    try:
        found = pickle.load(stream)
    except EOFError:
        raise _ended() from None
    if isinstance(found, Exception):
        raise found
    return found


def _ended() -> UserError:
    return UserError(
        "a process that tokenizes was killed (is there too little memory?); run the same command again with fewer processes",
        argument="workers",
    )


def main() -> None:
    """Write the shards that come through standard input; answer each with its tokens, or with an exception."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: when the parent dies
        if os.getppid() != int(sys.argv[1]):
            return
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else may stand between the answers
    maker = pickle.load(sys.stdin.buffer)
    while True:
        try:
            shard = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        found: int | Exception
        try:
            found = write(maker, shard)
        except Exception as error:
            error.add_note(traceback.format_exc())
            found = error
        pickle.dump(found, answers)
        answers.flush()


if __name__ == "__main__":
    main()
