"""What failed between ranks, and what to do about it, from the texts of torch, gloo and NCCL."""

import re

CAUSES = (
    (
        r"Duplicate GPU detected",
        "two ranks use the same GPU: start at most as many ranks on a host as it has GPUs (nvidia-smi -L lists them), and "
        "let each see all of its host's GPUs or have a LOCAL_RANK of its own",
    ),
    (
        r"/dev/shm|No space left on device|shared memory|shmem|posix_fallocate|ShmOpen|shm_open",
        "/dev/shm is too small for NCCL: enlarge it (docker run --shm-size=8g or --ipc=host; in Kubernetes an emptyDir with "
        "medium: Memory at /dev/shm), or set NCCL_SHM_DISABLE=1",
    ),
    (
        r"[Mm]ismatched? (NCCL )?version|version mismatch|Mismatched NCCL version|NCCL version .* (differ|mismatch)",
        "the ranks run different versions of NCCL: install the same torch on every host (python -c "
        "'import torch; print(torch.__version__, torch.cuda.nccl.version())' tells it)",
    ),
    (
        r"driver version is insufficient|CUDA driver|forward compatibility",
        "the GPU driver is too old for this torch, or differs between the hosts: update it, or install a torch for an older "
        "CUDA",
    ),
    (
        r"EADDRINUSE|[Aa]ddress already in use",
        "another process listens on the port where the ranks meet: set MASTER_PORT to a free one, the same for all ranks",
    ),
    (
        r"Bootstrap ?: no socket interface found|[Nn]o (socket )?interface found|Unable to find address for|"
        r"ifa != nullptr|Unable to find interface",
        "there is no network interface of the name in GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME: unset it, or give one that "
        "`ip addr` lists",
    ),
    (
        r"getaddrinfo|[Nn]ame or service not known|[Tt]emporary failure in name resolution|could not be retrieved|EAI_",
        "the name of the host where the ranks meet is not known here: give MASTER_ADDR as an address, or a name that every "
        "host resolves",
    ),
    (
        r"[Cc]onnection refused|ECONNREFUSED|refused",
        "a rank refused the connection: it has ended, or a firewall lies between the hosts; all ports between them must be "
        "open, on the interface that GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name",
    ),
    (
        r"[Nn]o route to host|EHOSTUNREACH|[Nn]etwork is unreachable|ENETUNREACH",
        "another rank's address cannot be reached from here: name the interface that the hosts share in GLOO_SOCKET_IFNAME "
        "and NCCL_SOCKET_IFNAME",
    ),
    (
        r"[Tt]imed? ?out|[Tt]imeout|ETIMEDOUT",
        "another rank did not answer in time: it hangs, its host or the network is down, or a firewall drops what it sends",
    ),
    (
        r"[Cc]onnection reset|[Cc]onnection closed|ECONNRESET|[Bb]roken pipe|remote process exited|Socket closed|"
        r"failed to recv|got 0 bytes|unexpected(ly)? (socket )?close",
        "another rank ended, or the connection to it broke: its own message, above or in its host's log, says why",
    ),
)  # fmt: skip
"""Pattern -> cause and fix. The first that matches counts: a duplicate GPU is also reported as a closed connection."""

UNKNOWN = "communication with the other ranks failed: one may have ended, or lost its network"


def is_communication_error(error: Exception) -> bool:
    """Whether an error is torch's, gloo's or NCCL's about other ranks. gloo's begin with the place in its source."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or bool(re.match(r"\[\S*gloo/", str(error)))


def explain_network(text: str) -> str:
    """One line that names the cause of a communication error and what to do, with what the library said.

    Example:
        >>> explain_network("[/x/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:4242")[:22]
        'another rank ended, or'
    """
    cause = next((cause for pattern, cause in CAUSES if re.search(pattern, text)), UNKNOWN)
    said = [line.strip() for line in text.splitlines() if line.strip()]
    # NCCL's own last line says more than the first, which is torch's place in its source.
    last = next((line for line in said if re.match(r"(Error ?:|Last error)", line)), "")
    after = said[said.index(last) + 1 :] if last.startswith("Last error") else []
    reason = (after[0] if after else last or (said[0] if said else ""))[:200]
    return f"{cause} ({reason})" if reason else cause
