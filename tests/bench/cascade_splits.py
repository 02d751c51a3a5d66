"""Does a cascade keep its promise? Of a finished run's test rows one half gives the threshold, the other is asked.

    .venv/bin/python -m tests.bench.cascade_splits demo     # the name of a run, or the path of its directory

For each promise 20 random halves. "kept" counts those on whose other half the student agrees as often as promised: that
half is a sample, so that a promise that holds in truth may miss there by chance.
"""

import argparse
from pathlib import Path

import numpy as np
from tabulate import tabulate

from pipeline.deploy.classifier import Classifier
from pipeline.report.run_record import read_run_record
from stages.evaluation.thresholds import find_threshold
from stages.tasks.tables import read_rows

SPLITS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    path = parser.parse_args().run
    run = read_run_record(path if path.is_dir() else Path("runs") / path)
    rows = [row for _, row in read_rows(run.predictions)]
    student = Classifier.of_run(run, run.about.student)
    values = student([[str(row[name]) for name in run.text_columns] for row in rows], progress=True)
    said = [student.kind.predicted(row)[0] for row in values]
    table = []
    for agree_with, column in (("teacher", "teacher"), ("gold", "label")):
        agrees = np.array([a == row[column] for a, row in zip(said, rows, strict=True)])
        for promise in (0.8, 0.85, 0.9, 0.95):
            table.append(
                {"agree with": agree_with, "all rows": f"{agrees.mean():.1%}", "promise": f"{promise:.0%}"}
                | halves(values.max(1), agrees, promise)
            )
    print(tabulate(table, "keys", "github", disable_numparse=True))


def halves(confidences: np.ndarray, agrees: np.ndarray, promise: float) -> dict[str, str]:
    """What 20 random halves give."""
    kept, shares, agreements = 0, [], []
    for seed in range(SPLITS):
        order = np.random.default_rng(seed).permutation(len(agrees))
        one, other = np.array_split(order, 2)
        if found := find_threshold(confidences[one], agrees[one], promise):
            above = other[confidences[other] >= found.confidence]
            shares.append(len(above) / len(other))
            agreements.append(float(agrees[above].mean()))
            kept += agreements[-1] >= promise
    if not shares:
        return {
            "threshold found": f"0 of {SPLITS}",
            "kept": "-",
            "rows above": "-",
            "agreement above": "-",
            "lowest": "-",
        }
    return {
        "threshold found": f"{len(shares)} of {SPLITS}", "kept": f"{kept} of {len(shares)}",
        "rows above": f"{np.mean(shares):.1%}", "agreement above": f"{np.mean(agreements):.1%}",
        "lowest": f"{min(agreements):.1%}",
    }  # fmt: skip


if __name__ == "__main__":
    main()
