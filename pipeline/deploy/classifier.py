"""Predict with a finished or exported classifier: single texts, lines and tables."""

import contextlib
import csv
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, pipeline
from transformers.tokenization_utils_base import LARGE_INTEGER

from checkpoints import store
from checkpoints.errors import UserError
from pipeline.report.run_record import RunRecord
from stages.distillation.compatibility import longest_row
from stages.distillation.models import ModelSource, load_classifier, load_config, load_preprocessor
from stages.distillation.outputs import inputs_of
from stages.distillation.task_heads import head_of, kind_of
from stages.evaluation.predict import check_finite, predict
from stages.tasks.caption_rows import PairRows
from stages.tasks.graph_rows import NodeRows
from stages.tasks.image_rows import opened, resized
from stages.tasks.kinds import Entities, ImageTexts, Kind, LabelSets, Nodes, Questions, Ranking, Similarity
from stages.tasks.kinds.ranking import ranks
from stages.tasks.readers.glue import TASKS
from stages.tasks.readers.questions import COLUMNS
from stages.tasks.row_maker import Frame
from stages.tasks.tables import open_table, rows_with
from stages.tasks.task_rows import TaskRows
from stages.tasks.text import check_text
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import UNKNOWN, Split
from stages.tasks.windows import room_for_first
from stages.training.rows_of_task import image_rows

BATCH, POOL = 32, 2048
"""Rows of a forward pass, and rows that are tokenized and sorted by length together."""

WINDOW = 384
"""Tokens of a window where the model and its tokenizer have no limit, as is usual with SQuAD."""

PAIRS = "text_pairs"
"""Where config.json of an exported student says whether a row has two texts."""

THRESHOLD = "confidence_threshold"
"""Where config.json has the confidence from which on an exported student keeps its promise."""

Row = Sequence[str]
"""The one text of a row, or its two."""


