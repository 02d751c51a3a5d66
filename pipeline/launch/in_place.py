"""Runs a whole command on ranks that another launcher has started, in their own processes.

All ranks run the same command. Rank 0 plans, prints and holds the run's lock. The others follow it: through the store
in which the ranks meet, it names one stage after another, and at last how the run ended. So a stage follows the other
in one process group, and ranks that have nothing to do wait for a message, not for a collective that times out.

A rank that fails says so in the store, too. Each rank has a thread that waits for that word, and for signs of life of
the others. It ends a rank that is stuck in a collective with one that failed, hangs or cannot be reached.
"""

import atexit
import contextlib
import gc
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from checkpoints.errors import UserError
from pipeline.launch import worker
from pipeline.launch.child_process import die_at_signals, die_with_parent, keep_freed_memory
from pipeline.launch.given_ranks import GivenRanks, given_ranks
from pipeline.launch.interrupts import SIGNALS, exception_of
from pipeline.launch.launcher import Launcher
from pipeline.launch.network_errors import explain_network, is_communication_error
from stages.training.options import Job

T = TypeVar("T")

ASK_EVERY = timedelta(seconds=60)
"""A wait in the store is begun again so often: an idle connection may be dropped on the way."""

WAITING_SAID_AFTER = 20
"""Seconds after which a rank says that it waits for the others to start."""

LEFT_WITHIN = timedelta(seconds=60)
"""Rank 0, which may hold the store, ends after the others have read the last word, or so much later."""

HEARD_WITHIN = 2
"""Seconds until every rank has heard that one has failed."""

GRACE = 10
"""Seconds that a rank has to end by itself after another one failed."""

LOOK_EVERY = 0.5
"""Seconds between two looks whether a rank has failed."""

BEAT = 10
"""Seconds between two signs of life of a rank."""

SILENT_FOR = 300
"""Seconds without a sign of life after which a rank counts as lost. One that computes without a pause shows none."""


class RunEnded(Exception):
    """On a rank other than 0: rank 0, or a rank that failed, has ended the run. It has shown why.

    Attributes:
        status: the exit status of the command.
    """

    def __init__(self, status: int):
        super().__init__(f"the run has ended with status {status}: another rank says why")
        self.status = status


def launcher_of(run: Path) -> "Launcher | _Leader":
    """What runs the stages of a run: in this process where ranks are given, else in processes that it starts."""
    ranks = _joined()
    assert ranks is None or ranks.given.rank == 0, "the others follow in on_all_ranks"
    return _Leader(ranks) if ranks else Launcher(run)


def job_on_given_ranks(job: Job, given: Mapping[str, Any]) -> Job:
    """The `job` options, with the number of ranks that another launcher has started; unchanged if there are none.

    Args:
        given: options by name, as the user gave them.

    Raises:
        UserError: they ask for other ranks than those that another launcher has started.
    """
    ranks = _ranks.given if _ranks else given_ranks()
    if ranks is None:
        return job
    other = job.nproc not in (1, ranks.world_size) or job.nproc == 1 and "job.nproc" in given
    if job.hostfile or other:
        asked = f"job.hostfile={job.hostfile}" if job.hostfile else f"job.nproc={job.nproc}"
        raise UserError(
            f"{asked}: {ranks.by} has already started {ranks.world_size} ranks; leave it out, or run the command without "
            "another launcher"
        )
    return replace(job, nproc=ranks.world_size)


def on_all_ranks(lead: Callable[[], T]) -> T:
    """Call `lead`, which makes a run. With given ranks only rank 0 calls it; the others run its stages along.

    Returns:
        What `lead` returned, on every rank; it must be JSON-serializable.

    Raises:
        RunEnded: on the other ranks, where `lead` failed.
        UserError: the ranks could not connect.
    """
    ranks = _joined()
    if ranks is None:
        return lead()
    with ranks.run():
        if ranks.given.rank:
            return ranks.follow()
        try:
            result = lead()
        except BaseException as error:
            ranks.end(status_of(error))
            raise
        ranks.end(0, result)
        return result


