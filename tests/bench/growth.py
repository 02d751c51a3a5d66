"""How the cost of the general stage grows: with length, batch, the student's width, and the number of rows.

    .venv/bin/python -m tests.bench.growth        # about ten minutes on two cores; draws runs/bench/growth.png

Tokens a second as the stage itself writes them, teacher of BERT-base's size; and what the rows of an epoch take of
memory, their order included, when the files they are read from hold ever more of them.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

from pipeline.launch.child_process import keep_freed_memory
from pipeline.launch.worker import start_ranks

RUN = Path("runs/bench")
STEP = 2048
"""Tokens of a step, where the batch is not what grows."""
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (96, 192, 312, 624, 768)
ROWS = (10**4, 10**5, 10**6, 10**7)
STEPS = 3


def main() -> int:
    keep_freed_memory()
    device = start_ranks()
    from tests.bench.place import ARCHITECTURE, Place

    with tempfile.TemporaryDirectory(prefix="growth-") as directory:
        place = Place(Path(directory), None, device, positions=max(LENGTHS))
        base = ARCHITECTURE
        curves = {
            "length of the rows": {n: speed(place, n, STEP // n, base) for n in LENGTHS},
            "rows in a batch (length 128)": {n: speed(place, 128, n, base) for n in BATCHES},
            "width of the student": {
                n: speed(place, 128, STEP // 128, base | {"width": n, "feed_forward": 4 * n}) for n in WIDTHS
            },
        }
        memory = {n: megabytes(Path(directory) / str(n), n) for n in ROWS}
    RUN.mkdir(parents=True, exist_ok=True)
    (RUN / "growth.json").write_text(json.dumps({"tokens_per_second": curves, "megabytes": memory}, indent=1))
    draw(curves, memory, RUN / "growth.png")
    return 0


def speed(place, length: int, batch: int, architecture: dict) -> float:
    """Tokens a second of the general stage in a few steps, after a stage of one step warmed up."""
    from stages.training.options import General
    from tests.bench.texts import long_text

    for steps in (1, STEPS):
        tokens = steps * batch * length
        text = [(long_text(2 * tokens, place.tokenizer),)]
        options = General(epochs=1, batch_size=batch, max_length=length, tokens=tokens)
        with place.stage("general", options, text, architecture) as stage:
            found = place.run(stage)[-1]["tokens_per_second"]
    print(f"length {length}, batch {batch}, width {architecture['width']}: {found} tokens/s", flush=True)
    return found


def megabytes(directory: Path, rows: int, length: int = 128) -> float:
    """What this process grows by while it orders and reads rows: memory of its own, not the files' pages."""
    from stages.tasks.token_rows import TokenRows
    from stages.training.data_order import epoch_batches

    directory.mkdir()
    types = {"tokens": "uint16", "offsets": "int64", "lengths": "int32", "second": "int32"}
    with open(directory / "tokens.bin", "wb") as file:
        file.truncate(2 * rows * length)  # zeros that take no room on the disk
    (np.arange(rows + 1, dtype=np.int64) * length).tofile(directory / "offsets.bin")
    np.full(rows, length, np.int32).tofile(directory / "lengths.bin")
    np.zeros(rows, np.int32).tofile(directory / "second.bin")
    counts = {
        "rows": rows,
        "tokens": rows * length,
        "longest": length,
        "truncated": 0,
        "unknown": 0,
        "vocabulary": 30522,
        "pad": 0,
    }
    (directory / "rows.json").write_text(json.dumps(counts | {"types": types}))
    before = _own_memory()
    opened = TokenRows.open(directory)
    batches = epoch_batches(opened.lengths, 32, 1, 0)
    for batch in batches[:100]:
        opened.collate(batch, np.ones(len(batch), np.float32))
    grown = _own_memory() - before
    print(f"{rows:,} rows: {grown:.1f} MB", flush=True)
    return grown


def _own_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def draw(curves: dict[str, dict[int, float]], memory: dict[int, float], path: Path) -> None:
    """A panel for each thing that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 4, figsize=(13, 3.4), layout="constrained")
    panel_data = {**curves, "rows of the data": memory}
    for axes, (name, points) in zip(panels, panel_data.items(), strict=True):
        axes.plot(list(points), list(points.values()), "o-", color="#4878a8")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(name)
        axes.set_ylabel("MB" if points is memory else "tokens/s")
        ticks = list(points) if points is not memory else [10**4, 10**5, 10**6, 10**7]
        axes.set_xticks(
            ticks, [f"{n:,}" if n < 10**4 else f"{n:.0e}".replace("+0", "") for n in ticks], rotation=45
        )
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    sys.exit(main())
