"""Several ranks on one host, as worker processes that live and die together.

torch's launcher starts each worker in a process group of its own and, on a signal, waits half a minute; here
a worker that fails ends the others at once, signals are passed on, and all die with this process.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from pipeline.launch import GRACE, die_with_parent


def main(count: int, stage: str) -> int:
    """Run `count` workers of a stage; returns the first failure's status, or 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", stage],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            preexec_fn=die_with_parent,
        )
        for rank in range(count)
    ]
    signalled = []

    def forward(number: int, frame: object) -> None:
        signalled.append((number, time.monotonic()))
        for worker in workers:
            worker.send_signal(number)

    signal.signal(signal.SIGINT, forward)
    signal.signal(signal.SIGTERM, forward)
    while True:
        codes = [worker.poll() for worker in workers]
        failed = next((code for code in codes if code), None)
        late = signalled and time.monotonic() - signalled[0][1] > GRACE
        if failed or late:
            # the others may have failed for a reason of their own in the same moment
            time.sleep(1 if failed and failed > 0 else 0.2)
            for rank, worker in enumerate(workers):
                if worker.poll() is None:
                    worker.kill()
                    worker.wait()
                elif worker.returncode < 0 and not signalled:
                    print(f"error: rank {rank} was killed by signal {-worker.returncode}", file=sys.stderr)
            if failed and failed > 0:
                return failed
            return 128 + signalled[0][0] if signalled else 1
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