@dataclass
class Classifier:
    """A classifier with its tokenizer, in fp32 on the CPU.

    Attributes:
        model: in eval mode, with stock attention.
        tokenizer: the tokenizer of the model; its image processor where it reads images, whose rows are paths of files;
            its graph where it labels nodes, whose rows are their ids.
        max_length: tokens of a row; longer rows are truncated, or read in windows. None: rows of any length can be read.
        pairs: whether a row has two texts; None if unknown.
        threshold: the confidence from which on an exported student keeps its promise; None where it makes none.
        teacher: answers rows below the threshold; None: they are only marked.
    """

    model: PreTrainedModel
    tokenizer: Any
    max_length: int | None
    pairs: bool | None = None
    threshold: float | None = None
    teacher: "Classifier | None" = None

    @classmethod
    def of_run(cls, run: RunRecord, name: str) -> "Classifier":
        """Load one of a run's models, as it was evaluated."""
        return cls._load(run.model(name), run.max_length(name), len(run.text_columns) == 2)

    @classmethod
    def of_directory(cls, directory: Path) -> "Classifier":
        """Load a model that `export` wrote.

        Raises:
            UserError: the directory has no config.json.
        """
        if not (directory / "config.json").is_file():
            raise UserError(f"model={directory} has no config.json: give a directory that `export` wrote")
        if (directory / "modules.json").is_file() and head_of(
            load_config(ModelSource(str(directory)))
        ) != Similarity.head:
            raise UserError(
                f"model={directory} gives vectors whose inner product is the score; load it with SentenceTransformer, or ask "
                "its run (run=NAME)"
            )
        found = cls._load(directory)
        found.threshold = getattr(found.model.config, THRESHOLD, None)
        found.pairs = getattr(found.model.config, PAIRS, None)
        if isinstance(found.kind, (Ranking, Similarity)) or found.kind.token_level:
            found.pairs = not found.kind.token_level
        return found

    @classmethod
    def _load(cls, directory: Path, max_length: int = 0, pairs: bool | None = None) -> "Classifier":
        source = ModelSource(str(directory))
        model = load_classifier(source, capturing=False).eval()
        tokenizer = load_preprocessor(source, kind_of(model.config))
        if kind_of(model.config).reads_images or isinstance(kind_of(model.config), Nodes):
            return cls(model, tokenizer, None, pairs)
        limits = [max_length or tokenizer.model_max_length, longest_row(model)]
        longest = min((n for n in limits if n and n < LARGE_INTEGER), default=None)
        return cls(model, tokenizer, longest, pairs)

    @cached_property
    def kind(self) -> Kind:
        """What it answers; its labels are in the order of the logits."""
        return kind_of(self.model.config)

    @cached_property
    def _room(self) -> int:
        """The tokens that a question may have, or the first text of a pair that is read in windows."""
        return room_for_first(Frame.of(self.tokenizer), self.max_length or WINDOW)

    def __call__(self, rows: Sequence[Row], progress: bool = False) -> np.ndarray:
        """Probabilities (rows, classes), or scores (rows, 1) of a regression, in the order of the rows."""
        if isinstance(self.kind, Nodes):
            return self.kind.probabilities(self._logits_of_nodes([row[0] for row in rows]))
        if self.kind.reads_images:
            return self.kind.probabilities(self._logits_of_images(rows, progress))
        if self.kind.pooling:
            split = Split.of((row, 0) for row in rows)
            return self.kind.probabilities(self._logits_of_windows(split, progress))
        found = np.empty((len(rows), self.kind.outputs), np.float32)
        with (
            torch.inference_mode(),
            tqdm(total=len(rows), unit=" rows", disable=None if progress else True) as bar,
        ):
            for start in range(0, len(rows), POOL):
                columns = [list(column) for column in zip(*rows[start : start + POOL], strict=True)]
                pool = self.tokenizer(
                    *columns, truncation=True, max_length=self.max_length, return_attention_mask=True
                )
                order = np.argsort([len(ids) for ids in pool["input_ids"]], kind="stable")
                for chunk in np.split(order, range(BATCH, len(order), BATCH)):
                    batch = {name: [values[i] for i in chunk] for name, values in pool.items()}
                    batch = self.tokenizer.pad(batch, return_attention_mask=True, return_tensors="pt")
                    logits = self.model(**inputs_of(self.model, batch)).logits
                    found[start + chunk] = self.kind.probabilities(logits.numpy())
                    bar.update(len(chunk))
        return check_finite(found)

    def predict(self, rows: Sequence[Row], progress: bool = False) -> list[tuple[str, ...]]:
        """(label, its probability) of each row, as cells of a table; ("", score) for a regression.

        Of a question it is (answer, its probability); the answer is empty for none.

        Of a question and a candidate it is (rank, probability that it is right): the rank among the candidates that the rows
        have for the question, from 1.

        A student with a threshold adds who answered: "student"; below the threshold "teacher" if that is at hand, else
        "ask".

        A token-level model gives the labels of all words, separated by spaces, and the lowest of their probabilities.
        Where a row has several labels or entities, both are lists, as JSON.
        """
        if isinstance(self.kind, Questions):
            return [(text, _cell(probability)) for text, probability in self.answers(self.kind, rows)]
        if isinstance(self.kind, Entities):
            lists = [
                ([{"label": e[0], "start": e[1], "end": e[2]} for e in of], [e[3] for e in of])
                for of in self.entities([row[0] for row in rows])
            ]
            return [(_cell(label), _cell(score)) for label, score in lists]
        if self.kind.token_level:
            labelled = [list(zip(*self.label_words(row[0]), strict=True)) for row in rows]
            return [(" ".join(labels), min(probabilities)) for _, labels, probabilities in labelled]
        if isinstance(self.kind, Ranking):
            scores = [self.kind.predicted(values)[1] for values in self(rows, progress)]
            return [
                (str(rank), _cell(score)) for rank, score in zip(_ranks(rows, scores), scores, strict=True)
            ]
        found = [self.kind.predicted(values) for values in self(rows, progress)]
        if not self.kind.labels:  # in the user's units, whatever these are
            return [("", f"{score:.7g}") for _, score in found]
        cells: list[tuple[str, ...]] = [(_cell(label), _cell(score)) for label, score in found]
        if self.threshold is None:
            return cells
        unsure = [i for i, (_, score) in enumerate(found) if score < self.threshold]
        cells = [(*cell, "student") for cell in cells]
        asked = self.teacher.predict([rows[i] for i in unsure], progress) if self.teacher and unsure else []
        for place, i in enumerate(unsure):
            cells[i] = (*asked[place], "teacher") if asked else (*cells[i][:2], "ask")
        return cells

    def said(self, values: np.ndarray) -> str:
        """What it answers by a row's probabilities, for a reader."""
        label, _ = self.kind.predicted(values)
        if isinstance(label, list):
            return ", ".join(label) or "none"
        return label or self.kind.shown(values)

    def answers(self, kind: Questions, rows: Sequence[Row]) -> list[tuple[str, float]]:
        """(answer, its probability) of each question and its context, as evaluation finds them; empty for no answer."""
        split = Split.of((row, UNKNOWN) for row in rows)
        logits = self._logits_of_windows(split, progress=False)
        texts, probabilities = kind.cells(logits, split), kind.probabilities(logits)
        return [(text, float(of[1 if text else 0])) for text, of in zip(texts, probabilities, strict=True)]

    def _logits(self, rows: TaskRows, unit: str, progress: bool) -> np.ndarray:
        with tqdm(total=len(rows), unit=f" {unit}", disable=None if progress else True) as bar:
            return predict(self.model, rows, torch.device("cpu"), advance=bar.update)

    def _logits_of_windows(self, split: Split, progress: bool) -> np.ndarray:
        """What evaluation makes of the logits of all windows of texts."""
        length = self.max_length or WINDOW
        with TemporaryDirectory() as folder:
            rows = write_task_rows([split], self.tokenizer, length, Path(folder), 1.0, self.kind.pooling)
            return self._logits(rows, "windows", progress)

    def _logits_of_images(self, given: Sequence[Row], progress: bool) -> np.ndarray:
        """The logits of image files, or of image files with texts, (rows, classes)."""
        paths, labels = [row[0] for row in given], [self.kind.hidden(None)] * len(given)
        reads_texts = isinstance(self.kind, ImageTexts)
        processor = self.tokenizer.image if reads_texts else self.tokenizer
        distinct = dict.fromkeys(paths) if reads_texts else paths
        pixels = np.stack([resized(processor, opened(Path(path), path)) for path in distinct])
        if reads_texts:
            split = Split(paths, [row[1] for row in given], labels)
            return self._logits(PairRows.of(split, pixels, self.tokenizer), "images", progress)
        return self._logits(image_rows(self.kind, pixels, labels, processor), "images", progress)

    def _logits_of_nodes(self, ids: Sequence[str]) -> np.ndarray:
        """The logits of nodes, (nodes, classes), from one pass over the graph."""
        rows = NodeRows(self.tokenizer, np.zeros(len(self.tokenizer.numbers), np.int64))
        logits = predict(self.model, rows, torch.device("cpu"))
        return logits[[self.tokenizer.numbers[name] for name in ids]]

    def entities(self, texts: Sequence[str]) -> list[list[tuple[str, int, int, float]]]:
        """(kind, start, end, probability) of the entities of each text, in characters, the end not included.

        They are those of stock transformers with `aggregation_strategy="simple"`.
        """
        self.tokenizer.model_max_length = self.max_length or LARGE_INTEGER
        tag: Any = pipeline(
            "token-classification", model=self.model, tokenizer=self.tokenizer, aggregation_strategy="simple"
        )
        return [
            [(e["entity_group"], int(e["start"]), int(e["end"]), float(e["score"])) for e in row]
            for row in tag(list(texts), batch_size=BATCH)
        ]

    def marked(self, text: str) -> list[tuple[str, str]]:
        """(piece, its label) of a text at token level; the pieces make up the text, and outside entities have no label."""
        if not isinstance(self.kind, Entities):
            return [(word + " ", label) for word, label, _ in self.label_words(text)]
        pieces, at = [], 0
        for label, start, end, _ in self.entities([text])[0]:
            pieces += [(text[at:start], ""), (text[start:end], label)]
            at = end
        return [piece for piece in (*pieces, (text[at:], "")) if piece[0]]

    def label_words(self, text: str) -> list[tuple[str, str, str]]:
        """(word, its label, the label's probability) of each word; words and punctuation marks are separated by spaces.

        Words beyond `max_length` tokens get the label "?".
        """
        words = text.split()
        encoded = self.tokenizer(
            [words], is_split_into_words=True, truncation=True, max_length=self.max_length,
            return_attention_mask=True, return_tensors="pt",
        )  # fmt: skip
        with torch.inference_mode():
            probabilities_LC = self.model(**inputs_of(self.model, encoded)).logits[0].softmax(-1)
        first: dict[int | None, int] = {}
        for place, word in enumerate(encoded.word_ids(0)):
            first.setdefault(word, place)
        best = [probabilities_LC[first[i]].max(-1) if i in first else None for i in range(len(words))]
        return [
            (word, self.kind.class_names[int(b.indices)], f"{float(b.values):.4f}")
            if b
            else (word, "?", "0.0000")
            for word, b in zip(words, best, strict=True)
        ]

    def check(self, given: Sequence[object], where: str) -> Row:
        """Return the row if the model can read it.

        Args:
            where: opens the error message.

        Raises:
            UserError: the model cannot read a text, or takes another number of texts.
        """
        row = [check_text(text, where) for text in given]
        if not all(text.strip() for text in row):
            raise UserError(f"{where} is empty: give a text")
        if isinstance(self.kind, Nodes) and row[0] not in self.tokenizer.numbers:
            raise UserError(
                f"{where}: the graph that the model has learned has no node {row[0]!r} with a class; give the id of one"
            )
        if isinstance(self.kind, Questions) and len(row) != 2:
            raise UserError(
                f"{where}: the number of texts is {len(row)}; give a question and the text that answers it (text= and text_b=, "
                "or a tab between them)"
            )
        if len(row) == 2 and (isinstance(self.kind, Questions) or self.kind.pooling):
            tokens = len(self.tokenizer(row[0], add_special_tokens=False)["input_ids"])
            if tokens > self._room:
                first = "question" if isinstance(self.kind, Questions) else "first text"
                raise UserError(
                    f"{where}: the {first} has {tokens} tokens, at most {self._room} may be; shorten it"
                )
        if self.pairs is not None and len(row) != 1 + self.pairs:
            takes = "two texts (text= and text_b=, or a tab between them)" if self.pairs else "one text"
            raise UserError(f"{where}: the number of texts is {len(row)}; give {takes}")
        return row


