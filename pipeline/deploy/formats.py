"""The formats of an exported student side by side: their predictions on real rows, and their speed."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from checkpoints.errors import UserError
from pipeline.report.run_record import RunRecord
from pipeline.report.tables import percent, terminal_table
from stages.distillation.models import ModelSource, kind_of, load_classifier, load_tokenizer
from stages.distillation.teachers import class_order
from stages.evaluation.costs import speed
from stages.evaluation.predict import predict
from stages.evaluation.results import Costs, busy_note
from stages.tasks.tables import read_rows
from stages.tasks.task import part
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split

LARGEST_DIFFERENCE = 1e-3
"""Allowed between the fp32 logits of ONNX and of PyTorch. Rounding alone makes a thousandth of it."""

ROWS = 2500
"""Maximum number of rows to compare, spread evenly over those that `evaluate` reported."""

FORMATS = {
    "teacher": ("teacher, PyTorch fp32", ""),
    "student": ("student, PyTorch fp32", "model.safetensors"),
    "onnx": ("student, ONNX fp32", "onnx/model.onnx"),
    "int8": ("student, ONNX int8", "onnx/model_quantized.onnx"),
}
"""Format -> (title, file in the exported directory, under the name that the hub's tools look for)."""


@dataclass
class FormatResult:
    """What was measured of one format.

    Attributes:
        title: as shown.
        file: in the exported directory; empty for the teacher, which is not exported.
        bytes: size of the weights' file.
        metric: the selection metric on the compared rows.
        agreement: fraction of these rows with the label or answer of the student in PyTorch; None for a regression.
        difference: the largest from the logits of the student in PyTorch (for questions from the log-probabilities of the
            answer and of none); None for the teacher.
        costs: latency and throughput.
    """

    title: str
    file: str
    bytes: int
    metric: float
    agreement: float | None
    difference: float | None
    costs: Costs


def compare_formats(run: RunRecord, directory: Path) -> list[FormatResult]:
    """Write the ONNX files of the model in `directory`, compare all formats on the run's rows, and time them.

    Raises:
        UserError: onnx or onnxruntime is missing, or the fp32 logits of ONNX differ from those of PyTorch.
    """
    try:
        from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: run `make setup`, or export without ONNX (onnx=false)"
        ) from error

    labels, texts = run.about.labels, _reported(run)
    student = _load(directory)
    teacher = run.model("teacher")
    files = {name: directory / file for name, (_, file) in FORMATS.items() if file}
    files["teacher"] = teacher / "model.safetensors"
    files["onnx"].parent.mkdir()
    names = load_tokenizer(ModelSource(str(directory))).model_input_names
    write_onnx(student, names, files["onnx"], files["int8"])
    models = {"teacher": _load(teacher), "student": student}
    models |= {name: OnnxClassifier(files[name], student.config) for name in ("onnx", "int8")}

    logits, costs = {}, {}
    with TemporaryDirectory() as folder:
        rows = {}
        groups = run.kind.groups(texts)
        for name in ("teacher", "student"):
            tokenizer = load_tokenizer(ModelSource(str(files[name].parent)))
            length = run.max_length("teacher" if name == "teacher" else run.about.student)
            folder_of, pooling = Path(folder) / name, kind_of(models[name].config).pooling
            rows[name] = write_task_rows([texts], tokenizer, length, folder_of, pooling=pooling)
        for name, model in models.items():
            own = rows["teacher" if name == "teacher" else "student"]
            order = class_order(model.config, labels, [])
            logits[name] = predict(model, own, torch.device("cpu"), order=order)
            # each format by itself: onnxruntime's idle threads spin, and would slow the others down
            costs |= speed({name: (model, own)})
    kinds = {name: run.kind.of_model(model.config) for name, model in models.items()}
    compared = {name: of[:, :2] if texts.asks else of for name, of in logits.items()}
    difference = float(np.abs(compared["onnx"] - compared["student"]).max())
    if not difference < LARGEST_DIFFERENCE:
        raise UserError(
            f"the logits of ONNX differ by {difference:.2g} from PyTorch's, more than {LARGEST_DIFFERENCE}: export without "
            "ONNX (onnx=false)"
        )
    return [
        FormatResult(
            title,
            file,
            files[name].stat().st_size,
            kinds[name].measure(run.metrics[:1], logits[name], np.asarray(texts.gold), groups)[
                run.metrics[0]
            ],
            kinds[name]
            .agreement(logits[name], logits["student"], kinds["student"], groups)
            .get("label_loyalty"),
            None if name == "teacher" else float(np.abs(compared[name] - compared["student"]).max()),
            costs[name],
        )
        for name, (title, file) in FORMATS.items()
    ]


def formats_table(run: RunRecord, formats: list[FormatResult]) -> str:
    """What was measured of the formats."""
    costs, busy = formats[0].costs, busy_note(f.costs for f in formats)
    rows = [
        {"format": f.title, "size": f"{f.bytes / 1e6:.1f} MB", run.metrics[0]: f"{f.metric:.4f}",
         "same label": percent(f.agreement),
         "logits differ by": "-" if f.difference is None else f"{f.difference:.1e}",
         "latency": f"{f.costs.latency.p50:.2f} ms", "rows/s": f"{f.costs.rows_per_second:,.0f}"}
        for f in formats
    ]  # fmt: skip
    return (
        f"formats on {min(ROWS, run.about.rows):,} {run.about.split} rows; same label and difference of logits: "
        f"compared with the student in PyTorch\nlatency: median, one row of {costs.lengths.mean:.0f} tokens on "
        f"average; rows/s: 32 rows at once; {costs.threads} CPU threads\n{busy and busy + chr(10)}\n"
        f"{terminal_table(rows)}"
    )


def _load(directory: Path) -> Any:
    return load_classifier(ModelSource(str(directory)), capturing=False).eval()


def _reported(run: RunRecord) -> Split:
    """Rows that `evaluate` reported, their labels as class ids; of questions with candidates, whole ones."""
    if not run.predictions.is_file():
        raise UserError(f"{run.predictions} is missing: remove {run.path / 'evaluate'} and run the command of "
                        f"{run.name} again, or export without ONNX (onnx=false)")  # fmt: skip
    rows = [row for _, row in read_rows(run.predictions)]
    columns = [[row[name] for row in rows] for name in run.text_columns]
    gold = [run.kind.read(row["label"]) for row in rows]
    split = Split(columns[0], columns[1] if len(columns) == 2 else None, gold, run.kind.continued)
    groups = [1] * len(rows) if split.token_level else run.kind.groups(split) or [1] * len(rows)
    ends, wanted = np.cumsum(groups), min(ROWS, len(rows)) * len(groups) // len(rows)
    chosen = np.linspace(0, len(groups) - 1, wanted, dtype=int)
    return part(split, [row for i in chosen for row in range(ends[i] - groups[i], ends[i])])
