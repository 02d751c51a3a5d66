"""Which ranks another launcher has started, by its variables."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from checkpoints.errors import UserError
from pipeline.cli import commands
from pipeline.launch import in_place
from pipeline.launch.given_ranks import PORTS, first_host, given_ranks
from stages.training.options import Job
from tests.slurm_stand_in import variables

TORCH = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "1744633857",
}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TWO_HOSTS = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-09,12]"}


def test_torch_s_variables_count_before_all_others():
    found = given_ranks(TORCH | OPEN_MPI | variables(0, 2, 1))
    assert (found.rank, found.world_size, found.local_rank) == (3, 4, 1)
    assert (found.master, found.port) == ("a", 29500)


@pytest.mark.parametrize("names", [OPEN_MPI, HYDRA], ids=["open-mpi", "hydra"])
def test_mpi_on_one_host_meets_there(names):
    found = given_ranks(names | variables(0, 1, 1))  # mpirun may have started its daemons with srun
    assert (found.rank, found.world_size, found.local_rank, found.master) == (1, 2, 1, "127.0.0.1")
    assert found.port in PORTS and found == given_ranks(names)


def test_mpi_on_several_hosts_is_told_where_to_meet():
    several = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
    with pytest.raises(UserError, match="set MASTER_ADDR .* MASTER_PORT"):
        given_ranks(several)
    assert given_ranks(several | {"MASTER_ADDR": "a", "MASTER_PORT": "1234"}).port == 1234


def test_slurm_s_ranks_meet_on_the_first_host_at_a_port_of_the_step():
    first, second = (given_ranks(variables(rank, 2, 77) | TWO_HOSTS) for rank in (0, 1))
    assert (second.rank, second.world_size, second.local_rank, second.master) == (1, 2, 1, "gpu07")
    assert first.port == second.port and first.port in PORTS
    assert given_ranks(variables(0, 2, 78)).port != first.port
    assert given_ranks(variables(0, 2, 1) | {"SLURM_STEP_RESV_PORTS": "12345-12346"}).port == 12345
    assert given_ranks(variables(0, 2, 1)).master == "127.0.0.1"  # one host


def test_a_slurm_rank_that_sees_one_gpu_takes_it():
    given = variables(1, 2, 1)
    assert given_ranks(given | {"CUDA_VISIBLE_DEVICES": "3"}).local_rank == 0
    assert given_ranks(given | {"CUDA_VISIBLE_DEVICES": "0,1"}).local_rank == 1


@pytest.mark.parametrize(
    "environment",
    [
        {},
        TORCH | {"RANK": "0", "WORLD_SIZE": "1"},
        {"SLURM_NTASKS": "2", "SLURM_NODELIST": "a"},  # a shell of salloc
        {name: text for name, text in variables(0, 2, 1).items() if "STEP" not in name},  # a batch script
        variables(0, 2, 1) | {"SLURM_STEP_ID": "4294967290"},  # an interactive step
        variables(0, 1, 1),
    ],
)
def test_a_process_by_itself_is_no_rank(environment):
    assert given_ranks(environment) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "two"}, "RANK='two', which must be a number"),
        ({"RANK": "4"}, "rank 4 of 4 ranks cannot be"),
        ({"MASTER_ADDR": ""}, "without MASTER_ADDR: give where the ranks meet, or unset RANK"),
    ],
)
def test_wrong_variables_are_one_line(changed, message, monkeypatch, capsys):
    with pytest.raises(UserError, match=message):
        given_ranks(TORCH | changed)
    monkeypatch.setattr(commands, "given_ranks", lambda: given_ranks(TORCH | changed))
    assert commands.main(["recipes"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("a,b", "a"), ("gpu[7-9],b", "gpu7"), ("r[01,03]n[2-4]-x,y", "r01n2-x"), ("", "")],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def test_options_that_contradict_the_given_ranks_are_refused(monkeypatch):
    monkeypatch.setattr(in_place, "given_ranks", lambda: given_ranks(TORCH))
    assert in_place.job_on_given_ranks(Job(), {}).nproc == 4
    assert in_place.job_on_given_ranks(Job(nproc=4), {"job.nproc": "4"}).nproc == 4
    for job, given in ((Job(nproc=2), {}), (Job(), {"job.nproc": "1"}), (Job(hostfile="hosts"), {})):
        with pytest.raises(UserError, match="has already started 4 ranks; leave it out"):
            in_place.job_on_given_ranks(job, given)


def test_where_no_stage_runs_the_other_ranks_do_nothing(monkeypatch, capsys):
    monkeypatch.setattr(commands, "given_ranks", lambda: given_ranks(TORCH))
    for line in (["report", "run=none"], ["predict"], ["task-distill", "--help"], ["no-such-command"], []):
        assert commands.main(line) == 0
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(commands, "given_ranks", lambda: given_ranks(TORCH | {"RANK": "0"}))
    assert commands.main(["recipes", "--local_rank=0"]) == 0
    assert "best-practice" in capsys.readouterr().out


def test_the_command_deepspeed_is_found_and_its_death_is_noticed():
    """It starts a process that starts the ranks, and leaves both behind where it is killed."""
    rank = (
        "import time; from pipeline.launch.in_place import deepspeed_command as found\n"
        "first = found(); print(first, flush=True)\n"
        "while found() == first: time.sleep(0.05)\n"
        "print(found(), flush=True)"
    )
    start = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[2:]])"
    words = [sys.executable, "-c", start, "deepspeed", start, "launch", rank]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == f"{command.pid}\n"
        command.kill()
        assert command.stdout.readline() == "None\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_waits_for_the_others_is_ended_by_a_signal(number):
    """It waits up to half an hour in torch, where Python's own handlers do not run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = (
        "from pipeline.launch import in_place, interrupts; interrupts.listen(); in_place.WAITING_SAID_AFTER = 0.1; "
        "in_place.on_all_ranks(print)"
    )
    there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | there, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            while process.poll() is None:
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.05)
            assert process.stdout.readline() == f"rank 0 of 2 waits for the others at 127.0.0.1:{port}\n"
            process.send_signal(number)
            assert process.wait(timeout=10) == -number
        finally:
            process.kill()
