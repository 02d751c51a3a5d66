"""What each rank runs: a stage, from the `stage.json` in its directory.

Exit status: 0 finished; 1 failed; 2 a mistake that the user can fix; 128 + a signal's number: stopped by it.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from checkpoints.errors import UserError
from checkpoints.store import Damaged
from pipeline.config.option_errors import explain
from pipeline.launch.child_process import die_at_signals, keep_freed_memory
from pipeline.launch.network_errors import explain_network, is_communication_error
from pipeline.launch.network_interfaces import choose_interface

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

REFUSAL = "refused.txt"
"""Why a stage refused to run, in its directory, for the process that started it."""

REASON_WITHIN = 3
"""Seconds that a rank which lost the others waits for one of them to say why."""

ALL_ARE_HERE_WITHIN = timedelta(minutes=30)
"""The ranks of a cluster do not start at the same time."""


def main(directory: Path) -> int:
    """Run the stage in `directory` on this rank, as a process of its own; returns the exit status."""
    keep_freed_memory()
    _start_anew_after_a_bad_fork(directory)
    try:
        device = start_ranks()
    except UserError as error:
        return refuse(directory, explain(error))
    except RuntimeError as error:
        return lost(directory, error, _wait)
    status = run_stage(directory, device)
    if status not in (1, 2):  # after those, other ranks may wait in a collective: they are ended from outside
        import torch.distributed as dist

        dist.destroy_process_group()
    return status


def _wait(after_rank_0: bool) -> bool:
    """Give other ranks time to report why they failed: this one is then ended meanwhile."""
    if not after_rank_0 or os.environ["RANK"] != "0":
        time.sleep(REASON_WITHIN)
    return False


def run_stage(directory: Path, device: "torch.device", is_reported: Callable[[bool], bool] = _wait) -> int:
    """Run a stage on this rank, and report its errors.

    Args:
        is_reported: called before an error is reported; says whether another rank has reported one. Its argument: whether
            all ranks may have met this error, so that rank 0 need not wait for others.

    Returns:
        The exit status.
    """
    from pipeline.launch.stage_types import STAGE_TYPES
    from stages.training.job import Interrupted
    from stages.training.stage import Stage

    stage_type = ""
    try:
        stage = Stage.open(directory, device)
        stage_type = stage.stage_type
        with stage.resources:
            stage.warn_of_slow_precision()
            STAGE_TYPES[stage_type](stage)
    except Interrupted as interrupted:
        stage.log(f"saved at step {interrupted.step}: the same command resumes from there")
        return interrupted.code
    except Damaged as error:
        return refuse(directory, error, is_reported)
    except (UserError, OSError) as error:
        return refuse(directory, explain(error, stage_type), is_reported)
    except RuntimeError as error:
        return lost(directory, error, is_reported)
    return 0


def refuse(directory: Path, error: Exception, is_reported: Callable[[bool], bool] = _wait) -> int:
    """Report what the user can fix; returns the exit status. Where all ranks have the same error it is printed once."""
    if not is_reported(True):
        print(f"error: {directory.name}: {error}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            (directory / REFUSAL).write_text(str(error), "utf-8", "backslashreplace")
    return 2


def lost(directory: Path, error: Exception, is_reported: Callable[[bool], bool]) -> int:
    """Report that the other ranks cannot be reached; returns the exit status. Any other error is raised again."""
    if not is_communication_error(error):
        raise error
    if not is_reported(False):
        print(f"error: {directory.name}: {explain_network(str(error))}", file=sys.stderr, flush=True)
    return 1


def _start_anew_after_a_bad_fork(directory: Path) -> None:
    """CUDA does not outlive a fork: where the process that was forked had started it, replace this one by a new one."""
    import torch

    if torch.cuda._is_in_bad_fork():
        os.execve(
            sys.executable, [sys.executable, "-m", "pipeline.launch.worker", str(directory)], os.environ
        )


def connect() -> "Store":
    """Meet the other ranks at MASTER_ADDR and MASTER_PORT; returns the store that they share."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://", timeout=ALL_ARE_HERE_WITHIN)))
    return store


def start_ranks(store: "Store | None" = None) -> "torch.device":
    """Join the ranks of this stage (one rank, where nothing set RANK); returns this rank's device.

    Args:
        store: through which the ranks find each other; none: they meet first.
    """
    set_environment()
    import deepspeed
    import torch
    import torch.distributed as dist

    from stages.distillation.device import BACKENDS, device_of_rank

    deepspeed.utils.logger.setLevel("ERROR")
    # Its shared-memory reduction would be compiled for half a minute at the first start; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = device_of_rank(int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu" and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if not dist.is_initialized():
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        store = store or connect()
        choose_interface(store, rank, world_size, os.environ["MASTER_ADDR"])
        dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=world_size)
    deepspeed.init_distributed(BACKENDS[device.type], verbose=False)
    return device


def set_environment() -> None:
    """Set the variables that torch and DeepSpeed read: one rank where nothing set RANK, and less noise."""
    if "RANK" not in os.environ:  # port 0: any that is free when it is needed
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from stages.distillation.device import accelerator

    os.environ.setdefault("DS_ACCELERATOR", accelerator())
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed")


def leave(code: int) -> NoReturn:
    """End this process: DeepSpeed's and torch's threads may outlive an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    die_at_signals()
    leave(main(Path(sys.argv[1])))
