"""A string of symbols, read from an image of them by connectionist temporal classification (CTC)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

from stages.tasks import metrics as plain
from stages.tasks.kinds.base import Groups, Head, Kind, Resampler, Said, jensen_shannon
from stages.tasks.numpy_when_used import np

if TYPE_CHECKING:
    from stages.tasks.types import Split

BLANK = "<blank>"
"""The model's first output: the frame emits no symbol."""


@dataclass(frozen=True)
class Sequences(Kind):
    """A row has a string of symbols, and a model says of each frame which symbol it emits, or the blank.

    Greedy decoding: the most probable output of each frame; equal neighbours are one, and blanks are left out (Graves et
    al. 2006, section 3.1). Logits are (N, T, C), of T frames; labels are strings, empty where they are not known.
    """

    labels: tuple[str, ...] = (BLANK,)

    name: ClassVar[str] = "sequences"
    head: ClassVar[Head] = "CTC"
    reads_images: ClassVar[bool] = True
    selectable: ClassVar[tuple[str, ...]] = plain.SEQUENCES
    reported: ClassVar[tuple[str, ...]] = plain.SEQUENCES
    constant_name: ClassVar[str] = "the string of the most frequent symbols"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty: strings are scored, not classes."""
        return ()

    def distances(self, student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
        """The mean over the frames of the distance of their distributions."""
        return jensen_shannon(self.probabilities(student), self.probabilities(teacher)).mean(-1)

    def answers(self, logits: np.ndarray) -> np.ndarray:
        return np.array([self._decoded(frames) for frames in logits], object)

    def emitted(self, values_TC: np.ndarray) -> list[tuple[str, int]]:
        """The symbols that a row's frames emit, each with the frame that is surest of it, by logits or probabilities."""
        best_T, frame, found = values_TC.argmax(-1).tolist(), 0, []
        for symbol, same in groupby(best_T):
            frames = range(frame, frame := frame + len(list(same)))
            if symbol:
                found.append((self.labels[symbol], max(frames, key=lambda t: values_TC[t, symbol])))
        return found

    def _decoded(self, values_TC: np.ndarray) -> str:
        return "".join(symbol for symbol, _ in self.emitted(values_TC))

    def resampler(self, metrics: Sequence[str], said: Said) -> Resampler:
        counts_3N = counted(self.answers(said.logits), said.gold)
        return lambda rows_RN: {
            metric: value_of(metric, counts_3N[:, rows_RN].mean(-1)) for metric in metrics
        }

    def constant(self, metric: str, gold: np.ndarray, groups: Groups = None) -> float:
        """For each length a string of the most frequent symbol in each place; what the best of these strings reaches."""
        longest = max(map(len, gold))
        places = [[text[i] for text in gold if len(text) > i] for i in range(longest)]
        best = "".join(max(sorted(set(symbols)), key=symbols.count) for symbols in places)
        tried = [counted([best[:n]] * len(gold), gold) for n in range(longest + 1)]
        return max(float(value_of(metric, counts.mean(-1))) for counts in tried)

    def cells(self, logits: np.ndarray, split: Split) -> list[str]:
        return self.answers(logits).tolist()

    def written(self, answer: Any) -> str:
        return str(answer)

    def read(self, cell: str) -> Any:
        return cell

    def hidden(self, label: Any) -> Any:
        return ""

    def predicted(self, values: np.ndarray) -> tuple[Any, Any]:
        """The string of a row's (T, C) probabilities, and the probability of its most probable path."""
        return self._decoded(values), float(values.max(-1).prod())

    def shown(self, values: Any) -> str:
        return values

    def shown_gold(self, label: Any) -> str:
        return label


def counted(answers: Iterable[str], gold: Iterable[str]) -> np.ndarray:
    """Count of each row what the metrics of strings are made of.

    Args:
        answers, gold: N strings.

    Returns:
        (3, N): the least number of symbols that are changed, added or left out to make the answer of the gold string
        (Levenshtein); the symbols of the gold string; 1 where both are equal.
    """
    from nltk.metrics.distance import edit_distance

    pairs = list(zip(answers, gold, strict=True))
    return np.array([[edit_distance(a, g), len(g), a == g] for a, g in pairs], np.float64).T


def value_of(metric: str, means: np.ndarray) -> np.ndarray:
    """The value of a metric of strings, by means over the rows of `counted`, (3, ...).

    The character accuracy is 1 - the character error rate: edits / symbols of the gold strings. It is below 0 where there
    are more edits than symbols. The sequence accuracy is the fraction of strings without an error.
    """
    edits, symbols, equal = means
    return 1 - edits / symbols if metric == "character_accuracy" else equal
