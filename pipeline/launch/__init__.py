"""Starts the ranks of a stage: `launcher` chooses how.

On this host a `fork_server` forks them (`local_ranks`). On the hosts of a hostfile they are started
through ssh (`remote_hosts`). Under torchrun, srun or mpirun the ranks are there before the command (`given_ranks`), and
run its stages in one process group (`in_place`). Each rank runs `worker`.
"""
