"""Evaluation: what each model of a run reaches on rows that no stage has seen, and what it costs."""

import csv
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from checkpoints import store
from stages.distillation.compatibility import forward_flops
from stages.distillation.models import load_classifier, load_config, load_tokenizer
from stages.distillation.teachers import class_order
from stages.evaluation.costs import measure
from stages.evaluation.measures import add_intervals, calibration, classes_of, decide, differ_most, loyalty
from stages.evaluation.predict import predict
from stages.evaluation.scores import constant_score, score
from stages.tasks.readers import glue
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.training.cached_rows import task_rows
from stages.training.stage import Stage


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
    about |= {"words": len(task.splits[split].gold)} if task.token_level else {}
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


def write_submission(stage: Stage, task: Task) -> None:
    """The student's answers to GLUE's unlabelled test rows, as the zip file that GLUE's site takes."""
    student = stage.options["student"]
    source, max_length = stage.model(student), stage.options["max_length"][student]
    tokenizer = load_tokenizer(source)
    model = load_classifier(source, task.labels, tapped=False).eval().to(stage.device)
    path = stage.directory.parent / "glue_submission.zip"
    staging = path.with_name(f".{path.name}")
    with zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(stage.inputs["unlabelled"]["identity"]["files"].items()):
            indices, split = glue.read_unlabelled(task.name, Path(file))
            test = replace(task, splits={name: split})
            rows = task_rows(stage, test, name, tokenizer, max_length, "unlabelled")
            answers = decide(predict(model, rows, stage.device), task).tolist()
            lines = [
                f"{i}\t{glue.written_answer(task.name, a)}" for i, a in zip(indices, answers, strict=True)
            ]
            archive.writestr(name, "\n".join(["index\tprediction", *lines]) + "\n")
    staging.replace(path)
    stage.log(f"the student's answers to GLUE's test rows are in {path}")


def _write_predictions(path: Path, task: Task, split: str, answers: dict[str, np.ndarray]) -> None:
    rows = task.splits[split]
    if task.token_level:
        ends = np.cumsum([len(labels) for labels in rows.labels])[:-1]
        answers = {model: np.split(of, ends) for model, of in answers.items()}

    def name(value: Any) -> str:
        if task.token_level:  # with spaces between, as the words have
            return " ".join(task.labels[int(tag)] for tag in value)
        return task.labels[int(value)] if task.labels else f"{value:.4f}"

    staging = path.with_name(f".{path.name}")
    with open(staging, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_b"] if rows.text_b else []), "label", *answers])
        for i, (text, label) in enumerate(zip(rows.text_a, rows.labels, strict=True)):
            second = [rows.text_b[i]] if rows.text_b else []
            writer.writerow([text, *second, name(label), *(name(of[i]) for of in answers.values())])
    staging.replace(path)
