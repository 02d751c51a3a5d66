"""A teacher that is a table of answers: what a stage learns of each row, and how far an encoder is from the answers.

Axes in names: N rows that a stage trains on, V their texts (fewer, where rows are windows), T training rows of the task,
C labels.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_aug.variants import read_shard
from stages.distillation.models import load_tokenizer
from stages.evaluation.measures import answer_noise, differ_most
from stages.evaluation.prediction_files import write_answers
from stages.evaluation.results import AnswerNoise, Disagreement
from stages.tasks.task import Task, part
from stages.tasks.token_rows import TokenRows
from stages.teaching.recorded_logits import TEACHER_LOGITS_FILE
from stages.training.cached_rows import train_rows
from stages.training.stage import Stage


def answer_logits(task: Task) -> np.ndarray:
    """(T, C) the answers as logits, whose softmax (or sigmoids) they are."""
    return task.kind.logits(np.array(task.splits["train"].answers)).astype(np.float32)


def original_rows(stage: Stage, task: Task) -> np.ndarray:
    """(V,) for each text that a stage trains on the training row of the task that it is, -1 for a variant of one."""
    if "augmented" not in stage.inputs:
        return np.arange(len(task.splits["train"]))
    shards = [read_shard(path)[3:] for path in sorted(stage.artifact_dir("augmented").glob("rows-*.arrow"))]
    rows, variants = (np.concatenate([np.array(part[i]) for part in shards]) for i in (0, 1))
    return np.where(variants == 0, rows, -1)


def with_answers(
    stage: Stage, task: Task, rows: TokenRows, encoder_NC: np.ndarray | None, leave_out: float
) -> np.ndarray:
    """(N, C) what the rows of a stage learn: their answers, and the encoder's logits where they have none.

    A variant that augmentation made has no answer. Of the answers, those that are farthest from the encoder's
    distribution count as noise and are left out.

    Args:
        stage: that trains.
        task: with answers.
        rows: those that it trains on.
        encoder_NC: the encoder's logits of these rows; None where every row has an answer, and none is left out.
        leave_out: ratio of the answers that is left out.
    """
    answers_TC, originals_V = answer_logits(task), original_rows(stage, task)
    answered_V = originals_V >= 0
    found_VC = answers_TC[originals_V]
    if encoder_NC is None:
        return found_VC[rows.texts]
    distances = task.kind.distances(found_VC[answered_V], rows.of_texts(encoder_NC)[answered_V])
    noisiest = np.argsort(-distances, kind="stable")[: round(leave_out * len(distances))]
    answered_V[np.flatnonzero(answered_V)[noisiest]] = False
    if len(noisiest):
        stage.log(f"{len(noisiest):,} of {len(distances):,} answers are left out: there the encoder answers")
    return np.where(answered_V[rows.texts, None], found_VC[rows.texts], encoder_NC)


def look_at_answers(stage: Stage, task: Task) -> tuple[AnswerNoise, list[Disagreement]]:
    """How far the answers are from the encoder tuned on them, which has seen them, on the training rows.

    Its logits are those that the intermediate stage, the input "record", has kept. `answers.csv` goes into the run's
    directory.
    """
    answers_TC, originals_V = answer_logits(task), original_rows(stage, task)
    record = stage.model("record")
    rows = train_rows(stage, task, load_tokenizer(record), stage.options["record_length"])
    table_VC = rows.of_texts(np.load(Path(record.name) / TEACHER_LOGITS_FILE))
    encoder_TC = np.full_like(answers_TC, np.nan)
    encoder_TC[originals_V[originals_V >= 0]] = table_VC[originals_V >= 0]
    known = np.flatnonzero(
        ~np.isnan(encoder_TC).any(1)
    )  # a stage that ended within an epoch has not seen all
    seen = replace(task, splits={"train": part(task.splits["train"], known.tolist())})
    answers, encoder = answers_TC[known], encoder_TC[known]
    write_answers(stage.directory.parent / "answers.csv", seen, answers, encoder)
    return answer_noise(task.kind, answers, encoder), differ_most(seen, "train", encoder, answers)
