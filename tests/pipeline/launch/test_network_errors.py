"""What failed between ranks, from texts as torch, gloo and NCCL print them."""

import pytest
import torch.distributed as dist

from pipeline.launch.network_errors import UNKNOWN, explain_network, is_communication_error

NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.27.5\n"
    "{}: {}\nLast error:\n{}"
)
USAGE = ("invalid usage (run with NCCL_DEBUG=WARN for details)", "ncclInvalidUsage", "This usually reflects invalid usage of "
         "NCCL library.")  # fmt: skip
SYSTEM = (
    "unhandled system error (run with NCCL_DEBUG=INFO for details)", "ncclSystemError", "System call (e.g. socket, malloc) "
    "or external library call failed or device error. ",
)  # fmt: skip
REMOTE = (
    "remote process exited or there was a network error", "ncclRemoteError", "A call failed possibly due to a network error "
    "or a remote process exiting prematurely.",
)  # fmt: skip
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:{}] {}"
DUPLICATE = "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000"
SHM = "Error while creating shared memory segment /dev/shm/nccl-Yx4tPl (size 9637888), error: No space left on device (28)"


@pytest.mark.parametrize(
    ("text", "cause", "reason"),
    [
        (NCCL.format(*USAGE, DUPLICATE), "two ranks use the same GPU", DUPLICATE),
        (NCCL.format(*SYSTEM, SHM), "/dev/shm is too small", "No space left"),
        (
            NCCL.format(*USAGE, "Mismatched NCCL version detected : rank 0 version 22703 rank 1 version 22105"),
            "different versions of NCCL",
            "22105",
        ),
        (
            NCCL.format(*SYSTEM, "Cuda failure 35 'CUDA driver version is insufficient for CUDA runtime version'"),
            "driver is too old",
            "insufficient",
        ),
        (
            NCCL.format(*REMOTE, "socketPollConnect: connect to 10.0.0.2<43210> returned Connection refused, "
                        "exceeded error retry count after 35 attempts"),
            "refused the connection",
            "10.0.0.2",
        ),
        (
            NCCL.format(*REMOTE, "socketProgressOpt: Call to recv from 10.0.0.2<34567> failed : Connection reset by peer"),
            "another rank ended",
            "reset by peer",
        ),
        (
            NCCL.format(*REMOTE, "socketPollConnect: connect to 10.0.0.2<43210> returned No route to host"),
            "cannot be reached from here",
            "No route",
        ),
        (
            NCCL.format(*USAGE, "Bootstrap : no socket interface found"),
            "no network interface of the name",
            "no socket",
        ),
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, Timeout(ms)=600000) "
            "ran for 600024 milliseconds before timing out.",
            "did not answer in time",
            "SeqNum=7",
        ),
        (GLOO.format(553, "Connection closed by peer [10.0.0.2]:60152"), "another rank ended", "60152"),
        (GLOO.format(78, "Timed out waiting 1800000ms for recv operation to complete"), "did not answer", "1800000ms"),
        (
            "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, "
            "name: EADDRINUSE, message: address already in use",
            "another process listens on the port",
            "29500",
        ),
        (
            "The IPv6 network addresses of (node07, 29500) cannot be retrieved (gai error: -2 - Name or service not known).",
            "is not known here",
            "node07",
        ),
        ("something new", UNKNOWN, "something new"),
    ],
)  # fmt: skip
def test_the_cause_is_named_with_what_the_library_said(text, cause, reason):
    line = explain_network(text)
    assert cause in line and reason in line and "\n" not in line


def test_other_errors_are_not_about_the_network():
    assert is_communication_error(dist.DistBackendError("x"))
    assert is_communication_error(RuntimeError(GLOO.format(553, "Connection closed by peer")))
    assert not is_communication_error(RuntimeError("CUDA out of memory"))
