"""The forms in which a student is deployed, side by side: what each answers on real rows, and how fast it is."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from checkpoints.errors import UserError
from pipeline.report.run_record import RunRecord
from stages.distillation.models import ModelSource, load_classifier, load_tokenizer
from stages.distillation.teachers import class_order
from stages.evaluation.costs import speed
from stages.evaluation.predict import predict
from stages.tasks.metrics import compute
from stages.tasks.tables import read_rows
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split

LARGEST_DIFFERENCE = 1e-3
"""Of the logits of ONNX in fp32 from those of PyTorch: rounding is a thousandth of it."""

ROWS = 2500
"""Rows on which the forms are compared, spread over those that `evaluate` reported."""

FORMS = {
    "teacher": ("teacher, PyTorch fp32", ""),
    "student": ("student, PyTorch fp32", "model.safetensors"),
    "onnx": ("student, ONNX fp32", "onnx/model.onnx"),
    "int8": ("student, ONNX int8", "onnx/model_quantized.onnx"),
}
"""Form -> (title, file in the exported directory): the hub's names, under which others look for them."""


@dataclass
class Form:
    """A form in which a model is deployed, and what was measured of it.

    Attributes:
        title: as shown.
        file: in the exported directory, empty for the teacher, which is not there.
        bytes: of its weights' file.
        metric: the task's, on the compared rows.
        equal: share of these rows with the answer of the student in PyTorch; None for a regression.
        difference: the largest of its logits from those of the student in PyTorch; None for the teacher.
        costs: what `speed` gives.
    """

    title: str
    file: str
    bytes: int
    metric: float
    equal: float | None
    difference: float | None
    costs: dict[str, Any]


def compared_forms(run: RunRecord, directory: Path) -> list[Form]:
    """Write the ONNX files of the model in `directory`, compare their answers on the run's rows and time them.

    Raises:
        UserError: onnx or onnxruntime is missing, or the logits of fp32 are not those of PyTorch.
    """
    try:
        from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: run `make setup`, or leave ONNX out (onnx=false)"
        ) from error

    labels, texts = run.about["labels"], _reported(run)
    student = _load(directory, labels)
    teacher = run.model("teacher")
    files = {name: directory / file for name, (_, file) in FORMS.items() if file}
    files["teacher"] = teacher / "model.safetensors"
    files["onnx"].parent.mkdir()
    write_onnx(student, files["onnx"], files["int8"])
    models = {"teacher": _load(teacher, labels), "student": student}
    models |= {name: OnnxClassifier(files[name], student.config) for name in ("onnx", "int8")}

    logits, costs = {}, {}
    with TemporaryDirectory() as folder:
        rows = {}
        for name in ("teacher", "student"):
            tokenizer = load_tokenizer(ModelSource(str(files[name].parent)))
            length = run.max_length("teacher" if name == "teacher" else run.main)
            rows[name] = write_task_rows([texts], tokenizer, length, Path(folder) / name)
        for name, model in models.items():
            own = rows["teacher" if name == "teacher" else "student"]
            order = class_order(model.config, labels, [])
            logits[name] = predict(model, own, torch.device("cpu"))[:, order]
            # each alone: threads that wait busily for the next pass would slow the others down
            costs |= speed({name: (model, own)})
    difference = float(np.abs(logits["onnx"] - logits["student"]).max())
    if not difference < LARGEST_DIFFERENCE:
        raise UserError(
            f"ONNX gives logits that are {difference:.2g} from PyTorch's, at most {LARGEST_DIFFERENCE} may be: "
            "leave ONNX out (onnx=false)"
        )
    return [
        Form(
            title,
            file,
            files[name].stat().st_size,
            _metric(run, logits[name], texts.gold),
            _equal(run, logits[name], logits["student"]),
            None if name == "teacher" else float(np.abs(logits[name] - logits["student"]).max()),
            costs[name],
        )
        for name, (title, file) in FORMS.items()
    ]


def forms_table(run: RunRecord, forms: list[Form]) -> str:
    """What was measured of the forms, within 110 columns."""
    metric, costs = run.metrics[0], forms[0].costs
    lines = [
        f"{'form':<24}{'size':>9}{metric:>12}{'same answer':>13}{'largest difference':>20}{'latency':>11}{'rows/s':>9}"
    ]
    for form in forms:
        equal = "-" if form.equal is None else f"{form.equal:.1%}"
        difference = "-" if form.difference is None else f"{form.difference:.1e}"
        lines.append(
            f"{form.title:<24}{form.bytes / 1e6:>7.1f}MB{form.metric:>12.4f}{equal:>13}{difference:>20}"
            f"{form.costs['latency_ms']:>9.2f}ms{form.costs['rows_per_second']:>9,.0f}"
        )
    lines.append(
        f"(same answer, difference of logits: from the student in PyTorch, on {min(ROWS, run.about['rows']):,} "
        f"{run.about['split']} rows; latency: one row of\n{costs['lengths']['mean']:.0f} tokens in the mean, "
        f"median; rows/s: 32 at once; {costs['threads']} threads)"
    )
    return "\n".join(lines)


def _load(directory: Path, labels: list[str] | None) -> Any:
    return load_classifier(ModelSource(str(directory)), labels, own_labels=True, tapped=False).eval()


def _reported(run: RunRecord) -> Split:
    """Rows that `evaluate` reported, with the labels as numbers."""
    if not run.predictions.is_file():
        raise UserError(f"{run.predictions} is missing: remove {run.path / 'evaluate'} and run the command of "
                        f"{run.name} again, or leave ONNX out (onnx=false)")  # fmt: skip
    rows = [row for _, row in read_rows(run.predictions)]
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, min(ROWS, len(rows)), dtype=int)]
    columns = [[row[name] for row in rows] for name in run.texts]
    labels = run.about["labels"]
    if "words" in run.about:
        gold = [[labels.index(tag) for tag in row["label"].split(" ")] for row in rows]
    else:
        gold = [labels.index(row["label"]) if labels else float(row["label"]) for row in rows]
    return Split(columns[0], columns[1] if len(columns) == 2 else None, gold)


def _metric(run: RunRecord, logits: np.ndarray, gold: list) -> float:
    labels, metric = run.about["labels"], run.metrics[0]
    answers = logits.argmax(-1) if labels else logits[:, 0]
    return compute((metric,), answers, gold, len(labels) if labels else None)[metric]


def _equal(run: RunRecord, logits: np.ndarray, others: np.ndarray) -> float | None:
    return float((logits.argmax(-1) == others.argmax(-1)).mean()) if run.about["labels"] else None
