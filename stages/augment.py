"""Data augmentation of the task's training rows (TinyBERT, Algorithm 1), in shards.

A shard is a pure function of the seed and its rows. So a killed run resumes at the next shard, and any number of
ranks makes the same rows. `data_aug` holds the algorithm; this is the job around it.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from functools import reduce
from itertools import repeat
from operator import add
from pathlib import Path

from checkpoints.errors import UserError, about
from data_aug.replaceable_words import ENGLISH, Synonyms
from data_aug.samples import describe, samples
from data_aug.variants import (
    SHARD_ROWS,
    Candidates,
    Counts,
    Row,
    Settings,
    augment_rows,
    read_counts,
    write_shard,
)
from data_aug.word_prediction import MaskedLM
from data_aug.word_vectors import WordVectors
from stages.distillation.models import load_masked_lm, load_tokenizer
from stages.tasks.entity_swaps import given_words
from stages.tasks.text import folded
from stages.tasks.types import Split
from stages.teaching.shards import Fill, make_shards
from stages.training.options import Augmentation
from stages.training.stage import Stage, barrier


def run(stage: Stage) -> None:
    """Make the missing shards, report what was done, and publish all shards.

    Raises:
        UserError: a text is empty, or longer than the model reads (if refused); the vectors cannot be read; or this host
            lacks the WordNet that the run began with.
    """
    synonyms = _synonyms(stage)
    task, options = stage.task(), Augmentation(**stage.options["augmentation"])
    train = task.splits["train"]
    fixes_second = task.kind.fixes_second
    others = {
        _key(row)
        for name, split in task.splits.items()
        if name != "train"
        for row in _rows(split, fixes_second)
    }
    own_words = stage.inputs.get("stop_words")
    stop_words = frozenset(own_words["content"]) if own_words else ENGLISH
    settings = Settings(options.p, options.variants, options.repredict, options.long_texts, stop_words)
    given = given_words(task, options.entities)

    def start() -> Fill:
        candidates = _candidates(stage, options, synonyms)

        def fill(i: int, directory: Path) -> None:
            first = i * SHARD_ROWS
            part = train.part(range(first, min(first + SHARD_ROWS, len(train))))
            rows, counts = augment_rows(
                list(_rows(part, fixes_second)), candidates, settings, stage.seed, first,
                barred=lambda row: _key(row) in others, given=given,
            )  # fmt: skip
            if fixes_second and part.text_b:
                contexts = zip(rows, part.text_b, strict=True)
                rows = [[(text, second) for text, _ in of] for of, second in contexts]
            labels = list(map(task.kind.written, part.labels)) if part.asks else part.labels
            write_shard(directory / "rows.arrow", rows, counts, labels, first)

        return fill

    paths = make_shards(stage, stage.directory / "checkpoints", -(-len(train) // SHARD_ROWS), "", start)
    counts = reduce(add, (read_counts(path / "rows.arrow") for path in paths), Counts())
    barrier()  # the shards are moved next: no rank may still be reading
    stage.log(describe(counts))

    def write(directory: Path) -> None:
        for path in paths:  # linked, not copied, where the file system allows it
            target = directory / f"rows-{path.name.removeprefix('step-')}.arrow"
            try:
                os.link(path / "rows.arrow", target)
            except OSError:
                shutil.copy2(path / "rows.arrow", target)
        (directory / "samples.txt").write_text(
            f"{samples(directory)}\n{describe(counts)}\n", encoding="utf-8"
        )

    stage.publish(write, {"variants": counts.variants, "sentences": counts.sentences})


def _synonyms(stage: Stage) -> Synonyms | None:
    """WordNet as this rank's host has it, or fetches it: the command may have found it on another host.

    Raises:
        UserError: the host has none, or another version.
    """
    given = stage.inputs.get("synonyms")
    if not given:
        return None
    try:
        synonyms = Synonyms(download=given["download"])
    except UserError as error:
        raise UserError(f"host {socket.gethostname()}: {error.args[0]}", error.argument) from None
    if synonyms.version != given["version"]:
        raise UserError(
            f"host {socket.gethostname()} has WordNet {synonyms.version}, the run began with {given['version']}; give all "
            "hosts the same nltk data",
            argument="synonyms",
        )
    return synonyms


def _rows(split: Split, first_alone: bool) -> Iterator[Row]:
    """What is varied of each row."""
    second = None if first_alone else split.text_b
    return zip(split.text_a, second or repeat(None), strict=False)


def _key(row: Row) -> tuple[str, ...]:
    """Return a key that ignores case and white space."""
    return tuple(folded(text) for text in row if text is not None)


def _candidates(stage: Stage, options: Augmentation, synonyms: Synonyms | None) -> Candidates:
    source = stage.model("masked_lm")
    model, _ = load_masked_lm(source)
    with about("masked_lm"):
        masked_lm = MaskedLM(
            model.eval().to(stage.device), load_tokenizer(source), dtype=stage.precision,
            masks_per_pass=options.masks_per_pass, min_distance=options.min_distance,
        )  # fmt: skip
    vectors = None
    if given := stage.inputs.get("vectors"):
        vectors = WordVectors.read(Path(given["path"]))
    return Candidates(masked_lm, vectors, options.candidates, synonyms)
