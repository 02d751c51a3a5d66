"""What augmentation does with the words of entities."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

from stages.tasks.types import Task

Given = Callable[[int], Mapping[tuple[int, int], list[str]]]
"""Of a row's number the candidates of some of its words, by the numbers of first and last word (`data_aug.variants`)."""


def given_words(task: Task, entities: str) -> Given:
    """The words of entities stay, or are swapped for entities of train of the same kind and number of words."""
    train, kind = task.splits["train"], task.kind
    if entities == "keep":
        return lambda row: {(word, word): [] for word in kind.fixed(train.labels[row])}
    words = [text.split(" ") for text in train.text_a]

    def named(row: int) -> Iterator[tuple[int, int, tuple[str, int], str]]:
        """Of each entity first and last word, what it may be swapped within, and its text."""
        for name, first, last in kind.entities(train.labels[row]):
            yield first, last, (name, last - first), " ".join(words[row][first : last + 1])

    alike: dict[tuple[str, int], set[str]] = defaultdict(set)
    for row in range(len(train)):
        for _, _, group, text in named(row):
            alike[group].add(text)
    lists = {group: sorted(texts) for group, texts in alike.items()}
    return lambda row: {
        (first, last): [other for other in lists[group] if other != text]
        for first, last, group, text in named(row)
    }
