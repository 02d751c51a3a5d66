"""Evaluation: what each model of a run reaches on rows that no stage has seen, and what it costs."""

import csv
import math
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from checkpoints import store
from stages.distillation.models import load_classifier, load_config, load_tokenizer
from stages.distillation.teachers import class_order
from stages.distillation.view import inputs_of
from stages.rows import task_rows
from stages.stage import Stage
from stages.tasks.batches import TokenRows, collate
from stages.tasks.metrics import compute, constant_baseline
from stages.tasks.task import Task

BATCH = 64
LATENCY_ROWS = 100


def run(stage: Stage) -> None:
    """Score every model in `inputs["models"]` on the reported split, in fp32, and time it.

    The artefact is `results.json`; `<split>_predictions.csv` goes into the run's directory.
    """
    task = stage.task()
    split = "test" if "test" in task.splits else "dev"
    names = stage.options["models"]
    results, answers, timed = {}, {}, {}
    for name in names:
        source = stage.model(name)
        tokenizer = load_tokenizer(source)
        model = load_classifier(source, task.labels, own_labels=True, tapped=False).eval()
        order = class_order(load_config(source), task.labels, [])
        rows = task_rows(stage, task, split, tokenizer, stage.options["max_length"][name])
        logits = predict(model.to(stage.device), rows, stage.device)[:, order]
        answers[name] = decide(logits, task)
        scores = score(task, split, logits)
        if "dev_mismatched" in task.splits:
            other = task_rows(stage, task, "dev_mismatched", tokenizer, stage.options["max_length"][name])
            measured = score(task, "dev_mismatched", predict(model, other, stage.device)[:, order])
            scores |= {f"{key}_mismatched": value for key, value in measured.items()}
        timed[name] = (model.cpu(), rows)
        results[name] = {
            "metric": scores[task.selection],
            "parameters": sum(p.numel() for p in model.parameters()),
            "bytes": sum(p.stat().st_size for p in Path(source.name).glob("*.safetensors")),
            "scores": scores,
        }
    for name, milliseconds in latencies(timed).items():
        results[name]["latency_ms"] = milliseconds
    _write_predictions(stage.directory.parent / f"{split}_predictions.csv", task, split, answers)
    about = {"split": split, "rows": len(task.splits[split].labels), "selection": task.selection}
    stage.publish(lambda directory: store.write_json(directory / "results.json", results), about)


def predict(
    model: PreTrainedModel, rows: TokenRows, device: torch.device, precision=torch.float32
) -> np.ndarray:
    """Logits (rows, classes), from batches sorted by length."""
    logits = np.empty((len(rows), model.config.num_labels), np.float32)
    with torch.no_grad():
        for batch in batches_by_length(rows):
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                logits[batch.rows.numpy()] = model(**inputs_of(model, batch.to(device))).logits.float().cpu()
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
    return compute(task.metrics, decide(logits, task), task.splits[split].labels, classes)


def constant_score(task: Task, split: str = "dev") -> float:
    """What the best constant answer reaches on the selection metric."""
    classes = len(task.labels) if task.labels else None
    return constant_baseline((task.selection,), task.splits[split].labels, classes)[task.selection]


def warn_if_constant(stage: Stage, task: Task, reached: float) -> None:
    """Say so when what a stage reached on dev is no better than the best constant answer."""
    constant = constant_score(task)
    if reached <= constant:
        stage.say(
            f"warning: {task.selection} {reached:.4f} on dev is no better than a constant answer's {constant:.4f}"
        )


def decide(logits: np.ndarray, task: Task) -> np.ndarray:
    """Class indices, or scores for a regression."""
    return logits[:, 0] if task.labels is None else logits.argmax(-1)


def latencies(
    models: dict[str, tuple[PreTrainedModel, TokenRows]],
) -> dict[str, float]:
    """Median milliseconds of a forward pass of one row on the CPU, over real rows, the models in turn."""
    times = {name: [] for name in models}
    with torch.inference_mode():
        rows = next(iter(models.values()))[1]
        chosen = np.linspace(0, len(rows) - 1, min(LATENCY_ROWS, len(rows)), dtype=int)
        for warm in (True, False):
            for row in chosen[:10] if warm else chosen:
                for name, (model, own_rows) in models.items():
                    batch = inputs_of(model, collate(own_rows, np.array([row]), np.ones(1, np.float32)))
                    began = time.perf_counter()
                    model(**batch)
                    if not warm:
                        times[name].append((time.perf_counter() - began) * 1000)
    return {name: round(float(np.median(values)), 3) for name, values in times.items()}


def _write_predictions(path: Path, task: Task, split: str, answers: dict[str, np.ndarray]) -> None:
    rows = task.splits[split]
    name = (lambda value: task.labels[int(value)]) if task.labels else (lambda value: f"{value:.4f}")
    shown = [n for n in ("teacher", "distilled") if n in answers]
    aside = path.with_name(f".{path.name}")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_b"] if rows.text_b else []), "label", *shown])
        for i, (text, label) in enumerate(zip(rows.text_a, rows.labels, strict=True)):
            second = [rows.text_b[i]] if rows.text_b else []
            writer.writerow([text, *second, name(label), *(name(answers[n][i]) for n in shown)])
    aside.replace(path)
