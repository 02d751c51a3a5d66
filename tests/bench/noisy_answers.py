"""Answers made wrong on purpose, whose right labels are known: what noise costs, and what leaving it out gives back.

    .venv/bin/python -m tests.bench.noisy_answers                   # runs/noisy-*; resumes where it was stopped
    .venv/bin/python -m tests.bench.noisy_answers --seeds 1 --levels 0.2 --settings plain judged-weighed

Of 800 packaged review sentences none, a tenth, a fifth or two fifths of the labels are flipped and given as a table of
answers; dev (200) and test (1,000) keep people's labels. `SETTINGS` are what is done about it; "no-layers" instead has a
student that begins as the others do, and learns the answers alone for as many epochs. docs/benchmarks/answers.md has the
table.
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


SETTINGS = {
    "plain": (),
    "left-out": ("answers.leave_out={level}",),
    "judged-left-out": ("answers.folds=3", "answers.leave_out={level}"),
    "judged-weighed": ("answers.folds=3", "answers.weight=agreement"),
    "no-layers": ("intermediate.learning_rate=1e-12", "intermediate.epochs=1", "prediction.epochs=4"),
}
"""Setting -> its options, with the level of noise."""


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
    parser.add_argument("--levels", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    o = parser.parse_args()
    outcomes: dict[tuple[float, str], list[Outcome]] = {}
    write_data()
    for seed in o.seeds:
        for level in o.levels:
            for setting in o.settings:
                if not level and setting not in ("plain", "no-layers"):
                    continue
                found = outcome(level, setting, seed)
                outcomes.setdefault((level, setting), []).append(found)
                print(level, setting, seed, found, flush=True)
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


def outcome(level: float, setting: str, seed: int) -> Outcome:
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
    run = f"noisy-{level:g}-{setting}-{seed}"
    options = [option.format(level=level) for option in SETTINGS[setting]]
    subprocess.run(
        [sys.executable, "-m", "pipeline", "task-distill", "task=noisy", f"data={DATA}", "text_columns=text",
         "label_column=label", f"teacher={answers}", f"seed={seed}", f"run={run}", *SIZES, *options],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    results = json.loads(Path("runs", run, "results.json").read_text())
    with open(Path("runs", run, "answers.csv"), newline="", encoding="utf-8") as file:
        farthest = [int(row["row"]) for row in csv.DictReader(file)][: len(wrong)]
    metrics = (results[name]["metric"] for name in ("teacher", "distilled"))
    return Outcome(*metrics, len(wrong & set(farthest)) / max(1, len(wrong)))


def table(outcomes: dict[tuple[float, str], list[Outcome]]) -> str:
    """A row for each level of noise and each setting, means over the seeds in percent."""

    def mean(values: list[float]) -> str:
        spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
        return f"{100 * statistics.mean(values):.1f}{spread}"

    rows = [
        {"answers wrong": f"{level:.0%}", "setting": setting, "seeds": f"{len(of)}", "encoder": mean([x.encoder for x in of]),
         "student": mean([x.student for x in of]),
         "wrong ones found": mean([x.found for x in of])}
        for (level, setting), of in outcomes.items()
    ]  # fmt: skip
    return tabulate(rows, "keys", "github", disable_numparse=True)


if __name__ == "__main__":
    main()
