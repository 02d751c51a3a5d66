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
    stage.__name__.removeprefix("stages."): stage.run
    for stage in (
        check, vocabulary, teacher, out_of_fold, general, masked_lm, augment, intermediate, prediction, student,
        pretrain, finetune, select, evaluate,
    )
}  # fmt: skip
"""What runs a stage, by its `stage_type`."""
