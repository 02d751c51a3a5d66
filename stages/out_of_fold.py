"""What encoders say to answers that they have not seen: each was tuned without one fold of the answers, and judges that.

An encoder tuned on all answers follows some wrong ones, and is no judge of them. These predictions are out of fold, as
in confident learning (Northcutt et al. 2021, arXiv 1911.00068, section 3.1).
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from stages.distillation.models import load_tokenizer
from stages.tasks.task import fold_rows
from stages.teaching.given_answers import LOGITS_FILE
from stages.teaching.recorded_logits import compute_logits
from stages.training.cached_rows import task_rows
from stages.training.stage import Stage


def run(stage: Stage) -> None:
    """Publish the logits (T, C) of all T training rows, each from the encoder that was tuned without it."""
    task, folds = stage.task(), stage.options["folds"]
    train = task.splits["train"]
    logits_TC = np.empty((len(train), task.kind.outputs), np.float32)
    for fold in range(folds):
        given, chosen = f"fold-{fold + 1}", fold_rows(len(train), fold, folds)
        name = f"{given} of {folds}"  # of the rows in the cache
        of_fold = replace(task, splits={name: train.part(chosen)})
        rows = task_rows(
            stage, of_fold, name, load_tokenizer(stage.model(given)), stage.options["max_length"]
        )
        logits = compute_logits(stage, task, rows, np.arange(len(rows)), given)
        logits_TC[chosen] = rows.of_texts(logits)

    def write(directory: Path) -> None:
        np.save(directory / LOGITS_FILE, logits_TC)

    stage.publish(write, {"rows": len(train)})