def _ranks(rows: Sequence[Row], scores: Sequence[float]) -> list[int]:
    """The rank of each row among those with the same first text."""
    found, rows_of = [0] * len(rows), defaultdict(list)
    for i, row in enumerate(rows):
        rows_of[row[0]].append(i)
    for of in rows_of.values():
        for i, rank in zip(of, ranks([scores[i] for i in of]), strict=True):
            found[i] = rank
    return found


def _cell(value: str | float | list) -> str:
    """A label, a number with four digits, or a list of either as JSON."""
    if isinstance(value, list):
        return json.dumps([round(v, 4) if isinstance(v, float) else v for v in value], ensure_ascii=False)
    return value if isinstance(value, str) else f"{value:.4f}"


def predict_lines(classifier: Classifier, lines: Iterable[str]) -> None:
    """Print label, score and text of each line; a tab separates the two texts of a pair."""
    rows: list[Row] = []
    for number, line in enumerate(_decoded(lines), start=1):
        if line.strip():
            texts = (
                line.rstrip("\r\n").split("\t") if classifier.pairs is not False else [line.rstrip("\r\n")]
            )
            if len(texts) > 2 or rows and len(texts) != len(rows[0]):
                raise UserError(
                    f"line {number}: the number of texts is {len(texts)}; give one, or two separated by a tab, on every line"
                )
            rows.append(classifier.check(texts, f"line {number}"))
    if not rows:
        raise UserError("there is no text: give text='...', file=FILE, or lines on standard input")
    print_predictions(classifier, rows)


