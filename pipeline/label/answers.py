"""A table of answers that grows line by line and survives a kill: each line is one text with its answer."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpoints.errors import UserError
from stages.tasks.text import folded

Texts = tuple[str, ...]  # one text, or the two of a pair


@dataclass(frozen=True)
class Answer:
    """What was answered to one text, or to a pair.

    Attributes:
        text, text_b: the text; the second of a pair, else None.
        label: the label that was answered most; None where no answer names one.
        probabilities: those of the labels, from several samples or from the tokens' probabilities; None for one sample.
        answers: as they came, where one was not understood.
        tokens: that the request took.
    """

    text: str
    text_b: str | None
    label: str | None
    probabilities: Mapping[str, float] | None
    answers: list[str] | None
    tokens: int

    def line(self, model: str) -> str:
        """The answer of a model as a line of JSON, without what it does not have."""
        given: dict[str, Any] = {"label": self.label, "tokens": self.tokens, "model": model}
        more = {k: v for k, v in asdict(self).items() if k not in given and v is not None}
        return json.dumps(more | given, ensure_ascii=False)


class AnswerTable:
    """The answers so far, on disk and by text.

    Opening the table cuts off an incomplete last line. Only one process may have it open.

    Args:
        path: a .jsonl file, made if it is missing.
        labels: the allowed labels.
        model: who answers.

    Raises:
        UserError: the file holds something other than this model's answers to these labels, or another process has it open.
    """

    def __init__(self, path: Path, labels: list[str], model: str):
        self.path, self.labels, self.model = path, labels, model
        self.known: dict[Texts, str | None] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{path} is in use by another command: wait until that has finished, or give another file",
                "to",
            ) from None
        except OSError:  # a disk without locks
            pass
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.decode(errors="replace").split("\n")[:-1], start=1):
            self._read(line, number)
        self._file.truncate(len(whole))

    def _read(self, line: str, number: int) -> None:
        try:
            found = json.loads(line)
            texts, label = (found["text"], found.get("text_b")), found["label"]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f"{self.path}, line {number}: {line!r:.60} lacks text or label; correct it, or give another file",
                "to",
            ) from None
        if label is not None and label not in self.labels:
            raise UserError(
                f"{self.path}, line {number}: has the label {label!r}, labels= has {', '.join(self.labels)}; give to= "
                "another name for other labels",
                "to",
            )
        if (other := found.get("model", self.model)) != self.model:
            raise UserError(
                f"{self.path}, line {number}: was answered by {other!r}, not by {self.model!r}; give to= another name for "
                "another model's answers",
                "to",
            )
        self.known[key(texts)] = label

    def append(self, answer: Answer) -> None:
        """Write an answer; when this returns it is on the disk."""
        self._file.write(answer.line(self.model).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.known[key((answer.text, answer.text_b))] = answer.label

    def counts(self) -> Counter[str | None]:
        """How often each label was answered; None: no label."""
        return Counter(self.known.values())


def key(texts: tuple[str | None, ...]) -> Texts:
    """What equal texts share: all but case and the kind of white space."""
    return tuple(folded(text) for text in texts if text is not None)
