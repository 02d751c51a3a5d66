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
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.recorded_logits import TEACHER_LOGITS_FILE
from stages.training.cached_rows import train_rows
from stages.training.stage import Stage

LOGITS_FILE = "out_of_fold_logits.npy"
"""(T, C), what the stage `out_of_fold` makes."""


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


def learned_answers(stage: Stage, task: Task) -> np.ndarray:
    """(T, C) the answers as a stage learns them: what is doubtful by out-of-fold predictions is replaced or mixed."""
    answers_TC = answer_logits(task)
    if "out_of_fold" not in stage.inputs:
        return answers_TC
    return _doubted(stage, task, answers_TC, np.load(stage.artifact_dir("out_of_fold") / LOGITS_FILE))


def needs_encoder(stage: Stage) -> bool:
    """Whether a stage that learns answers needs the encoder's logits of its rows."""
    doubts = stage.options["leave_out"] or "weight" in stage.options
    return "augmented" in stage.inputs or bool(doubts) and "out_of_fold" not in stage.inputs


def with_answers(stage: Stage, task: Task, rows: TokenRows, encoder_NC: np.ndarray | None) -> np.ndarray:
    """(N, C) what the rows of a stage learn: their answers, and the encoder's logits where they have none.

    A variant that augmentation made has no answer. With the option `leave_out`, the answers farthest from the encoder's
    predictions are replaced by these; with `weight`, every answer is mixed with its prediction. Out-of-fold predictions
    are used if the stage has them.

    Args:
        task: with answers.
        rows: those that it trains on.
        encoder_NC: the encoder's logits of these rows; None unless `needs_encoder`.
    """
    answers_TC, originals_V = learned_answers(stage, task), original_rows(stage, task)
    answered_V = originals_V >= 0
    if encoder_NC is None:
        return answers_TC[originals_V[rows.texts]]
    if "out_of_fold" not in stage.inputs:
        encoder_TC = np.empty_like(answers_TC)
        encoder_TC[originals_V[answered_V]] = rows.of_texts(encoder_NC)[answered_V]
        answers_TC = _doubted(stage, task, answers_TC, encoder_TC)
    return np.where(answered_V[rows.texts, None], answers_TC[originals_V[rows.texts]], encoder_NC)


def _doubted(stage: Stage, task: Task, answers_TC: np.ndarray, encoder_TC: np.ndarray) -> np.ndarray:
    """(T, C) the answers, those that are doubtful beside an encoder's predictions replaced by these or mixed with them.

    A mixture trusts an answer by its agreement with the prediction: soft bootstrapping (Reed et al. 2015, arXiv
    1412.6596, section 3.3) with a weight for each row.

    Args:
        stage: its options `leave_out`, the ratio of the answers that are replaced, and `weight`.
        task: with answers.
        answers_TC, encoder_TC: logits.
    """
    kind, options = task.kind, stage.options
    distances_T = kind.distances(answers_TC, encoder_TC)
    noisiest = np.argsort(-distances_T, kind="stable")[: round(options["leave_out"] * len(distances_T))]
    learned_TC = answers_TC.copy()
    if "weight" in options:
        trust_T1 = (1 - distances_T)[:, None]
        mixed_TC = trust_T1 * kind.probabilities(answers_TC) + (1 - trust_T1) * kind.probabilities(encoder_TC)
        learned_TC = kind.logits(mixed_TC).astype(np.float32)
        stage.log(f"answers are mixed with the encoder's: their weight is {trust_T1.mean():.2f} on average")
    if len(noisiest):
        stage.log(
            f"{len(noisiest):,} of {len(distances_T):,} answers are left out: there the encoder answers"
        )
    learned_TC[noisiest] = encoder_TC[noisiest]
    return learned_TC


def look_at_answers(stage: Stage, task: Task) -> tuple[AnswerNoise, list[Disagreement]]:
    """How far the answers are from the encoder's predictions of the training rows.

    These are out of fold (the input "out_of_fold"), or those that the intermediate stage has kept (the input "record") of
    the encoder that was tuned on the answers and has seen them. `answers.csv` goes into the run's directory.
    """
    answers_TC = answer_logits(task)
    if "out_of_fold" in stage.inputs:
        encoder_TC = np.load(stage.artifact_dir("out_of_fold") / LOGITS_FILE)
    else:
        encoder_TC = _recorded(stage, task, answers_TC.shape)
    # A stage that ended within an epoch has not seen all.
    known = np.flatnonzero(~np.isnan(encoder_TC).any(1))
    seen = replace(task, splits={"train": task.splits["train"].part(known.tolist())})
    answers, encoder = answers_TC[known], encoder_TC[known]
    write_answers(stage.directory.parent / "answers.csv", seen, answers, encoder)
    return answer_noise(task.kind, answers, encoder), differ_most(seen, "train", encoder, answers)


def _recorded(stage: Stage, task: Task, shape: tuple[int, ...]) -> np.ndarray:
    """(T, C) the logits that the intermediate stage has kept of the training rows; NaN where it saw none."""
    originals_V, record = original_rows(stage, task), stage.model("record")
    rows = train_rows(stage, task, load_tokenizer(record), stage.options["record_length"])
    table_VC = rows.of_texts(np.load(Path(record.name) / TEACHER_LOGITS_FILE))
    encoder_TC = np.full(shape, np.nan, np.float32)
    encoder_TC[originals_V[originals_V >= 0]] = table_VC[originals_V >= 0]
    return encoder_TC
