"""Answers to texts that stand alone: no row has a label of its own (`stages.tasks.answers`).

A tenth of the texts is dev and a tenth is test, chosen by a hash of the text. Their labels are answers as well, and so
all metrics are agreement with whoever answered.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.answers import Answer, Answered, label_name, labels_of, read_answers, together
from stages.tasks.cells import are_scores, missing_among
from stages.tasks.kinds import Classes, Kind, LabelSets, Scores
from stages.tasks.labelled_rows import counts_of_classes, notes_of_classes
from stages.tasks.text import hashed, slug
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

VERSION = 2
SPLITS = {0: "dev", 1: "test"}
"""Tenth -> the split that it is; the others are train."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a task whose only rows are answers, None if the request has no answers."""
    if not request.answers or request.data:
        return None
    return TaskSource(
        slug(request.task), "answers", VERSION, text=list(request.text_columns), metric=request.metric,
        labels=list(request.labels), label=request.label_column,
    )  # fmt: skip


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the answers."""
    path = Path(source.files["answers"])
    choices = [tuple(source.text)] if source.text else [("text", "text_b"), ("text",)]
    rows = read_answers(path, choices, source.labels, source.label)
    if not source.labels:
        rows = _without_missing(rows)
    kind = _kind(path, rows, source)
    answered = together(path, rows, kind, bool(source.unfit_rows))
    if isinstance(kind, Scores):
        kind = Scores.of([value for (value,) in answered.values.values()])
    splits = _splits(answered, kind)
    metric, others = source.metric, metrics.AGREEMENT
    reported, selection = metrics.select(metric, kind.reported, kind.selectable)
    notes = [
        *answered.notes,
        ", ".join(f"{role}: {len(split):,} texts" for role, split in splits.items()),
        "nobody's labels are known: what is measured is agreement with the teacher, whose answers these are",
    ]
    if kind.labels:
        notes += notes_of_classes(kind.labels, counts_of_classes(kind, splits))
    return Task(
        source.name, kind, splits, tuple(others.get(m, m) for m in reported), others.get(selection, selection),
        tuple(notes), gold=False,
    )  # fmt: skip


def _kind(path: Path, answers: list[Answer], source: TaskSource) -> Kind:
    """What is answered: as the metric says, else as the answers look."""
    fit = [answer for answer in answers if not answer.unfit]
    said = [answer.given for answer in fit if answer.form == "label"]
    if source.metric in metrics.REGRESSION:
        return Scores()
    if not source.metric and not source.labels and said and len(said) == len(fit) and are_scores(said):
        return Scores()
    several = source.metric in metrics.LABEL_SETS or any(isinstance(given, list) for given in said)
    labels = source.labels or _names(path, fit)
    if not fit:
        raise UserError(
            f"{path}: no row has an answer ({answers[0].unfit} in line {answers[0].line}); give some"
        )
    if len(labels) < 2:
        raise UserError(
            f"{path}: every answer is {', '.join(labels)!r:.60}; give answers with two labels or more, or name all with labels="
        )
    return LabelSets(tuple(labels)) if several else Classes(tuple(labels))


def _without_missing(answers: list[Answer]) -> list[Answer]:
    """The answers; a label that only says that there is none, as a stray NaN, is unfit."""
    plain = [isinstance(a.given, (str, int, float)) and a.form == "label" and not a.unfit for a in answers]
    counts = Counter(label_name(a.given) for a, is_plain in zip(answers, plain, strict=True) if is_plain)
    missing = missing_among(counts)
    return [
        a._replace(unfit=f"label {label_name(a.given)!r} looks like a missing one")
        if is_plain and label_name(a.given) in missing
        else a
        for a, is_plain in zip(answers, plain, strict=True)
    ]


def _names(path: Path, answers: list[Answer]) -> list[str]:
    names: set[str] = set()
    for answer in answers:
        if isinstance(answer.given, dict):
            names |= set(map(label_name, answer.given))
        elif answer.form == "label":
            names |= set(map(label_name, answer.given if isinstance(answer.given, list) else [answer.given]))
        else:
            raise UserError(
                f"{path}, line {answer.line}: {answer.form} without names of labels; name the labels in order, as in "
                "labels=positive,negative",
                argument="labels",
            )
    return sorted(names)


def _splits(answered: Answered, kind: Kind) -> dict[str, Split]:
    rows: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for k in answered.values:
        tenth = hashed("answers" + k) % 10
        rows[SPLITS.get(tenth, "train")].append(k)
    if not all(rows.values()):
        raise UserError(
            f"{answered.path}: {len(answered.values)} texts are too few to hold out two tenths of them; give more answers"
        )
    splits = {}
    for role, keys in rows.items():
        values = [answered.values[k] for k in keys]
        rows_of = zip((answered.first[k].texts for k in keys), labels_of(kind, values), strict=True)
        splits[role] = Split.of(rows_of, answers=values if role == "train" else None)
    if len(set(splits["train"].labels)) < 2:
        raise UserError(f"{answered.path}: every text of train has one label; give answers with two or more")
    return splits