def status_of(error: BaseException) -> int:
    """The exit status of a command that ends with an exception."""
    status = error.code if isinstance(error, SystemExit) else getattr(error, "status", None)
    if isinstance(status, int):
        return status
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, UserError | OSError) else 1


_ranks: "_Ranks | None" = None


def _joined() -> "_Ranks | None":
    """The given ranks, which meet at the first call; None where there are none."""
    global _ranks
    if _ranks is None and (given := given_ranks()):
        _ranks = _Ranks(given)
    return _ranks


class _Ranks:
    """The ranks of this process, and what they tell each other.

    Raises:
        UserError: they could not connect.
    """

    def __init__(self, given: GivenRanks):
        self.given = given
        self._device: Any = None
        self._number = 0  # of messages
        self._running = self._failed = False
        self._end = ""  # that another rank has reported
        if given.by in ("torchrun", "deepspeed"):  # killed, they leave ranks behind
            die_with_parent(os.getppid())
        self._command = deepspeed_command() if given.by == "deepspeed" else None
        given.export()
        os.environ.setdefault("OMP_NUM_THREADS", _threads(given))
        worker.set_environment()
        keep_freed_memory()
        try:
            with _ended_by_signals(), self._waiting_said():
                store: Any = worker.connect()
            self.store, self._listener = store, store.clone()  # one waits while the other speaks
        except RuntimeError as error:
            if not is_communication_error(error):
                raise
            where = f"{given.master}:{given.port}"
            raise UserError(
                f"rank {given.rank} of {given.world_size} ({given.by}) did not meet the others at {where}: "
                f"{explain_network(str(error))}"
            ) from error
        self._heard = time.monotonic()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=watch, daemon=True) for watch in (self._listen, self._guard)]
        for thread in self._threads:
            thread.start()
        atexit.register(self._close)

    @contextlib.contextmanager
    def _waiting_said(self) -> Iterator[None]:
        """In the block a rank that has waited a while says for whom."""
        given = self.given
        line = f"rank {given.rank} of {given.world_size} waits for the others at {given.master}:{given.port}"
        timer = threading.Timer(WAITING_SAID_AFTER, print, [line], {"flush": True})
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _close(self) -> None:
        """End the threads before the interpreter ends: one that then returns from the store would abort the process."""
        import torch.distributed as dist

        self._over.set()
        for thread in self._threads:
            thread.join(2 * LOOK_EVERY)
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """While the block runs, a failure of another rank ends this process."""
        self._running = True
        try:
            yield
        finally:
            self._running = False

    # What rank 0 says.

    def end(self, status: int, result: Any = None) -> None:
        """Tell the others how the run ended, and wait until they know."""
        number = self._number
        self._say({"status": status, "result": result})
        if self._failed:  # the others may be stuck in a collective, and do not answer
            time.sleep(HEARD_WITHIN)
            return
        others = [f"left/{number}/{rank}" for rank in range(1, self.given.world_size)]
        try:
            self.store.wait(others, LEFT_WITHIN)
        except RuntimeError as error:  # they have died, and their launcher knows
            if not is_communication_error(error):
                raise

    def start(self, stage: Path, on_all: bool) -> int:
        """Run a stage, on all ranks or here alone; returns its exit status."""
        self._say({"stage": os.path.abspath(stage), "on_all": on_all})
        return self._run(stage, on_all)

    def _say(self, message: dict[str, Any]) -> None:
        self.store.set(f"message/{self._number}", json.dumps(message))
        self._number += 1

    # What the others do.

    def follow(self) -> Any:
        """Run the stages that rank 0 names, until it says that the run has ended; returns what it made.

        Raises:
            RunEnded: the run has failed.
        """
        die_at_signals()  # while it waits nothing needs saving; a job takes them over
        while True:
            try:
                message = self._hear()
            except RuntimeError as error:
                if not is_communication_error(error):
                    raise
                if not self._end:
                    print("error: rank 0 has ended without a word: see its output", file=sys.stderr)
                raise RunEnded(int((self._end or "1").split()[0])) from error
            if "stage" in message:
                if status := self._run(Path(message["stage"]), message["on_all"]):
                    raise RunEnded(status)
                continue
            self.store.set(f"left/{self._number - 1}/{self.given.rank}", "")
            if message["status"]:
                raise RunEnded(message["status"])
            return message["result"]

    def _hear(self) -> dict[str, Any]:
        key = f"message/{self._number}"
        _wait(self.store, key)
        self._number += 1
        return json.loads(self.store.get(key))

    # What all do.

    def _run(self, stage: Path, on_all: bool) -> int:
        from stages.training.stage import alone

        environment = dict(os.environ)
        try:
            if self._device is None:
                self._device = worker.start_ranks(self.store)
                environment = dict(os.environ)
            if on_all:
                status = self._run_with_others(stage)
            elif self.given.rank == 0:
                with alone():
                    status = worker.run_stage(stage, self._device, self._is_reported)
            else:
                status = 0
        except UserError as error:
            status = worker.refuse(stage, error, self._is_reported)
        except Exception as error:
            if is_communication_error(error):
                status = worker.lost(stage, error, self._is_reported)
            else:
                traceback.print_exc()
                status = 1
        except BaseException as error:  # a signal: where the others take part, they may wait for this rank
            if on_all:
                self._agreed(status_of(error))
            raise
        os.environ.clear()
        os.environ.update(environment)
        _forget()
        return self._agreed(status) if status else 0

    def _run_with_others(self, stage: Path) -> int:
        deadline = time.monotonic() + 60
        while not (stage / "stage.json").is_file():  # a network disk may show it late
            if time.monotonic() > deadline:
                raise UserError(
                    f"host {socket.gethostname()} does not see {stage}: the hosts need a shared disk, at the same path"
                )
            time.sleep(1)
        return worker.run_stage(stage, self._device, self._is_reported)

    # How a failure of one becomes the end of all.

    def _is_reported(self, by_all: bool) -> bool:
        """Whether another rank has reported a failure. Where it is not `by_all`, another rank gets time to."""
        own = self._own_failure(2 if by_all else 1)
        deadline = time.monotonic() + (0 if by_all else worker.REASON_WITHIN)
        while not self._end and time.monotonic() < deadline:
            time.sleep(0.05)
        try:
            return (self._end or self._first_failure(own)) != own
        except RuntimeError:
            return False  # rank 0, which held the store, is gone

    def _agreed(self, status: int) -> int:
        """The status with which all ranks end: that of the first that failed."""
        self._failed = True
        try:
            return int((self._end or self._first_failure(self._own_failure(status))).split()[0])
        except RuntimeError:
            return status

    def _first_failure(self, own: str) -> str:
        return self.store.compare_set("failed", "", own).decode()

    def _own_failure(self, status: int) -> str:
        return f"{status} {self.given.rank}"

    def _listen(self) -> None:
        """In a thread: show and see signs of life, and end this process once a rank has failed."""
        try:
            self._end = self._until_one_fails()
        except RuntimeError:
            # Rank 0, which held the store, has ended: what it said before is heard in `follow`.
            self._end_within(GRACE, 1)
            return
        if self._end:
            self._end_within(GRACE, int(self._end.split()[0]))

    def _until_one_fails(self) -> str:
        """Returns what the first rank that failed wrote; nothing where this process ends first."""
        watched = range(1, self.given.world_size) if self.given.rank == 0 else [0]
        seen = {rank: (b"", time.monotonic()) for rank in watched}
        for beat in itertools.count():
            self._listener.set(f"alive/{self.given.rank}", str(beat))
            shown = self._listener.multi_get([f"alive/{rank}" for rank in watched])
            now = time.monotonic()
            for rank, beats in zip(watched, shown, strict=True):
                if beats != seen[rank][0]:
                    seen[rank] = beats, now
                elif now - seen[rank][1] > SILENT_FOR and self._running:
                    self._lose(f"rank {rank}")
            self._heard = now
            while time.monotonic() < now + BEAT:
                if self._over.wait(LOOK_EVERY):
                    return ""
                if self._listener.check(["failed"]):
                    return self._listener.get("failed").decode()
        raise AssertionError

    def _guard(self) -> None:
        """In a thread: notice that the one which listens waits in vain, for the store or its host is gone.

        And that the command `deepspeed` has ended: a signal ends it alone, and leaves behind what it started. The ranks
        then save and end, as after a SIGTERM of their own.
        """
        while not self._over.wait(BEAT):
            if self._command and deepspeed_command() != self._command:
                self._command = None
                os.kill(os.getpid(), signal.SIGTERM)
            if self._running and time.monotonic() - self._heard > SILENT_FOR:
                self._lose("rank 0")

    def _lose(self, rank: str) -> NoReturn:
        print(
            f"error: {rank} has shown no sign of life for {SILENT_FOR} seconds: its process hangs, or its host or the "
            "network is down; run the same command to resume",
            file=sys.stderr,
        )
        if self.given.rank == 0:  # the store is here, or in torchrun's agent beside it
            self._listener.compare_set("failed", "", self._own_failure(1))
            time.sleep(HEARD_WITHIN)
        worker.leave(1)

    def _end_within(self, seconds: float, status: int) -> None:
        if not self._over.wait(seconds) and self._running:
            worker.leave(status)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """In the block SIGINT and SIGTERM end this process: while torch waits for the others, Python's handlers do not run."""
    main = threading.current_thread() is threading.main_thread()
    # A signal that is ignored stays so.
    handlers = {n: handler for n in SIGNALS if main and callable(handler := signal.getsignal(n))}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def deepspeed_command() -> int | None:
    """Process id of the command `deepspeed`, which started the process that started this one; None where none did."""
    import psutil

    with contextlib.suppress(psutil.Error):
        above = psutil.Process(os.getppid()).parent()
        if above and any("deepspeed" in word for word in above.cmdline()):
            return above.pid
    return None


