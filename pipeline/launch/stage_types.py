"""The stages there are. Imports all of them, and so torch: only processes that run stages import this."""

from collections.abc import Callable

from stages import (
    augment,
    check,
    evaluate,
    finetune,
    general,
    intermediate,
    masked_lm,
    out_of_fold,
    prediction,
    pretrain,
    select,
    student,
    teacher,
    vocabulary,
)
from stages.training.stage import Stage

STAGE_TYPES: dict[str, Callable[[Stage], None]] = {
    "check": check.run,
    "vocabulary": vocabulary.run,
    "teacher": teacher.run,
    "out_of_fold": out_of_fold.run,
    "general": general.run,
    "masked_lm": masked_lm.run,
    "augment": augment.run,
    "intermediate": intermediate.run,
    "prediction": prediction.run,
    "student": student.run,
    "pretrain": pretrain.run,
    "finetune": finetune.run,
    "select": select.run,
    "evaluate": evaluate.run,
}
"""What runs a stage, by its `stage_type`."""
