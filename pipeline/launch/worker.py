"""What each rank runs: one stage, from the `stage.json` in its directory.

Exit status: 0 finished, 2 a mistake the user can mend, 128 + signal: stopped, having saved.
"""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from checkpoints.errors import UserError, to_user_error
from checkpoints.store import Damaged
from pipeline.config.errors import explain

REFUSAL = "refused.txt"
"""Why a stage refused to run, in its directory, for the process that started it."""


def main(directory: Path) -> int:
    """Run the stage in `directory` on this rank."""
    device = start_ranks()
    import torch.distributed as dist

    from stages.training.job import Interrupted
    from stages.training.stage import Stage

    stage = Stage.open(directory, device)
    stage.warn_if_precision_is_emulated()
    try:
        stage_types()[stage.stage_type](stage)
    except Interrupted as interrupted:
        stage.log(f"saved at step {interrupted.step}; the same command goes on from here")
        status = interrupted.code
    except (UserError, Damaged, OSError) as error:
        error = to_user_error(error) if isinstance(error, OSError) else error
        error = explain(error, stage.stage_type) if isinstance(error, UserError) else error
        _let_the_first_rank_speak()
        print(f"error: {stage.name}: {error}", file=sys.stderr)
        with contextlib.suppress(OSError):
            (directory / REFUSAL).write_text(str(error), "utf-8", "backslashreplace")
        return 2  # the other ranks may wait in a collective: they are ended from outside
    except RuntimeError as error:
        if "gloo" not in str(error) and "NCCL" not in str(error):
            raise
        _let_the_first_rank_speak(always=True)
        reason = str(error).splitlines()[0][:200]
        print(f"error: {stage.name}: the connection to another rank is lost ({reason})", file=sys.stderr)
        return 1
    else:
        status = 0
    dist.destroy_process_group()
    return status


def stage_types() -> dict[str, Callable[["Stage"], None]]:  # noqa: F821
    """What runs each type of stage."""
    from stages import (
        augment,
        check,
        evaluate,
        finetune,
        general,
        intermediate,
        masked_lm,
        prediction,
        pretrain,
        select,
        student,
        teacher,
    )

    return {
        "check": check.run,
        "teacher": teacher.run,
        "general": general.run,
        "masked_lm": masked_lm.run,
        "augment": augment.run,
        "intermediate": intermediate.run,
        "prediction": prediction.run,
        "student": student.run,
        "pretrain": pretrain.run,
        "finetune": finetune.run,
        "select": select.run,
        "evaluate": evaluate.run,
    }


def _let_the_first_rank_speak(always: bool = False) -> None:
    """Wait before telling a failure: if another rank told its own, this one is ended meanwhile."""
    if always or os.environ["RANK"] != "0":
        time.sleep(3)


def start_ranks() -> "torch.device":  # noqa: F821
    """Join the world of ranks (a world of one, where no launcher says otherwise); returns this rank's device."""
    set_environment()
    import deepspeed
    import torch

    deepspeed.utils.logger.setLevel("ERROR")
    # Its shared-memory reduction would be compiled for half a minute at the first start; gloo serves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    return device


def set_environment() -> None:
    """A single process is a world of one rank; quiet libraries."""
    if "RANK" not in os.environ:  # port 0: whichever is free in the moment it is needed
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed")


def leave(code: int) -> NoReturn:
    """End this process: DeepSpeed's and torch's threads may outlive an orderly exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    # Until the loop listens there is nothing to save. Raised as an exception it may be lost in an import.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
    leave(main(Path(sys.argv[1])))
