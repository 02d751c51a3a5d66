"""The files with predictions that `evaluate` leaves in a run's directory."""

import csv
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from checkpoints import store
from stages.distillation.models import load_classifier, load_tokenizer
from stages.evaluation.measures import answer_entropy
from stages.evaluation.predict import predict
from stages.tasks.readers import glue
from stages.tasks.task import Task
from stages.training.cached_rows import task_rows
from stages.training.progress import Progress
from stages.training.stage import Stage


def write_submission(stage: Stage, task: Task) -> None:
    """Predict GLUE's unlabelled test rows with the student, and write the zip file that GLUE's site takes."""
    student = stage.options["student"]
    source, max_length = stage.model(student), stage.options["max_length"][student]
    tokenizer = load_tokenizer(source)
    model = load_classifier(source, capturing=False).eval().to(stage.device)
    path = stage.directory.parent / "glue_submission.zip"
    with store.replaced(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(stage.inputs["unlabelled"]["identity"]["files"].items()):
            indices, split = glue.read_unlabelled(task.name, Path(file))
            test = replace(task, splits={name: split})
            rows = task_rows(stage, test, name, tokenizer, max_length, "unlabelled")
            with Progress(stage, len(rows), "row", what=name) as progress:
                logits = predict(model, rows, stage.device, advance=progress.advance)
            predictions = task.kind.of_model(model.config).answers(logits).tolist()
            lines = [
                f"{i}\t{glue.written_answer(task.name, p)}" for i, p in zip(indices, predictions, strict=True)
            ]
            archive.writestr(name, "\n".join(["index\tprediction", *lines]) + "\n")
    stage.log(f"the student's predictions of GLUE's test rows are in {path}")


def write_answers(path: Path, task: Task, answers: np.ndarray, encoder: np.ndarray) -> None:
    """Write the training rows as CSV, those first on which the answers and the encoder tuned on them differ most.

    Args:
        task: with answers.
        answers, encoder: (rows, labels) logits.
    """
    train, kind = task.splits["train"], task.kind
    distances = kind.distances(answers, encoder)
    bits = answer_entropy(kind, answers) if kind.labels else np.zeros(len(answers))
    said, of_encoder = kind.answers(answers), kind.answers(encoder)
    with store.replaced(path) as staging, open(staging, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        second = ["text_b"] if train.text_b else []
        writer.writerow(["row", "text", *second, "answer", "encoder", "distance", "entropy"])
        for i in np.argsort(-distances, kind="stable"):
            labels = kind.written(said[i]), kind.written(of_encoder[i])
            writer.writerow([i, *train.texts(i), *labels, f"{distances[i]:.4f}", f"{bits[i]:.4f}"])


def write_predictions(path: Path, task: Task, split: str, predictions: dict[str, list[str]]) -> None:
    """Write the rows of a split with their labels and each model's predictions (`Kind.cells`), as CSV."""
    rows = task.splits[split]
    with store.replaced(path) as staging, open(staging, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_b"] if rows.text_b else []), "label", *predictions])
        for i, label in enumerate(rows.labels):
            said = [cells[i] for cells in predictions.values()]
            writer.writerow([*rows.texts(i), task.kind.written(label), *said])
