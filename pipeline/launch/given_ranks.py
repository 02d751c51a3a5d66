"""The ranks that another launcher has started: torchrun, DeepSpeed's launcher, srun, mpirun, a Kubernetes operator.

Such a launcher runs the same command once for each rank and says in environment variables which rank it is. Slurm and
MPI have variables of their own; `GivenRanks.export` sets those that torch and DeepSpeed read.
"""

import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from checkpoints.errors import UserError

FIRST_SPECIAL_STEP = 0xFFFFFF00
"""Slurm numbers the steps of a batch script or an interactive shell from here on: no rank runs in those."""

OPEN_MPI = tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"))
HYDRA = ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
"""Where MPI's launchers say which rank this is, of how many; which of its host, and of how many there."""

PORTS = range(20_000, 30_000)
"""Below those that the system gives to outgoing connections."""


@dataclass(frozen=True)
class GivenRanks:
    """Which of the ranks of a launcher this process is.

    Attributes:
        local_rank: its number among the ranks of its host.
        local_size: ranks of its host; 0: not known.
        master: address of the host on which rank 0 listens, or torchrun's own agent.
        port: the port on which rank 0 listens there.
        by: what said so, for messages.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int
    master: str
    port: int
    by: str

    def export(self) -> None:
        """Set the variables that torch and DeepSpeed read."""
        os.environ.update(
            RANK=str(self.rank), WORLD_SIZE=str(self.world_size), LOCAL_RANK=str(self.local_rank),
            MASTER_ADDR=self.master, MASTER_PORT=str(self.port),
        )  # fmt: skip


def given_ranks(environment: Mapping[str, str] = os.environ) -> GivenRanks | None:
    """The ranks that another launcher has started; None where this process is the only one.

    None, too, for a single rank: the command then starts the ranks that its options ask for.

    Raises:
        UserError: a variable is not a number, or the ranks do not know where to meet.

    Example:
        >>> given_ranks({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}).rank
        1
    """
    number = partial(_number, environment)
    if "RANK" in environment and "WORLD_SIZE" in environment:
        found = _of_torch(environment, number)
    elif "OMPI_COMM_WORLD_RANK" in environment:
        found = _of_mpi(environment, number, OPEN_MPI)
    elif "PMI_RANK" in environment and "MPI_LOCALRANKID" in environment:
        found = _of_mpi(environment, number, HYDRA)
    elif _in_slurm_step(environment, number):
        found = _of_slurm(environment, number)
    else:
        return None
    if not 0 <= found.rank < found.world_size:
        raise UserError(
            f"{found.by}: rank {found.rank} of {found.world_size} ranks cannot be: correct the launcher's variables"
        )
    return found if found.world_size > 1 else None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A number among environment variables."""
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"\d{1,10}", text):
        raise UserError(
            f"the environment has {name}={text!r}, which must be a number: correct it or unset it"
        )
    return int(text)


def _of_torch(environment: Mapping[str, str], number: Callable[..., int]) -> GivenRanks:
    rank, size = number("RANK"), number("WORLD_SIZE")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing and size > 1:
        raise UserError(
            f"the environment has RANK={rank} and WORLD_SIZE={size} without {' and '.join(missing)}: give where the "
            "ranks meet, or unset RANK and WORLD_SIZE to run without another launcher"
        )
    of = {"TORCHELASTIC_RUN_ID": "torchrun", "CROSS_RANK": "deepspeed"}
    by = next((of[name] for name in of if name in environment), "the environment (RANK, WORLD_SIZE)")
    local_size = number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", 0))  # torchrun's name, DeepSpeed's name
    master, port = environment.get("MASTER_ADDR", ""), number("MASTER_PORT", 0)
    return GivenRanks(rank, size, number("LOCAL_RANK", 0), local_size, master, port, by)


def _of_mpi(environment: Mapping[str, str], number: Callable[..., int], names: tuple[str, ...]) -> GivenRanks:
    rank, size, local_rank = map(number, names[:3])
    local_size = number(names[3], 0)
    if local_size not in (0, size) and not (
        environment.get("MASTER_ADDR") and environment.get("MASTER_PORT")
    ):
        raise UserError(
            "mpirun does not tell on which host rank 0 runs: set MASTER_ADDR to that host's name and MASTER_PORT to a "
            "free port there, for all ranks (mpirun -x MASTER_ADDR=... -x MASTER_PORT=...)"
        )
    # The same on all ranks of a host, another for another mpirun there.
    job = environment.get("PMIX_NAMESPACE") or environment.get("OMPI_MCA_ess_base_jobid") or f"{os.getppid()}"
    port = number("MASTER_PORT", _port_of(job))
    return GivenRanks(
        rank, size, local_rank, local_size, environment.get("MASTER_ADDR") or "127.0.0.1", port, "mpirun"
    )


def _in_slurm_step(environment: Mapping[str, str], number: Callable[..., int]) -> bool:
    """Whether srun started this process. Batch scripts and shells of salloc have most of its variables, too."""
    return "SLURM_PROCID" in environment and number("SLURM_STEP_ID", FIRST_SPECIAL_STEP) < FIRST_SPECIAL_STEP


def _of_slurm(environment: Mapping[str, str], number: Callable[..., int]) -> GivenRanks:
    size = number("SLURM_STEP_NUM_TASKS", number("SLURM_NTASKS", 1))
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    one_host = number("SLURM_STEP_NUM_NODES", number("SLURM_NNODES", 1)) == 1
    master = environment.get("MASTER_ADDR") or ("127.0.0.1" if one_host else first_host(hosts))
    master = master or environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not master and size > 1:
        raise UserError(
            "Slurm's environment names no host (SLURM_NODELIST is empty): set MASTER_ADDR to rank 0's"
        )
    reserved = re.match(r"\d+", environment.get("SLURM_STEP_RESV_PORTS", ""))  # srun --resv-ports
    job = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    port = number("MASTER_PORT", int(reserved[0]) if reserved else _port_of(job))
    # With --gpus-per-task each rank sees one GPU, which is then its first.
    own_gpu = re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", ""))
    local_rank = 0 if own_gpu else number("SLURM_LOCALID", 0)
    return GivenRanks(number("SLURM_PROCID"), size, local_rank, size if one_host else 0, master, port, "srun")


def first_host(hosts: str) -> str:
    """The first host of a list as Slurm writes it.

    Example:
        >>> first_host("gpu[07-09,12],login1")
        'gpu07'
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0]) if first else ""


def _port_of(job: str) -> int:
    """A port that all ranks of a job compute alike."""
    return PORTS[zlib.crc32(job.encode()) % len(PORTS)]
