"""A cascade: the student answers where it is sure, its teacher elsewhere. Which promise it keeps is in the export."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.deploy.classifier import THRESHOLD, Classifier
from pipeline.report.run_record import RunRecord
from stages.evaluation.thresholds import RISK, Threshold, find_threshold, least_rows
from stages.tasks.tables import read_rows

PROMISED = (THRESHOLD, "promise")
"""What an export that promises adds to config.json."""

With = Literal["teacher", "gold"]


@dataclass(frozen=True)
class Cascade:
    """What an export promises; `confidence_threshold` and `promise` in its config.json.

    Attributes:
        promise: agreement of the answers above the threshold.
        agree_with: whose answers they agree with: teacher or gold.
        risk: the probability that the promise does not hold, over the draw of the held-out rows.
        found: the threshold, and the held-out rows.
    """

    promise: float
    agree_with: With
    risk: float
    found: Threshold

    def __str__(self) -> str:
        f = self.found
        return (
            f"from confidence {f.confidence:.4f} on the student gives the {_whose(self.agree_with)} label to at least "
            f"{self.promise:.0%} of the rows (with {1 - self.risk:.0%} certainty): {f.share:.1%} of {f.rows:,} held-out rows "
            f"are above, of which {f.agreement:.1%} agree"
        )


def check_promise(run: RunRecord, agree_with: With) -> None:
    """Check that a run can promise.

    Raises:
        UserError: its rows have no single label, something was chosen on them, or the labels to agree with are not known.
    """
    if not run.kind.exclusive or run.kind.token_level or not run.kind.class_names:
        raise UserError(f"run {run.name} does not give one label a row, which a promise is about", "promise")
    if run.about.split == "dev":
        raise UserError(
            f"run {run.name} has no test rows, and its checkpoint was chosen on dev: a promise needs rows on which nothing "
            "was chosen; give a test file",
            "promise",
        )
    if agree_with == "gold" and not run.about.gold:
        raise UserError(f"run {run.name} has no gold labels; leave this out", "agree_with")
    if agree_with == "teacher" and run.about.answers and run.about.gold:
        raise UserError(
            f"run {run.name}: its teacher is a table of answers, and its test rows have gold labels; give gold",
            "agree_with",
        )


def add_cascade(run: RunRecord, directory: Path, promise: float, agree_with: With) -> Cascade:
    """Find an exported student's confidence threshold on the evaluated rows, and write it to config.json.

    Raises:
        UserError: no threshold keeps the promise, or the file of predictions is missing.
    """
    if not run.predictions.is_file():
        raise UserError(f"{run.predictions} is missing: run the command of {run.name} again")
    rows = [row for _, row in read_rows(run.predictions)]
    student = Classifier.of_directory(directory)
    values = student([[str(row[name]) for name in run.text_columns] for row in rows])
    said = [student.kind.predicted(row)[0] for row in values]
    theirs = [row["teacher" if agree_with == "teacher" and run.about.gold else "label"] for row in rows]
    agrees = np.array([a == b for a, b in zip(said, theirs, strict=True)])
    found = find_threshold(values.max(1), agrees, promise)
    if found is None:
        raise UserError(
            f"{promise:g}: no confidence keeps it: of {len(rows):,} held-out rows {agrees.mean():.1%} have the "
            f"{_whose(agree_with)} label, and at least {least_rows(promise):,} sure rows are needed; lower it, or give more test rows",
            "promise",
        )
    cascade = Cascade(promise, agree_with, RISK, found)
    path = directory / "config.json"
    store.write_json(path, store.read_json(path) | {THRESHOLD: found.confidence, "promise": asdict(cascade)})
    return cascade


def forget_promise(directory: Path) -> None:
    """Take out of config.json what another export promised, of which this model was made."""
    path = directory / "config.json"
    kept = {name: value for name, value in store.read_json(path).items() if name not in PROMISED}
    store.write_json(path, kept)


def teacher_of(run: RunRecord, student: Classifier) -> Classifier:
    """The run's teacher, to answer where an exported student is not sure.

    Raises:
        UserError: the student has no threshold, the teacher is a table of answers, or its labels differ.
    """
    if student.threshold is None:
        raise UserError("the model has no threshold; export it with promise=0.95 or the like", "ask_teacher")
    if run.about.answers:
        raise UserError(
            f"the teacher of run {run.name} is a table of answers; leave this out, and ask for the marked rows (`label`)",
            "ask_teacher",
        )
    teacher = Classifier.of_run(run, "teacher")
    if set(teacher.kind.labels or ()) != set(student.kind.labels or ()):
        raise UserError(f"run {run.name} has other labels than the model; give its own run=", "run")
    return teacher


def _whose(agree_with: With) -> str:
    return "teacher's" if agree_with == "teacher" else agree_with
