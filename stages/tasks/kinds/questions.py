"""Questions about a context, of which the answer is a part (SQuAD; Rajpurkar et al., arXiv 1606.05250 and 1806.03822)."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stages.tasks.kinds.base import Groups, Head, Kind, Said
from stages.tasks.numpy_when_used import np
from stages.tasks.types import UNKNOWN, GoldAnswers

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from stages.tasks.types import Split

METRICS = ("f1", "exact_match")
LONGEST = 30
"""Tokens of an answer at most, as in SQuAD's usual evaluation."""
IMPOSSIBLE = -1e4
"""The log-probability of an answer where a context has no tokens."""


@dataclass(frozen=True)
class Questions(Kind):
    """A row has a question and a context; the answer is a part of the context or, where `threshold` is given, none.

    A model has two outputs at each token: how well the answer starts there, and how well it ends there. It reads a long
    context in windows that overlap (`RowMaker`). In a window each output is a distribution over the context's tokens and
    the first token, which stands for no answer. `best_answers` chooses over all windows, and what it finds are this
    kind's "logits": (N, 4) of N questions, not of tokens.

    A question is not answered where the log-probability of no answer exceeds that of the best answer by more than the
    threshold, which is the best on dev. It is in the model's config, as `no_answer_threshold`.

    Attributes:
        threshold: None: every question has an answer (SQuAD 1.1).
    """

    threshold: float | None = None

    name: ClassVar[str] = "questions"
    head: ClassVar[Head] = "QuestionAnswering"
    selectable: ClassVar[tuple[str, ...]] = METRICS
    reported: ClassVar[tuple[str, ...]] = METRICS
    predicts_original: ClassVar[bool] = True
    fixes_second: ClassVar[bool] = True
    fits_on_dev: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        return 2

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """(N, 2): of no answer, and of the best answer."""
        return np.exp(logits[:, :2])

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        return self.apart(self.answers(student), self.answers(teacher))

    @staticmethod
    def apart(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """(N,) 1 - the F1 of the characters of two answers; 0 where there are none, 1 where only one of them is."""
        (from_s, to_s), (from_t, to_t) = student.T, teacher.T
        both = np.clip(np.minimum(to_s, to_t) - np.maximum(from_s, from_t), 0, None)
        lengths = (to_s - from_s) + (to_t - from_t)
        return 1 - np.where(lengths == 0, 1, 2 * both / np.maximum(lengths, 1))

    def answers(self, logits: np.ndarray) -> np.ndarray:
        """(N, 2) start and end of the answers in their contexts, in characters; -1 and -1 for none."""
        spans = logits[:, 2:].astype(np.int64)
        if self.threshold is None:
            return spans
        return np.where((logits[:, 0] - logits[:, 1] > self.threshold)[:, None], -1, spans)

    def texts(self, logits: np.ndarray, contexts: Sequence[str]) -> list[str]:
        """The answers; empty for none."""
        spans = zip(contexts, self.answers(logits).tolist(), strict=True)
        return [context[start:end] if start >= 0 else "" for context, (start, end) in spans]

    def counts(self, metrics: Sequence[str], said: Said) -> dict[str, np.ndarray]:
        """As SQuAD's evaluation counts each question (`score`)."""
        pairs = list(zip(self.texts(said.logits, [of.context for of in said.gold]), said.gold, strict=True))
        return {metric: np.array([score(metric, text, of.texts) for text, of in pairs]) for metric in metrics}

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """The better of no answer and the most frequent gold answer to every question."""
        frequent = Counter(normalized(text) for answers in gold for text in set(answers.texts)).most_common(1)
        said = ["", *(text for text, _ in frequent)]
        return max(sum(score(metric, text, answers.texts) for answers in gold) / len(gold) for text in said)

    def agreement(
        self, student: np.ndarray, teacher: np.ndarray, of_teacher: Self | None = None, groups: Groups = None
    ) -> dict[str, float]:
        """ "label_loyalty": the fraction of questions that both answer with the same part of the context."""
        same = self.answers(student) == (of_teacher or self).answers(teacher)
        return {"label_loyalty": float(same.all(-1).mean())}

    def cells(self, logits: np.ndarray, split: Split) -> list[str]:
        return self.texts(logits, split.text_b or [])

    def written(self, answer: Any) -> str:
        """Gold answers, in the layout of SQuAD in `datasets`."""
        return json.dumps(
            {"text": list(answer.texts), "answer_start": list(answer.starts)}, ensure_ascii=False
        )

    def read(self, cell: str) -> Any:
        found = json.loads(cell)
        return GoldAnswers(tuple(found["text"]), tuple(found["answer_start"]))

    def hidden(self, label: Any) -> Any:
        return UNKNOWN

    def shown(self, values: Any) -> str:
        return values or "no answer"

    def shown_gold(self, label: Any) -> str:
        return " / ".join(dict.fromkeys(self.read(label).texts)) or "no answer"

    def fitted(self, metric: str, logits: np.ndarray, gold: np.ndarray) -> Self:
        """A copy with the threshold that is best by the metric.

        A question's margin is log p(no answer) - log p(best answer). One threshold is tried for each way to part the
        questions by their margins.
        """
        if self.threshold is None:
            return self
        margins = (logits[:, 0] - logits[:, 1]).astype(np.float64)
        order = np.argsort(margins, kind="stable")
        answered = Questions().counts([metric], Said(logits, gold))[metric]
        silent = np.array([score(metric, "", answers.texts) for answers in gold])
        gains = np.concatenate([[0.0], np.cumsum((answered - silent)[order])])
        gains[1:-1][np.diff(margins[order]) == 0] = -np.inf  # no threshold parts equal margins
        best = int(np.argmax(gains))
        return replace(self, threshold=float(margins[order][best - 1] if best else margins.min() - 1))

    def of_model(self, config: PretrainedConfig) -> Self:
        chosen = getattr(config, "no_answer_threshold", None)
        return self if chosen is None else replace(self, threshold=chosen)

    def keep(self, config: PretrainedConfig) -> None:
        super().keep(config)
        config.no_answer_threshold = self.threshold

    def configure(self, config: PretrainedConfig) -> None:
        config.num_labels = self.outputs
        config.problem_type = self.problem_type
        self.keep(config)


def best_answers(
    logits: np.ndarray, targets: np.ndarray, begins: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """What a model says to questions, by its logits of all windows of their contexts.

    The log-probability of an answer in a window is that of its start and that of its end, among the window's places.
    The most probable in any window is the answer. The log-probability of "no answer" is its lowest one over the windows.

    Args:
        logits: (T, 2) of start and end at each place that may be answered, window after window; the first of each window
            stands for no answer.
        targets: (W,) places of each window.
        begins: (W,) whether a window is the first of its question.
        places: (T, 2) start and end of each place in the context, in characters.

    Returns:
        (N, 4), float64: log-probabilities of no answer and of the best answer, start and end of the latter in characters.
    """
    from numpy.lib.stride_tricks import sliding_window_view
    from scipy.special import log_softmax

    found = np.tile([0.0, -np.inf, 0, 0], (int(begins.sum()), 1))
    ends = np.cumsum(targets)
    for question, stop, count in zip(np.cumsum(begins) - 1, ends, targets, strict=True):
        window = slice(stop - count, stop)
        start_L, end_L = log_softmax(np.asarray(logits[window], np.float64), axis=0).T
        found[question, 0] = min(found[question, 0], start_L[0] + end_L[0])
        later = np.append(end_L[1:], np.full(LONGEST, IMPOSSIBLE))
        sums = np.append(start_L[1:], IMPOSSIBLE)[:, None] + sliding_window_view(later, LONGEST)[:count]
        first, further = divmod(int(sums.argmax()), LONGEST)
        if sums[first, further] > found[question, 1]:
            of_window = np.append(places[window][1:], [[0, 0]], axis=0)
            last = min(first + further, count - 1)
            found[question, 1:] = sums[first, further], of_window[first, 0], of_window[last, 1]
    return found


def normalized(text: str) -> str:
    """A text in lower case, without punctuation, articles and superfluous spaces, as SQuAD's evaluation compares it."""
    plain = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def score(metric: str, said: str, gold: Sequence[str]) -> float:
    """What an answer counts as SQuAD 2.0's evaluation counts it: the most that it counts beside one of the gold answers.

    Args:
        metric: exact_match: 1 if the normalized texts are equal; f1: the harmonic mean of the fractions of either's words
            that the other has.
        said: the answer; empty for none.
        gold: the gold answers; empty for none.
    """
    answer = normalized(said)
    return max(
        _score(metric, answer, right) for right in [text for text in map(normalized, gold) if text] or [""]
    )


def _score(metric: str, said: str, gold: str) -> float:
    if metric == "exact_match" or not said or not gold:
        return float(said == gold)
    words, right = said.split(), gold.split()
    return 2 * sum((Counter(words) & Counter(right)).values()) / (len(words) + len(right))
