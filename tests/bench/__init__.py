"""Measures: `make bench`, how cost grows, and how fast augmentation is (`tests.data_aug.speed`)."""

import os
import sys

from pipeline.launch.launcher import KEEP_FREED_MEMORY


def as_a_stage_runs(module: str) -> None:
    """Begin this program anew in the environment that the pipeline gives its stages, unless it is there.

    glibc reads it at a process's start.
    """
    if any(name not in os.environ for name in KEEP_FREED_MEMORY):
        command = [sys.executable, "-m", module, *sys.argv[1:]]
        os.execve(sys.executable, command, KEEP_FREED_MEMORY | os.environ)
