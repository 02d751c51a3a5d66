"""Indonesian sentences with a part of speech for each word, out of the PyPI package nlp-id (MIT).

32,780 sentences and 16 tags. A text that occurs again is kept once. Seven lines have two tags; their sentences are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Words
from stages.tasks.packages import inside
from stages.tasks.readers.conll import sentences
from stages.tasks.text import folded, hashed
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("indonesian-tags",)
LABELS = (
    "ADV", "CC", "DT", "FW", "IN", "JJ", "NEG", "NN", "NNP", "NUM", "PR", "RP", "SC", "SYM", "UH", "VB",
)  # fmt: skip
VERSION = 2


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the task, None for other names."""
    task = request.packaged(TASKS)
    if not task:
        return None
    files = {"tags": str(inside("nlp_id", "data/dataset_postag.txt"))}
    return TaskSource(task, "indonesian", VERSION, files, metric=request.metric)


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the sentences, split by the hash of their text: a fortieth is dev, a twentieth test."""
    rows: dict[str, list[tuple[tuple[str], list[int | None]]]] = {"train": [], "dev": [], "test": []}
    seen = set()
    for words, tags in _sentences(Path(source.files["tags"])):
        text = " ".join(words)
        key = folded(text)
        if None not in tags and key not in seen:
            seen.add(key)
            rows[_split_of(key)].append(((text,), tags))
    splits = {role: Split.of(of) for role, of in rows.items()}
    return Task(source.name, Words(LABELS), splits, *metrics.select(source.metric))


def _sentences(path: Path) -> Iterator[tuple[list[str], list[int | None]]]:
    """Yield (words, tags) of each sentence; a tag is None where a word has two.

    Raises:
        UserError: a tag is unknown.
    """
    for line, words in sentences(path):
        tags = [tag.upper() for _, tag, *_ in words]
        if unknown := set(tags) - set(LABELS):
            raise UserError(
                f"{path}, the sentence at line {line}: unknown tag {min(unknown)!r}; known are {', '.join(LABELS)}; install the package again"
            )
        yield (
            [word for word, *_ in words],
            [LABELS.index(tag) if len(of) == 2 else None for tag, of in zip(tags, words, strict=True)],
        )


def _split_of(text: str) -> str:
    fortieth = hashed("tags" + text) % 40
    return ("dev", "test", "test")[fortieth] if fortieth < 3 else "train"
