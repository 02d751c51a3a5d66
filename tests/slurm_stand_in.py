"""Stands in for `srun -n N COMMAND`: N processes of this host, with the variables that Slurm gives them.

    python -m tests.slurm_stand_in 2 python -m pipeline task-distill ...

SIGINT and SIGTERM are passed on to all. Unlike srun's default it does not end the others where one fails.
"""

import os
import signal
import subprocess
import sys


def variables(rank: int, ranks: int, job: int) -> dict[str, str]:
    """What Slurm 22.05 sets in a step of one host, as far as it is read."""
    return {
        "SLURM_JOB_ID": f"{job}", "SLURM_STEP_ID": "0", "SLURM_PROCID": f"{rank}", "SLURM_LOCALID": f"{rank}",
        "SLURM_NTASKS": f"{ranks}", "SLURM_STEP_NUM_TASKS": f"{ranks}", "SLURM_NNODES": "1",
        "SLURM_STEP_NUM_NODES": "1", "SLURM_NODELIST": "node[07-08]", "SLURM_STEP_NODELIST": "node07",
        "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
    }  # fmt: skip


def main() -> int:
    """Returns the highest exit status, as srun does."""
    ranks, command = int(sys.argv[1]), sys.argv[2:]
    processes = [
        subprocess.Popen(command, env=os.environ | variables(rank, ranks, os.getpid()))
        for rank in range(ranks)
    ]

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    codes = [process.wait() for process in processes]
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