def _wait(store: Any, key: str) -> None:
    """Wait in the store for a key, however long that takes.

    Raises:
        RuntimeError: the connection was lost.
    """
    import torch.distributed as dist

    while True:
        try:
            return store.wait([key], ASK_EVERY)
        except dist.DistStoreError as error:
            if "timeout" not in str(error):
                raise


class _Leader:
    """Runs the stages of a run on rank 0, together with the other ranks. Used as `Launcher` is."""

    def __init__(self, ranks: _Ranks):
        self._ranks = ranks

    def __enter__(self) -> "_Leader":
        main = threading.current_thread() is threading.main_thread()
        self._handlers = {number: signal.signal(number, self._stop) for number in SIGNALS if main}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def launch(self, stage: Path, job: Job) -> int:
        """Run a stage; returns its exit status."""
        return self._ranks.start(stage, on_all=job.nproc > 1)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """A signal outside of a job, which has nothing to save. A second one ends the process at once."""
        signal.signal(number, signal.SIG_DFL)
        raise exception_of(number)


def _threads(given: GivenRanks) -> str:
    """Threads of a rank. srun binds each task to its own cores, or says how many it has."""
    from stages.training.machine_limits import cores

    if "SLURM_CPUS_PER_TASK" in os.environ:
        return os.environ["SLURM_CPUS_PER_TASK"]
    bound = len(os.sched_getaffinity(0)) < (os.cpu_count() or 1) and given.by in ("srun", "mpirun")
    return str(cores() if bound else max(1, cores() // max(1, given.local_size)))


def _forget() -> None:
    """Give back what the last stage used."""
    import torch

    torch.set_default_dtype(torch.float32)
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
