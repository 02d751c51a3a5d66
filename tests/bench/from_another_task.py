"""A student that begins as the packaged general student, beside one that begins as the student of another task.

    .venv/bin/python -m tests.bench.from_another_task --data path/to/glue   # runs/paraphrases-*; resumes where it was stopped

The other task is STS-B (how alike are two sentences), the task itself MRPC (do they say the same). STS-B holds sentences of
MRPC, and rows that have one of them are left out of the task.
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

from tests.bench.long_texts import mean

DATA = Path("runs/.paraphrases")
STUDENTS = {"general student": "packaged", "STS-B's student": "run:paraphrases-sts-b"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="GLUE's directories MRPC and STS-B")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument(
        "--rows", type=int, nargs=2, default=[1000, 400], help="of train and dev; test: the rest"
    )
    o = parser.parse_args()
    write_data(o.data, *o.rows)
    made("paraphrases-sts-b", "task=sts-b", f"data={o.data / 'STS-B'}")
    given = ("task=paraphrases", f"data={DATA}", "text_columns=first,second", "label_column=label")
    found: dict[str, list[float]] = {"teacher": []}
    for seed in o.seeds:
        for name, student in STUDENTS.items():
            run = f"paraphrases-{student.rpartition('-')[2]}-{seed}"
            results = made(run, *given, f"student={student}", f"seed={seed}")
            found.setdefault(name, []).append(results["distilled"]["scores"]["accuracy"])
        found["teacher"].append(results["teacher"]["scores"]["accuracy"])
        print({name: values[-1] for name, values in found.items()}, flush=True)
    rows = [{"model": name, "accuracy": mean(values)} for name, values in found.items()]
    print(tabulate(rows, "keys", "github", disable_numparse=True))
    gains = [b - a for a, b in zip(*(found[name] for name in STUDENTS), strict=True)]
    print(
        f"gain: {', '.join(f'{100 * gain:+.1f}' for gain in gains)}; mean {100 * statistics.mean(gains):+.1f}"
    )


def write_data(glue: Path, train: int, dev: int) -> None:
    """Write train, dev and test: MRPC's rows, both files, without the sentences of STS-B."""
    known = {letters(row[side]) for row in rows_of(glue / "STS-B") for side in ("sentence1", "sentence2")}
    pairs = [(row["#1 String"], row["#2 String"], row["Quality"]) for row in rows_of(glue / "MRPC")]
    pairs = [pair for pair in pairs if not known & {letters(pair[0]), letters(pair[1])}]
    random.Random(0).shuffle(pairs)
    DATA.mkdir(parents=True, exist_ok=True)
    for role, part in {
        "train": pairs[:train],
        "dev": pairs[train : train + dev],
        "test": pairs[train + dev :],
    }.items():
        print(f"{role}: {len(part):,} rows", flush=True)
        with open(DATA / f"{role}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("first", "second", "label"), *part])


def letters(text: str) -> str:
    """A text without spaces, marks and capitals, which the two files write differently."""
    return "".join(filter(str.isalnum, text.lower()))


def rows_of(directory: Path) -> list[dict[str, str]]:
    """The rows of a directory's train and dev."""
    rows = []
    for name in ("train.tsv", "dev.tsv"):
        with open(directory / name, newline="", encoding="utf-8-sig") as file:
            rows += [*csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return rows


def made(run: str, *options: str) -> dict:
    """Make a run, or find it finished: its results."""
    command = [sys.executable, "-m", "pipeline", "task-distill", "preset=compact", f"run={run}", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(Path("runs", run, "results.json").read_text())


if __name__ == "__main__":
    main()