def _decoded(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise UserError(f"standard input is not UTF-8 ({error.reason}): save it as UTF-8") from error


def print_predictions(classifier: Classifier, rows: Sequence[Row]) -> None:
    """Print label, score and text of each row; for a token-level model a line for each word, or for each entity."""
    if isinstance(classifier.kind, Entities):
        for text, found in zip(rows, classifier.entities([row[0] for row in rows]), strict=True):
            for kind, start, end, score in found:
                print(f"{text[0][start:end]}\t{kind}\t{start}\t{end}\t{score:.4f}")
            print()
        return
    if classifier.kind.token_level:
        for row in rows:
            print("\n".join(map("\t".join, classifier.label_words(row[0]))), end="\n\n")
        return
    for row, prediction in zip(rows, classifier.predict(rows, progress=len(rows) > POOL), strict=True):
        if isinstance(classifier.kind, Questions):
            print("\t".join([prediction[0] or "no answer", prediction[1], row[0]]))
        else:
            print("\t".join([*filter(None, prediction), *row]))


def predict_table(
    classifier: Classifier, path: Path, columns: tuple[str, ...], target: Path | None, **how: str
) -> int:
    """Write a table with two more columns: label and score. All begin with predicted_ if the table has one of them.

    Of questions they are answer and score; of candidates rank and score.

    A student with a threshold adds a third column, `by`, which says who answered (`Classifier.predict`).

    Args:
        path: CSV, TSV, JSON, JSONL or Parquet.
        columns: its one or two text columns.
        target: the file to write, .csv, .tsv or .jsonl; None for CSV on standard output. Fields of CSV are separated
            as in the table: by commas, or by the semicolons or pipes that it has.
        **how: `encoding` and `delimiter` of the table.

    Returns:
        The number of rows.

    Raises:
        UserError: a row cannot be used; the message names file and line.
    """
    table, rows = [], []
    check_target(target)
    delimiter = open_table(path, wanted=columns, **how).delimiter
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    for line, row in rows_with(path, columns, **how):
        table.append(row)
        rows.append(classifier.check([row[column] for column in columns], f"{path}, line {line}"))
    predictions = classifier.predict(rows, progress=True)
    head = list(dict.fromkeys(column for row in table for column in row))
    said = {Questions: "answer", Ranking: "rank", ImageTexts: "rank"}.get(type(classifier.kind), "label")
    names = [said, "score"] if classifier.kind.labels or said != "label" else ["score"]
    numbers = slice(
        0 if isinstance(classifier.kind, (LabelSets, Entities, Ranking)) else len(names) - 1, len(names)
    )
    names += ["by"] if classifier.threshold is not None else []
    sets = (
        [f"{prefix}{name}{n or ''}" for name in names]
        for n in range(10**6)
        for prefix in ("", "predicted_")
        if n != 1
    )
    added = next(names for names in sets if not {*names} & {*head})
    cells = [dict(zip(added, prediction[-len(added) :], strict=True)) for prediction in predictions]
    ending = target.suffix.lower() if target else ""
    with _written(target) as file:
        if ending == ".jsonl":
            for row, own in zip(table, cells, strict=True):
                values = own | {name: json.loads(own[name]) for name in added[numbers]}
                file.write(json.dumps(row | values, ensure_ascii=False, default=str) + "\n")
        else:
            written = [row | own for row, own in zip(table, cells, strict=True)]
            plain = delimiter if delimiter not in ("", "\t") else ","
            _write_separated(file, [*head, *added], written, "\t" if ending == ".tsv" else plain)
    return len(rows)


def check_target(target: Path | None) -> None:
    """Raise a UserError unless a table of predictions can be written under that name."""
    if target and target.suffix.lower() not in (".csv", ".tsv", ".jsonl"):
        raise UserError(
            f"to={target}: predictions are written as .csv, .tsv or .jsonl: give a name that ends so"
        )


def _write_separated(file: TextIO, head: list[str], rows: list[dict[str, Any]], delimiter: str) -> None:
    """Write a table so that `read_rows` reads the same cells: values other than texts as JSON."""

    def cell(value: Any) -> str:
        if isinstance(value, (bool, int, float, list, dict)):
            return json.dumps(value, default=str)
        return "" if value is None else str(value)  # a text; a date or decimal number of Parquet's

    cells = [head, *([cell(row.get(name)) for name in head] for row in rows)]
    quoted = delimiter == "\t" and any(set('\t\r\n"') & set(text) for row in cells for text in row)
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows(cells)


def text_columns(kind: Kind, run: RunRecord | None, path: Path, **how: str) -> tuple[str, ...]:
    """The text columns of a table: those of the run's task or of its kind, or the names that `evaluate` writes."""
    first = set(open_table(path, **how).columns)
    if isinstance(kind, Nodes) and "id" in first:
        return ("id",)
    identity = run.task.identity if run else {}
    known = [tuple(identity.get("text", ())), COLUMNS if isinstance(kind, Questions) else ()]
    if identity.get("reader") == "glue":
        known += [TASKS[identity["task"]].text, TASKS[identity["task"]].hub_text]
    found = [columns for columns in known if columns and first >= set(columns)]
    if found:
        return found[0]
    if run:
        return run.text_columns
    return ("text", "text_b") if "text_b" in first else ("text",)


@contextlib.contextmanager
def _written(target: Path | None):
    """Open a file that appears under its name when it is complete, or standard output."""
    if target is None:
        yield sys.stdout
        return
    try:
        with store.replaced(target) as staging, open(staging, "w", newline="", encoding="utf-8") as file:
            yield file
    except Exception as error:
        raise store.disk_error(error, target) from error
