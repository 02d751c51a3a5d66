"""Evaluation: what each model of a run reaches on rows that no stage has seen, and what it costs."""

import csv
import math
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from checkpoints import store
from stages.costs import measure
from stages.distillation.checks import forward_flops
from stages.distillation.models import load_classifier, load_config, load_tokenizer
from stages.distillation.teachers import class_order
from stages.distillation.view import inputs_of
from stages.measures import add_intervals, calibration, classes_of, decide, differ_most, loyalty
from stages.rows import task_rows
from stages.stage import Stage
from stages.tasks import glue
from stages.tasks.batches import TokenRows, collate, places
from stages.tasks.metrics import compute, constant_baseline
from stages.tasks.task import Task

BATCH = 64


def run(stage: Stage) -> None:
    """Score every model in `inputs["models"]` on the reported split, in fp32, compare and time them.

    The artefact is `results.json`, an entry for each model; `<split>_predictions.csv` goes into the run's
    directory. docs/report.md says what each number means.
    """
    task = stage.task()
    split = "test" if "test" in task.splits else "dev"
    results, logits, timed = {}, {}, {}
    for name in stage.options["models"]:
        results[name], logits[name], timed[name] = examine(stage, task, split, name)
    add_intervals(task, split, logits, results)
    for name in results.keys() - {"teacher"}:
        results[name] |= loyalty(task, logits[name], logits["teacher"])
    student = stage.options["student"]
    results[student]["differ_most"] = differ_most(task, split, logits[student], logits["teacher"])
    for name, costs in measure(timed).items():
        results[name] |= costs
    if "unlabelled" in stage.inputs:
        write_submission(stage, task)
    answers = {name: decide(values, task) for name, values in logits.items()}
    answers = {name: answers[name] for name in ("teacher", student)}
    _write_predictions(stage.directory.parent / f"{split}_predictions.csv", task, split, answers)
    about = {
        "split": split,
        "rows": len(task.splits[split]),
        "selection": task.selection,
        "constant": constant_score(task, split),
        "labels": task.labels,
        "student": student,
    }
    about |= {"words": len(task.splits[split].gold)} if task.words else {}
    stage.publish(lambda directory: store.write_json(directory / "results.json", results), about)


def examine(
    stage: Stage, task: Task, split: str, name: str
) -> tuple[dict[str, Any], np.ndarray, tuple[PreTrainedModel, TokenRows]]:
    """One model by itself: (its entry, its logits of the split in the task's class order, what is to be timed)."""
    source, max_length = stage.model(name), stage.options["max_length"][name]
    tokenizer, config = load_tokenizer(source), load_config(source)
    model = load_classifier(source, task.labels, own_labels=True, tapped=False).eval().to(stage.device)
    order = class_order(config, task.labels, [])
    rows, logits = {}, {}
    for part in {split, "dev", "dev_mismatched"} & task.splits.keys():
        rows[part] = task_rows(stage, task, part, tokenizer, max_length)
        logits[part] = predict(model, rows[part], stage.device)[:, order]
    scores = score(task, split, logits[split])
    if "dev_mismatched" in logits:
        measured = score(task, "dev_mismatched", logits["dev_mismatched"])
        scores |= {f"{key}_mismatched": value for key, value in measured.items()}
    length = float(rows[split].lengths.mean())
    entry = {
        "metric": scores[task.selection],
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": sum(p.stat().st_size for p in Path(source.name).glob("*.safetensors")),
        "flops": forward_flops(config, length, length),
        "scores": scores,
    }
    if task.labels:
        entry |= classes_of(task, split, logits[split])
        entry["calibration"] = calibration(task, split, logits)
    return entry, logits[split], (model.cpu(), rows[split])


def predict(
    model: PreTrainedModel, rows: TokenRows, device: torch.device, precision=torch.float32
) -> np.ndarray:
    """Logits (answers, classes) of the rows, or of their words one after another; from batches sorted by length."""
    logits = np.empty((rows.answers.sum(), model.config.num_labels), np.float32)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                found = model(**inputs_of(model, batch.to(device))).logits.float().cpu()
            logits[places(rows, batch)[batch.asked].numpy()] = found[batch.asked]
    return logits


def batches_by_length(rows: TokenRows, size: int = BATCH, of: np.ndarray | None = None) -> Iterable:
    """Batches in order of length, each row (or each of the rows `of`) once."""
    order = (
        np.argsort(rows.lengths, kind="stable")
        if of is None
        else of[np.argsort(rows.lengths[of], kind="stable")]
    )
    for chunk in np.array_split(order, math.ceil(len(order) / size)):
        yield collate(rows, chunk, np.ones(len(chunk), np.float32))


def score(task: Task, split: str, logits: np.ndarray) -> dict[str, float]:
    """All metrics of the task, of logits in its class order."""
    classes = len(task.labels) if task.labels else None
    return compute(task.metrics, decide(logits, task), task.splits[split].gold, classes)


def constant_score(task: Task, split: str = "dev") -> float:
    """What the best constant answer reaches on the selection metric."""
    classes = len(task.labels) if task.labels else None
    return constant_baseline((task.selection,), task.splits[split].gold, classes)[task.selection]


def warn_if_constant(stage: Stage, task: Task, reached: float) -> None:
    """Say so when what a stage reached on dev is no better than the best constant answer."""
    constant = constant_score(task)
    if reached <= constant:
        stage.say(
            f"warning: {task.selection} {reached:.4f} on dev is no better than a constant answer's {constant:.4f}"
        )


def write_submission(stage: Stage, task: Task) -> None:
    """The student's answers to GLUE's unlabelled test rows, as the zip file that GLUE's site takes."""
    student = stage.options["student"]
    source, max_length = stage.model(student), stage.options["max_length"][student]
    tokenizer = load_tokenizer(source)
    model = load_classifier(source, task.labels, tapped=False).eval().to(stage.device)
    path = stage.directory.parent / "glue_submission.zip"
    aside = path.with_name(f".{path.name}")
    with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(stage.inputs["unlabelled"]["identity"]["files"].items()):
            indices, split = glue.read_unlabelled(task.name, Path(file))
            test = replace(task, splits={name: split})
            rows = task_rows(stage, test, name, tokenizer, max_length, "unlabelled")
            answers = decide(predict(model, rows, stage.device), task).tolist()
            lines = [
                f"{i}\t{glue.written_answer(task.name, a)}" for i, a in zip(indices, answers, strict=True)
            ]
            archive.writestr(name, "\n".join(["index\tprediction", *lines]) + "\n")
    aside.replace(path)
    stage.say(f"the student's answers to GLUE's test rows are in {path}")


def _write_predictions(path: Path, task: Task, split: str, answers: dict[str, np.ndarray]) -> None:
    rows = task.splits[split]
    if task.words:
        ends = np.cumsum([len(labels) for labels in rows.labels])[:-1]
        answers = {model: np.split(of, ends) for model, of in answers.items()}

    def name(value: Any) -> str:
        if task.words:  # with spaces between, as the words have
            return " ".join(task.labels[int(tag)] for tag in value)
        return task.labels[int(value)] if task.labels else f"{value:.4f}"

    aside = path.with_name(f".{path.name}")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_b"] if rows.text_b else []), "label", *answers])
        for i, (text, label) in enumerate(zip(rows.text_a, rows.labels, strict=True)):
            second = [rows.text_b[i]] if rows.text_b else []
            writer.writerow([text, *second, name(label), *(name(of[i]) for of in answers.values())])
    aside.replace(path)
