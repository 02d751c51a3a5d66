"""Where the works find models, texts and stages: on disk, as the pipeline's own stages read them."""

import contextlib
import copy
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from pipeline.launch.stage_types import STAGE_TYPES
from stages.distillation.device import native_precision
from stages.distillation.students.architecture import set_dropout, student_config
from stages.tasks.corpus import find_corpus
from stages.tasks.packages import packaged_teacher
from stages.tasks.task import find_task
from stages.teaching.recorded_logits import TEACHER_LOGITS_FILE
from stages.training.options import Architecture, Job, Training
from stages.training.stage import Stage
from tests.bench.texts import long_text, task_texts
from tests.corpora import documents

CLASSES = ("0", "1")
ARCHITECTURE = asdict(Architecture())  # TinyBERT4
TEACHER = BertConfig(num_labels=2)  # BERT-base
STUDENT = student_config(TEACHER, **ARCHITECTURE)
for _config in (TEACHER, STUDENT):
    _config.id2label, _config.label2id = dict(enumerate(CLASSES)), {n: i for i, n in enumerate(CLASSES)}

Texts = list[tuple[str, ...]]


class Place:
    """A directory with random models of real sizes, texts of real lengths, and stages that are ready to run.

    Args:
        path: the directory, empty.
        data: holds SST-2/train.tsv and MRPC/train.tsv; None makes texts to their lengths.
        device: of this process.
        positions: that the models know.
        tokenizer: a directory; None takes the packaged one.
        text: a corpus; None takes the packaged reviews.
    """

    def __init__(
        self,
        path: Path,
        data: Path | None,
        device: torch.device,
        positions: int = 512,
        tokenizer: Path | None = None,
        text: Path | None = None,
    ):
        self.path, self.data, self.device, self.positions, self.text = path, data, device, positions, text
        self.precision = native_precision(device)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or packaged_teacher())
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.stages = 0

    @cached_property
    def teacher(self) -> Path:
        """A classifier of BERT-base's size."""
        return self._save("teacher", TEACHER)

    @cached_property
    def student(self) -> Path:
        """A classifier of TinyBERT4's size."""
        return self._save("student", STUDENT)

    @cached_property
    def student_without_dropout(self) -> Path:
        """The same, whose losses then depend on nothing but the batch."""
        return self._save("student-without-dropout", set_dropout(copy.deepcopy(STUDENT), 0.0))

    def _save(self, name: str, config: BertConfig) -> Path:
        torch.manual_seed(0)
        config = copy.deepcopy(config)
        config.max_position_embeddings = self.positions
        BertForSequenceClassification(config).save_pretrained(self.path / name)
        self.tokenizer.save_pretrained(self.path / name)
        return self.path / name

    def stock(self, path: Path, attention: str) -> BertForSequenceClassification:
        """A model as `transformers` loads it, in evaluation mode."""
        model = BertForSequenceClassification.from_pretrained(path, attn_implementation=attention)
        return model.eval().to(self.device)

    @cached_property
    def plain_teacher(self) -> BertForSequenceClassification:
        """The teacher of the references."""
        return self.stock(self.teacher, "eager")

    @cached_property
    def gpu_teacher(self) -> BertForSequenceClassification:
        """The teacher of the references on a GPU."""
        return self.stock(self.teacher, "sdpa").to(torch.bfloat16)

    def long_text(self, tokens: int) -> str:
        """One text of at least so many tokens."""
        if self.text is None:
            return long_text(tokens, self.tokenizer)
        found, size = [], 0
        for document in documents(find_corpus(str(self.text))):
            found.append(document)
            size += len(document)
            if size > 6 * tokens:
                break
        return "\n\n".join(found)

    def texts(self, task: str, count: int, repeat: int) -> Texts:
        """Rows of a task, others in each repeat."""
        return task_texts(task, count, repeat + 1, self.data, self.tokenizer)

    def padded(self, rows: Texts, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and token types (rows, length) of rows padded to one length."""
        batch = self.tokenizer(
            *(list(column) for column in zip(*rows, strict=True)),
            padding="max_length", truncation=True, max_length=length, return_tensors="pt",
        ).to(self.device)  # fmt: skip
        return batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]

    @contextlib.contextmanager
    def stage(
        self,
        kind: str,
        training: Training,
        rows: Texts,
        architecture: dict = ARCHITECTURE,
        student: Path | None = None,
        **job,
    ) -> Iterator[Path]:
        """The directory of a stage that is ready to run, in a run and with a cache of its own; then removed.

        Args:
            kind: general (`rows` is then one long text), intermediate or prediction.
            training: its options.
            rows: what it is trained on.
            architecture: of the general stage's student.
            student: that a task stage begins with, instead of `self.student`.
            job: options that differ from the defaults.
        """
        self.stages += 1
        root = self.path / f"stage-{self.stages}"
        directory = root / "run" / kind
        directory.mkdir(parents=True)
        inputs = {"teacher": {"path": str(self.teacher)}}
        if kind == "general":
            (root / "corpus.txt").write_text(rows[0][0], encoding="utf-8")
            source = find_corpus(str(root / "corpus.txt"))
            inputs["corpus"] = source.entry
        else:
            inputs["task"] = write_task(root / "data", rows)
            inputs["student"] = {"path": str(student or self.student)}
        if kind == "prediction":  # the intermediate stage leaves its record beside its student
            inputs["student"] = {"path": str(shutil.copytree(self.student, root / "student"))}
            logits = np.random.default_rng(0).normal(size=(len(rows), len(CLASSES)))
            np.save(root / "student" / TEACHER_LOGITS_FILE, logits.astype(np.float32))
        options = {"training": asdict(training), "architecture": architecture}
        options |= {"seed": 1, "allow_bin": False, "record_differs": False}
        spec = {"name": kind, "stage_type": kind, "fingerprint": "", "options": options, "inputs": inputs}
        spec["job"] = asdict(Job(precision=self.precision, **job))
        (directory / "stage.json").write_text(json.dumps(spec))
        try:
            yield directory
        finally:
            shutil.rmtree(root)

    def run(self, stage: Path) -> list[dict]:
        """Run a stage in this process, as a worker does, silently; returns its lines of metrics."""
        opened = Stage.open(stage, self.device)
        with (
            opened.resources,
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            STAGE_TYPES[opened.stage_type](opened)
        return metrics(stage)


def metrics(stage: Path) -> list[dict]:
    """The lines of losses and speed that a stage wrote."""
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "tokens_per_second" in line]


def write_task(directory: Path, rows: Texts) -> dict:
    """Write rows with made-up labels as a task's files; returns its entry for `stage.json`."""
    columns = ("a", "b")[: len(rows[0])]
    dev = [tuple(f"held out, number {i}" for _ in columns) for i in range(8)]
    directory.mkdir()
    for name, part in (("train", rows), ("dev", dev)):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for i, row in enumerate(part):
                line = dict(zip(columns, row, strict=True)) | {"label": CLASSES[i % 2]}
                file.write(json.dumps(line) + "\n")
    source = find_task("bench", str(directory), columns, "label")
    return source.entry
