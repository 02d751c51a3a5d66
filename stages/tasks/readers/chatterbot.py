"""Questions and answers of the PyPI package chatterbot-corpus (BSD), as a ranking: which of ten answers is the question's?

747 English questions in 21 topics, from trivia to greetings. The right candidates are the answers that a question has in the
package; the wrong ones are nine answers to other questions of its topic, chosen by a hash. Later turns of a conversation
are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from checkpoints.errors import UserError
from stages.tasks import metrics
from stages.tasks.kinds import Ranking
from stages.tasks.packages import inside
from stages.tasks.text import folded, hashed, parse_yaml
from stages.tasks.types import Split, Task, TaskRequest, TaskSource

TASKS = ("chatterbot",)
WRONG = 9


def find(request: TaskRequest) -> TaskSource | None:
    """Return the source of the task, None for other names."""
    task = request.packaged(TASKS, metrics.RANKING)
    if not task:
        return None
    topics = sorted(inside("chatterbot_corpus", "data/english").glob("*.yml"))
    return TaskSource(
        task, "chatterbot", files={path.stem: str(path) for path in topics}, metric=request.metric
    )


def load(source: TaskSource, revision: str | None) -> Task:
    """Read the questions, split by the hash of their text: 15 of 100 are dev, 25 test."""
    rows: dict[str, list[tuple[tuple[str, str], int]]] = {"train": [], "dev": [], "test": []}
    seen: set[str] = set()
    for name in source.files.values():
        answers = _answers(Path(name))
        for question, right in answers.items():
            others = {folded(text): text for key, of in answers.items() if key != question for text in of}
            known = [folded(text) for text in right]
            keys = sorted(others.keys() - set(known), key=lambda key: _hash(question, key))
            wrong = [others[key] for key in keys[:WRONG]]
            if not wrong or question in seen:  # nothing to rank, or of another topic, too
                continue
            seen.add(question)
            candidates = [(text, 1) for text in right] + [(text, 0) for text in wrong]
            candidates.sort(key=lambda pair: _hash(question, folded(pair[0])))
            rows[_split_of(question)] += [((question, text), label) for text, label in candidates]
    splits = {role: Split.of(of) for role, of in rows.items()}
    chosen = metrics.select(source.metric, Ranking.reported, Ranking.selectable)
    return Task(source.name, Ranking(("wrong", "right")), splits, *chosen)


def _answers(path: Path) -> dict[str, list[str]]:
    """The questions of a topic, and the answers to each."""
    found: dict[str, list[str]] = {}
    questions: dict[str, str] = {}
    for question, answer in _pairs(path):
        of = found.setdefault(questions.setdefault(folded(question), question), [])
        if folded(answer) not in map(folded, of):
            of.append(answer)
    return found


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    value = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    conversations = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(conversations, list):
        raise UserError(f"{path}: no list of conversations; install the package again")
    # A conversation of the package is a bare text.
    lists = (turns for turns in conversations if isinstance(turns, list) and len(turns) > 1)
    for question, answer, *_ in lists:
        texts = [" ".join(str(text).split()) for text in (question, answer)]
        if all(texts):
            yield texts[0], texts[1]


def _hash(*texts: str) -> int:
    return hashed("\n".join(("chatterbot", *texts)))


def _split_of(question: str) -> str:
    place = _hash(folded(question)) % 100
    return "dev" if place < 15 else "test" if place < 40 else "train"
