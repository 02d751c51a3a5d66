"""What each rank runs: one stage, from the `stage.json` in its directory.

Exit status: 0 finished; 1 failed; 2 a mistake that the user can fix; 128 + a signal's number: stopped, having saved.
"""

import contextlib
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from checkpoints.errors import UserError, to_user_error
from checkpoints.store import Damaged
from pipeline.config.errors import explain
from pipeline.launch.child_process import die_at_signals

if TYPE_CHECKING:
    import torch

REFUSAL = "refused.txt"
"""Why a stage refused to run, in its directory, for the process that started it."""


def main(directory: Path) -> int:
    """Run the stage in `directory` on this rank; returns the exit status."""
    _start_anew_after_a_bad_fork(directory)
    try:
        device = start_ranks()
    except UserError as error:
        return _refuse(directory, explain(error, ""))
    import torch.distributed as dist

    from pipeline.launch.stage_types import STAGE_TYPES
    from stages.training.job import Interrupted
    from stages.training.stage import Stage

    stage = Stage.open(directory, device)
    stage.warn_of_slow_precision()
    try:
        STAGE_TYPES[stage.stage_type](stage)
    except Interrupted as interrupted:
        stage.log(f"saved at step {interrupted.step}: the same command resumes from there")
        status = interrupted.code
    except (UserError, Damaged, OSError) as error:
        error = to_user_error(error) if isinstance(error, OSError) else error
        return _refuse(directory, explain(error, stage.stage_type) if isinstance(error, UserError) else error)
    except RuntimeError as error:
        # gloo's errors are RuntimeErrors that begin with the place in its source; all others have a type.
        if not isinstance(error, dist.DistError) and not re.match(r"\[\S*/gloo/", str(error)):
            raise
        time.sleep(3)  # where another rank failed and said why, this one is ended meanwhile
        reason = str(error).splitlines()[0][:200]
        text = "communication with the other ranks failed: one may have ended, or lost its network"
        print(f"error: {stage.name}: {text} ({reason})", file=sys.stderr)
        return 1
    else:
        status = 0
    dist.destroy_process_group()
    return status


def _start_anew_after_a_bad_fork(directory: Path) -> None:
    """CUDA does not outlive a fork: where the process that was forked had started it, replace this one by a new one."""
    import torch

    if torch.cuda._is_in_bad_fork():
        os.execve(
            sys.executable, [sys.executable, "-m", "pipeline.launch.worker", str(directory)], os.environ
        )


def _refuse(directory: Path, error: Exception) -> int:
    """Report an error; returns the exit status. Other ranks may wait in a collective: they are ended from outside."""
    if os.environ["RANK"] != "0":
        time.sleep(3)  # they end when rank 0 does: an error that all have is printed once
    print(f"error: {directory.name}: {error}", file=sys.stderr)
    with contextlib.suppress(OSError):
        (directory / REFUSAL).write_text(str(error), "utf-8", "backslashreplace")
    return 2


def start_ranks() -> "torch.device":
    """Join the ranks of this stage (one rank, where nothing set RANK); returns this rank's device."""
    set_environment()
    import deepspeed
    import torch

    from stages.distillation.device import BACKENDS, device_of_rank

    deepspeed.utils.logger.setLevel("ERROR")
    # Its shared-memory reduction would be compiled for half a minute at the first start; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = device_of_rank(int(os.environ["LOCAL_RANK"]))
    if device.type == "cpu" and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
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
