"""Answers made wrong on purpose, whose right labels are known: what noise costs, and what leaving it out gives back.

    .venv/bin/python -m tests.bench.noisy_answers                   # runs/noisy-*; resumes where it was stopped
    .venv/bin/python -m tests.bench.noisy_answers --seeds 1 --levels 0.2

Of 800 packaged review sentences a tenth, a fifth or two fifths of the labels are flipped and given as a table of
answers; dev (200) and test (1,000) keep people's labels. Each run is made once with all answers, and once with
`answers.leave_out` as large as the noise. docs/benchmarks/answers.md has the table.
"""

import argparse
import csv
import json
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from stages.tasks.task import find_task, load_task

DATA = Path("runs/.noisy-answers")
ROWS = {"train": 800, "dev": 200, "test": 1000}
SIZES = [
    "preset=small", "student=teacher-layers", "architecture.layers=3", "baselines=false", "job.log_every=50",
    *(f"{stage}.batch_size=16" for stage in ("tuning", "intermediate", "prediction")),
    *(f"{stage}.epochs=2" for stage in ("tuning", "intermediate", "prediction")),
    *(f"{stage}.max_length=48" for stage in ("tuning", "intermediate", "prediction")),
    "tuning.learning_rate=1e-4", "intermediate.learning_rate=2e-4", "prediction.learning_rate=1e-4",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Of one run: accuracies on people's labels, and how well the distance from the encoder finds wrong answers.

    Attributes:
        encoder: accuracy of the encoder tuned on the answers.
        student: that of the student.
        found: of the wrong answers the fraction that is among as many answers, the farthest from the encoder.
    """

    encoder: float
    student: float
    found: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--levels", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    o = parser.parse_args()
    outcomes: dict[tuple[float, float], list[Outcome]] = {}
    write_data()
    for seed in o.seeds:
        for level in o.levels:
            for leave_out in (0.0, level):
                found = outcome(level, leave_out, seed)
                outcomes.setdefault((level, leave_out), []).append(found)
                print(level, leave_out, seed, found, flush=True)
    print(table(outcomes))


def write_data() -> None:
    """Write train, dev and test with people's labels."""
    DATA.mkdir(parents=True, exist_ok=True)
    task = load_task(find_task("rotten-tomatoes"))
    for role, count in ROWS.items():
        split = task.splits[role]
        chosen = random.Random(0).sample(range(len(split)), count)
        with open(DATA / f"{role}.csv", "w", newline="", encoding="utf-8") as file:
            rows = [(split.text_a[i], task.kind.written(split.labels[i])) for i in chosen]
            csv.writer(file).writerows([("text", "label"), *rows])


def wrong_rows(level: float, seed: int) -> set[int]:
    """The training rows whose answers are wrong."""
    return set(random.Random(f"{level} {seed}").sample(range(ROWS["train"]), round(level * ROWS["train"])))


def outcome(level: float, leave_out: float, seed: int) -> Outcome:
    """Make one run, or read it."""
    answers = DATA / f"answers-{level:g}-{seed}.jsonl"
    wrong = wrong_rows(level, seed)
    with open(DATA / "train.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    other = {"fresh": "rotten", "rotten": "fresh"}
    lines = [
        {"text": row["text"], "label": other[row["label"]] if i in wrong else row["label"]}
        for i, row in enumerate(rows)
    ]
    answers.write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")
    run = f"noisy-{level:g}-{leave_out:g}-{seed}"
    subprocess.run(
        [sys.executable, "-m", "pipeline", "task-distill", "task=noisy", f"data={DATA}", "text_columns=text",
         "label_column=label", f"teacher={answers}", f"answers.leave_out={leave_out}", f"seed={seed}", f"run={run}", *SIZES],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    results = json.loads(Path("runs", run, "results.json").read_text())
    with open(Path("runs", run, "answers.csv"), newline="", encoding="utf-8") as file:
        farthest = [int(row["row"]) for row in csv.DictReader(file)][: len(wrong)]
    metrics = (results[name]["metric"] for name in ("teacher", "distilled"))
    return Outcome(*metrics, len(wrong & set(farthest)) / len(wrong))


def table(outcomes: dict[tuple[float, float], list[Outcome]]) -> str:
    """A row for each level of noise and each setting, means over the seeds in percent."""

    def mean(values: list[float]) -> str:
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.1f}{spread}"

    rows = [
        {"answers wrong": f"{level:.0%}", "left out": f"{leave_out:.0%}", "encoder": mean([x.encoder for x in of]),
         "student": mean([x.student for x in of]),
         "wrong ones found": mean([x.found for x in of])}
        for (level, leave_out), of in outcomes.items()
    ]  # fmt: skip
    return tabulate(rows, "keys", "github", disable_numparse=True)


if __name__ == "__main__":
    main()
