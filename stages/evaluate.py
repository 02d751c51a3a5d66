"""Evaluation: the quality of each model of a run on the reported split, and its cost."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from checkpoints import store
from stages.distillation.compatibility import forward_flops
from stages.distillation.models import load_classifier, load_config, load_preprocessor
from stages.distillation.teachers import class_order
from stages.evaluation.costs import measure
from stages.evaluation.measures import calibration, class_scores, confidence_intervals, confusion, differ_most
from stages.evaluation.predict import predict
from stages.evaluation.prediction_files import write_predictions, write_submission
from stages.evaluation.results import Costs, EvaluationInfo, Interval, ModelResult, to_json
from stages.evaluation.scores import constant_score, score
from stages.tasks.kinds import Kind
from stages.tasks.task import Task
from stages.tasks.task_rows import TaskRows
from stages.teaching.given_answers import look_at_answers
from stages.training.progress import Progress
from stages.training.rows_of_task import rows_of
from stages.training.stage import Stage


@dataclass
class Examined:
    """A model and what it predicts.

    Attributes:
        model: on the CPU.
        rows: split -> its rows of tokens or pixels.
        logits: split -> logits, in the task's class order.
        kind: the task's, with what was chosen on dev for the model, such as a threshold.
        bytes: size of the weights' files.
    """

    model: PreTrainedModel
    rows: dict[str, TaskRows]
    logits: dict[str, np.ndarray]
    kind: Kind
    bytes: int


def run(stage: Stage) -> None:
    """Score every model in `options["models"]` on the reported split in fp32, then compare and time them.

    The artefact is `results.json`, an entry for each model; `<split>_predictions.csv` goes into the run's
    directory. docs/report.md says what each number means.
    """
    task = stage.task()
    split = "test" if "test" in task.splits else "dev"
    student = stage.options["student"]
    examined = examine(stage, task, split)
    logits = {name: e.logits[split] for name, e in examined.items()}
    with Progress(stage, None, "row", what="timing") as progress:
        costs = measure(
            {name: (e.model, e.rows[split]) for name, e in examined.items()}, advance=progress.advance
        )
    kinds = {name: e.kind for name, e in examined.items()}
    intervals, retained = confidence_intervals(task, split, logits, kinds)
    results = {
        name: model_result(replace(task, kind=e.kind), split, e, intervals[name], costs[name])
        for name, e in examined.items()
    }
    teacher = results["teacher"].metric
    for name, result in results.items():
        if name in retained and teacher > 0:
            result.retained, result.retained_interval = result.metric / teacher, retained[name]
        if name != "teacher":
            agreement: dict[str, Any] = kinds[name].agreement(
                logits[name], logits["teacher"], kinds["teacher"], task.groups(split)
            )
            results[name] = replace(result, **agreement)
    results[student].differ_most = differ_most(
        replace(task, kind=kinds[student]), split, logits[student], logits["teacher"], kinds["teacher"]
    )
    rows = task.splits[split]
    if "unlabelled" in stage.inputs:
        write_submission(stage, task)
    predictions = {name: kinds[name].cells(logits[name], rows) for name in ("teacher", student)}
    write_predictions(stage.directory.parent / f"{split}_predictions.csv", task, split, predictions)
    noise = None
    if {"record", "out_of_fold"} & stage.inputs.keys():
        noise, results["teacher"].differ_most = look_at_answers(stage, task)
    info = EvaluationInfo(
        split, len(rows), task.selection, constant_score(task, split), student,
        task.kind.name, list(task.labels) if task.labels else None, len(rows.gold) if task.token_level else None,
        task.gold, noise,
    )  # fmt: skip
    found = {name: to_json(result) for name, result in results.items()}
    stage.publish(lambda directory: store.write_json(directory / "results.json", found), to_json(info))


def examine(stage: Stage, task: Task, split: str) -> dict[str, Examined]:
    """Run each model on the reported split, on dev and, where there is one, on the mismatched dev split.

    The logits of each model on each split stay on disk until the stage is finished: a resumed stage reads them.
    """
    names, parts = stage.options["models"], {split, "dev", "dev_mismatched"} & task.splits.keys()
    total = len(names) * sum(len(task.splits[part]) for part in parts)
    # Only the tokenizer tells how many windows texts make.
    windows = task.splits[split].asks or task.kind.pooling
    done = sum(
        len(task.splits[part]) for name in names for part in parts if store.is_whole(_kept(stage, name, part))
    )
    with Progress(stage, None if windows else total, "row", done=done) as progress:
        return {name: _examined(stage, task, parts, name, progress) for name in names}


def _examined(stage: Stage, task: Task, parts: set[str], name: str, progress: Progress) -> Examined:
    source, max_length = stage.model(name), stage.options["max_length"][name]
    preprocessor, config = load_preprocessor(source, task.kind), load_config(source)
    model = load_classifier(source, capturing=False).eval().to(stage.device)
    order = class_order(config, task.labels, [])
    rows, logits = {}, {}
    for part in parts:
        rows[part] = rows_of(stage, task, part, preprocessor, max_length)
        kept = _kept(stage, name, part)
        if not store.is_whole(kept):
            found = predict(model, rows[part], stage.device, order=order, advance=progress.advance)
            with store.sealed(kept) as directory:
                np.save(directory / "logits.npy", found)
        logits[part] = np.load(kept / "logits.npy")
    weights = Path(source.name).glob("*.safetensors")
    kind = task.kind.of_model(config)
    return Examined(model.cpu(), rows, logits, kind, sum(path.stat().st_size for path in weights))


def _kept(stage: Stage, name: str, part: str) -> Path:
    return stage.directory / "logits" / name / part


def model_result(
    task: Task, split: str, examined: Examined, intervals: dict[str, Interval], costs: Costs
) -> ModelResult:
    """What was measured of one model by itself."""
    logits, model = examined.logits[split], examined.model
    scores = score(task, split, logits)
    if "dev_mismatched" in examined.logits:
        measured = score(task, "dev_mismatched", examined.logits["dev_mismatched"])
        scores |= {f"{key}_mismatched": value for key, value in measured.items()}
    length = float(examined.rows[split].lengths.mean())
    result = ModelResult(
        metric=scores[task.selection],
        scores=scores,
        intervals=intervals,
        parameters=sum(p.numel() for p in model.parameters()),
        bytes=examined.bytes,
        flops=forward_flops(model.config, length, length),
        costs=costs,
    )
    if task.kind.class_names:
        result.classes = class_scores(task, split, logits)
    if task.kind.exclusive:
        result.confusion = confusion(task, split, logits)
        result.calibration = calibration(task, split, examined.logits)
    return result
