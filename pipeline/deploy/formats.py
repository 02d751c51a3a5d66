"""The formats of an exported student side by side: their predictions on real rows, and their speed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from checkpoints.errors import UserError
from pipeline.report.run_record import RunRecord
from pipeline.report.tables import percent, terminal_table
from stages.distillation.models import ModelSource, load_classifier, load_config, load_tokenizer
from stages.distillation.task_heads import kind_of, one_output, to_one_output
from stages.distillation.teachers import class_order
from stages.evaluation.costs import speed
from stages.evaluation.predict import predict
from stages.evaluation.results import Costs, busy_note
from stages.tasks.kinds import Kind
from stages.tasks.tables import read_rows
from stages.tasks.token_rows import TokenRows, write_task_rows
from stages.tasks.types import Split

LARGEST_DIFFERENCE = 1e-3
"""Allowed between the fp32 logits of ONNX and of PyTorch; scores, in their own units, are first divided by the largest.
Rounding alone makes a thousandth of it."""

ROWS = 2500
"""Maximum number of rows to read, spread evenly over those that `evaluate` reported."""

Smaller = Literal["int8", "int8_static", "fp16"]

FORMATS = {
    "teacher": ("teacher, PyTorch fp32", ""),
    "student": ("student, PyTorch fp32", "model.safetensors"),
    "onnx": ("student, ONNX fp32", "onnx/model.onnx"),
    "int8": ("student, ONNX int8", "onnx/model_quantized.onnx"),
    "int8_static": ("student, ONNX int8, static", "onnx/model_static_quantized.onnx"),
    "fp16": ("student, ONNX fp16", "onnx/model_fp16.onnx"),
}
"""Format -> (title, file in the exported directory, under the name that the hub's tools look for)."""


@dataclass
class FormatResult:
    """What was measured of one format.

    Attributes:
        file: in the exported directory; empty for what is not exported: the teacher, and a format that changes too much.
        bytes: size of the weights' file.
        metric: the selection metric on the compared rows.
        agreement: fraction of these rows with the label or answer of the student in PyTorch; None for a regression.
        difference: the largest change of a row's probability, or score, from the student in PyTorch; None for the teacher.
        costs: latency and throughput.
        rows: number of rows on which formats are compared.
        in_fp32: layers of a smaller format that stay in fp32, numbered from 1.
    """

    title: str
    file: str
    bytes: int
    metric: float
    agreement: float | None
    difference: float | None
    costs: Costs
    rows: int
    in_fp32: list[int]


def compare_formats(
    run: RunRecord, directory: Path, smaller: Sequence[Smaller], max_changed: float
) -> list[FormatResult]:
    """Write the ONNX files of the model in `directory`, compare all formats on the run's rows, and time them.

    Every second row calibrates, and decides whether a smaller format keeps to `max_changed`, or which layers have to stay
    in fp32 for that. The others are those on which all formats are compared.

    Args:
        smaller: the formats beside fp32.
        max_changed: what a smaller format may change (`pipeline.deploy.smaller.changed`).

    Raises:
        UserError: onnx or onnxruntime is missing, or the fp32 logits of ONNX differ from those of PyTorch.
    """
    try:
        from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
        from pipeline.deploy.smaller import Deciding, write_smaller
    except ImportError as error:
        name = (error.name or "onnxruntime").partition(".")[0]
        raise UserError(
            f"ONNX files need {name}; export without them (onnx=false), or install it", package=name
        ) from error

    labels, (chosen_on, texts) = run.about.labels, _halves(run.kind, _reported(run))
    student, teacher = _load(directory), run.model("teacher")
    exported, source = _load(directory), ModelSource(str(directory))
    if one_output(load_config(source)):
        to_one_output(exported)
    files = {name: directory / FORMATS[name][1] for name in ("student", "onnx", *smaller)}
    files["teacher"] = teacher / "model.safetensors"
    files["onnx"].parent.mkdir()
    write_onnx(exported, load_tokenizer(source).model_input_names, files["onnx"])
    kind = run.kind.of_model(student.config)
    groups = kind.groups(texts)

    models: dict[str, Any] = {"teacher": _load(teacher), "student": student}
    in_fp32: dict[str, list[int] | None] = {}
    logits: dict[str, np.ndarray] = {}
    costs: dict[str, Costs] = {}
    with TemporaryDirectory() as folder:

        def rows_of(split: Split, model: str, name: str) -> TokenRows:
            tokenizer = load_tokenizer(ModelSource(str(files[model].parent)))
            length = run.max_length("teacher" if model == "teacher" else run.about.student)
            pooling = kind_of(models[model].config).pooling
            return write_task_rows([split], tokenizer, length, Path(folder) / name, pooling=pooling)

        few = Deciding(kind, rows_of(chosen_on, "student", "few"), kind.groups(chosen_on), max_changed)
        for format in smaller:
            in_fp32[format] = write_smaller(format, files["onnx"], files[format], student, few)
        rows = {name: rows_of(texts, name, name) for name in models}
        models |= {name: OnnxClassifier(files[name], student.config) for name in ("onnx", *smaller)}
        for name, model in models.items():
            own = rows["teacher" if name == "teacher" else "student"]
            order = class_order(model.config, labels, [])
            logits[name] = predict(model, own, torch.device("cpu"), order=order)
            # each format by itself: onnxruntime's idle threads spin, and would slow the others down
            costs |= speed({name: (model, own)})
    compared = {name: of[:, :2] if texts.asks else of for name, of in logits.items()}
    difference = float(np.abs(compared["onnx"] - compared["student"]).max())
    largest = float(np.abs(compared["student"]).max()) if kind.problem_type == "regression" else 1.0
    if not difference < (allowed := LARGEST_DIFFERENCE * largest):
        raise UserError(
            f"the logits of ONNX differ by {difference:.2g} from PyTorch's, more than {allowed:.2g}: export without ONNX "
            "(onnx=false)"
        )

    def result(name: str) -> FormatResult:
        title, file = FORMATS[name]
        left_out = name in in_fp32 and in_fp32[name] is None
        of = run.kind.of_model(models["teacher"].config) if name == "teacher" else kind
        worst = float(np.abs(of.probabilities(logits[name]) - kind.probabilities(logits["student"])).max())
        found = FormatResult(
            title + (" (left out)" if left_out else ""),
            "" if left_out else file,
            files[name].stat().st_size,
            of.measure(run.metrics[:1], of.said(logits[name], texts))[run.metrics[0]],
            of.agreement(logits[name], logits["student"], kind, groups).get("label_loyalty"),
            None if name == "teacher" else worst,
            costs[name],
            len(texts),
            in_fp32.get(name) or [],
        )
        if left_out:
            files[name].unlink()
        return found

    return [result(name) for name in models]


def formats_table(run: RunRecord, formats: list[FormatResult]) -> str:
    """What was measured of the formats."""
    costs, busy = formats[0].costs, busy_note(f.costs for f in formats)
    rows = [
        {"format": shown(f), "size": f"{f.bytes / 1e6:.1f} MB", run.metrics[0]: f"{f.metric:.4f}",
         "same label": percent(f.agreement),
         "worst row": "-" if f.difference is None else f"{f.difference:.4f}",
         "latency": f"{f.costs.latency.p50:.2f} ms", "rows/s": f"{f.costs.rows_per_second:,.0f}"}
        for f in formats
    ]  # fmt: skip
    return (
        f"formats on {formats[0].rows:,} {run.about.split} rows, compared with the student in PyTorch: same label; "
        f"worst row: largest change of a probability\nlatency: median, one row of {costs.lengths.mean:.0f} tokens on "
        f"average; rows/s: 32 rows at once; CPU threads: {costs.threads}\n"
        f"{''.join(note + chr(10) for note in (run.f1_note, busy) if note)}\n"
        f"{terminal_table(rows)}"
    )


def shown(of: FormatResult) -> str:
    """The title of a format, with what of it stays in fp32."""
    if not of.in_fp32:
        return of.title
    return f"{of.title} (layer {', '.join(map(str, of.in_fp32))} in fp32)"


def _load(directory: Path) -> Any:
    return load_classifier(ModelSource(str(directory)), capturing=False).eval()


def _reported(run: RunRecord) -> Split:
    """Rows that `evaluate` reported, their labels as class ids; of questions with candidates, whole ones."""
    if not run.predictions.is_file():
        raise UserError(f"{run.predictions} is missing: remove {run.path / 'evaluate'} and run the command of "
                        f"{run.name} again, or export without ONNX (onnx=false)")  # fmt: skip
    rows = [row for _, row in read_rows(run.predictions)]
    read = (([str(row[name]) for name in run.text_columns], run.kind.read(str(row["label"]))) for row in rows)
    split = Split.of(read, continued=run.kind.continued)
    groups = _groups(run.kind, split)
    wanted = min(ROWS, len(rows)) * len(groups) // len(rows)
    chosen = np.linspace(0, len(groups) - 1, wanted, dtype=int)
    return split.part([row for i in chosen for row in groups[i]])


def _groups(kind: Kind, split: Split) -> list[list[int]]:
    """The numbers of the rows that stay together: the candidates of a question, else each row by itself."""
    sizes = None if split.token_level else kind.groups(split)
    ends = np.cumsum(sizes or [1] * len(split))
    return [list(range(start, end)) for start, end in zip([0, *ends], ends, strict=False)]


def _halves(kind: Kind, split: Split) -> tuple[Split, Split]:
    """Every second row, or question with its candidates, and the others; a single one is in both."""
    groups = _groups(kind, split)
    halves = groups[::2], groups[1::2] or groups
    decide, compare = (split.part([row for group in half for row in group]) for half in halves)
    return decide, compare
