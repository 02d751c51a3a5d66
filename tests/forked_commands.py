"""Runs commands of the pipeline in forks of one process that has imported everything once.

A command imports for seconds what it then uses for one. `ForkedPopen` is a `subprocess.Popen` whose process is a fork
of a server; where it starts the process that forks the ranks, or commands (as the stand-in for srun does), those are
forks of it. Pipes, sessions,
signals, exit statuses and command lines are those of real processes, and so is what `ps` shows. What happens while a
process starts up and imports is not: tests of that run `subprocess.Popen` itself. Inference is timed in a few passes.
Linux without a GPU only.
"""

import contextlib
import ctypes
import functools
import gc
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
PRELOADED = (
    *(f"stages.{path.stem}" for path in (ROOT / "stages").glob("[a-z]*.py")),
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "encodings.idna",
    "onnxruntime",
    "torch.onnx",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "pipeline.cli.commands",
    "pipeline.cli.doctor",
    "pipeline.deploy.export",
    "pipeline.deploy.classifier",
    "pipeline.launch.local_ranks",
    "pipeline.report.page",
    "pipeline.report.pareto",
    "pipeline.report.recipe_summary",
)
RANKS = "pipeline.launch.fork_server"
TITLE_LENGTH = 1 << 14
"""Bytes kept in the server's command line, for those of its forks."""

_ONE_AT_A_TIME = threading.Lock()


class ForkedPopen(subprocess.Popen):
    """A command `[sys.executable, "-m", module, ...]` in a session of its own, as a fork of the server.

    Standard input, output, and error are to be given.
    """

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, flags,
                       shell, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite, *rest) -> None:  # fmt: skip
        request = json.dumps({"command": args, "cwd": os.fspath(cwd), "environment": env})
        with _ONE_AT_A_TIME:
            socket.send_fds(_server(), [request.encode()], [p2cread, c2pwrite, errwrite])
            self.pid, self._child_created = int(_server().recv(20)), True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)


@functools.cache
def _server() -> socket.socket:
    """The connection to this process's server, which is started at the first call and ends with this process."""
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: a command becomes this process's child
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen(
        [sys.executable, "-m", "tests.forked_commands", str(theirs.fileno()), " " * TITLE_LENGTH],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
    )  # fmt: skip
    theirs.close()
    return ours


class _ChildPopen(subprocess.Popen):
    """In a fork of the server: forks where a command or the process that forks the ranks is started; starts anything else."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, flags,
                       shell, p2cread, p2cwrite, *rest) -> None:  # fmt: skip
        if list(args[:2]) != [sys.executable, "-m"] or args[2] not in (RANKS, "pipeline"):
            given = (args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, flags, shell)
            super()._execute_child(*given, p2cread, p2cwrite, *rest)
            return
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if not self.pid:
            if p2cread != -1:
                os.dup2(p2cread, 0)
            if preexec_fn:
                preexec_fn()
            _become(args, env)
        self._child_created = True


def serve(server: socket.socket) -> None:
    """Fork for each command that is asked for, until the other side is gone."""
    while True:
        request, fds, *_ = socket.recv_fds(server, 1 << 20, 3)
        if not request:
            return
        read, write = os.pipe()
        if not os.fork():  # ends at once: the command becomes a child of the process that asked for it
            pid = os.fork()
            if pid:
                os.write(write, str(pid).encode())
                os._exit(0)
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            asked = json.loads(request)
            os.chdir(asked["cwd"])
            sys.path[0] = asked["cwd"]
            subprocess.Popen = _ChildPopen
            _become(asked["command"], asked["environment"])
        os.wait()
        server.send(os.read(read, 20))
        for fd in (*fds, read, write):
            os.close(fd)


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Go on as `python -m module arguments`, in a session of its own."""
    os.setsid()
    os.closerange(3, 1 << 12)  # as exec does
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    _show(command)
    module, sys.argv = command[2], command[2:]
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        code = 1
        if isinstance(error, KeyboardInterrupt):
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    status = code if isinstance(code, int) else int(code is not None)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # where nobody reads any more, too: the frames below are those of the process that forked
        os._exit(status)


def _show(command: list[str]) -> None:
    """Write a command over this process's own, where `ps` reads it."""
    start, end = map(int, Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[45:47])
    title = "\0".join(command).encode()
    assert len(title) < TITLE_LENGTH
    ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    from pipeline.launch import worker

    worker.set_environment()
    re._MAXCACHE = (
        1 << 14
    )  # forks find the thousand patterns compiled that transformers reads a model's names by
    for name in PRELOADED:
        __import__(name)
    from stages.evaluation import costs

    costs.SINGLE_ROWS, costs.BATCHES, costs.ATTEMPTS = 4, 2, 1
    warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*prior to execution", category=RuntimeWarning)
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("bert")  # compiles them
    gc.freeze()  # or each fork would copy what its collector looks at
    serve(socket.socket(fileno=int(sys.argv[1])))
