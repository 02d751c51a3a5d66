"""What a stage makes of many rows, in sealed shards: ranks share them, and a resumed stage makes only missing ones."""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from checkpoints import store
from stages.training.progress import Progress
from stages.training.stage import Stage, barrier, wait_for

Fill = Callable[[int, Path], object]
"""Writes the files of the shard with a number into a directory."""


def make_shards(
    stage: Stage, directory: Path, count: int, what: str, start: Callable[[], Fill]
) -> list[Path]:
    """Make the shards that are not there, and return the directories of all. Called on every rank.

    Args:
        directory: for the shards, in the stage's; its name must identify their content.
        what: the work, as progress shows it; empty: the whole stage.
        start: called on ranks with shards to make; returns a `Fill`.
    """
    paths = [directory / store.step_name(i) for i in range(count)]
    mine = [i for i in range(dist.get_rank(), count, dist.get_world_size()) if not store.is_whole(paths[i])]
    for i in mine:
        store.remove(paths[i])  # torn: no rank may take it for made
    barrier()
    if 0 < (there := sum(path.exists() for path in paths)) < count:
        stage.log(f"resumed: {there} of {count} shards are done")
    if mine:
        fill = start()
        with Progress(stage, len(mine), "shard", what=what) as progress:
            for i in mine:
                with store.sealed(paths[i]) as shard:
                    fill(i, shard)
                progress.advance()
    wait_for(path / store.MANIFEST for path in paths)
    return paths
