"""Oracle Teacher (Yoon et al., arXiv 2111.03664): the teacher of a student of strings may read the strings, too."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.distillation.outputs import CaptureSpec
from stages.evaluation.predict import predict
from stages.methods.base import Method, Targets
from stages.tasks.kinds import Sequences
from stages.tasks.kinds.base import Said
from stages.tasks.readers import strips
from stages.tasks.strip_rows import COLUMNS
from stages.tasks.task import Task
from stages.teaching.live_teacher import task_teacher
from stages.training.stage import Stage


class OracleTeacher(Method):
    """The student learns from the model in `reads`: an oracle, or any other that answers frame by frame.

    The oracle is an earlier student of kind `strip_oracle`. It is given the strings of the rows; the student is not. On
    dev this measures of student and teacher:

    - the character error rate, and the rate with the images of other rows, which is no higher for an oracle that copies;
    - the fraction of emitted symbols that stand inside that symbol's place on the strip (of `digit-strings`, whose places
      are known).

    Args:
        reads: the teacher's name; none: the student learns without one, and is measured.
    """

    def __init__(self, reads: Sequence[str]):
        super().__init__()
        if len(reads) > 1:
            raise UserError(f"[{', '.join(reads)}] must name one teacher, or none", argument="reads")
        self.teacher = f"reads {reads[0]}" if reads else ""

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse other tasks than strings, and a loss on a teacher where none is named."""
        if not isinstance(task.kind, Sequences):
            raise UserError(
                f"oracle_teacher is for strings of symbols, and the task has {task.kind.name}; take plain",
                argument="method",
            )
        if spec != CaptureSpec() and not self.teacher:
            raise UserError(
                "the losses read a teacher, and none is named; name one, or leave them out", argument="reads"
            )

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """What the teacher in `reads` says of each frame, in each step."""
        if spec == CaptureSpec():
            return dict.fromkeys(rows)
        return dict.fromkeys(rows, task_teacher(stage, task, spec, self.teacher))

    def examine(self, stage: Stage, task: Task, model: Distillation, dev: Any) -> None:
        """Fill `found`."""
        models: dict[str, Any] = {"": model.student}
        if self.teacher:
            models["teacher's "] = task_teacher(stage, task, CaptureSpec(logits=True), self.teacher).model
        gold = np.asarray(task.splits["dev"].gold)
        assert isinstance(task.kind, Sequences)
        for whose, of in models.items():
            logits = predict(of.eval(), dev, stage.device, stage.precision)
            others = predict(of, dev.with_others_images, stage.device, stage.precision)
            for name, values in (("error", logits), ("error with other images", others)):
                right = task.kind.measure(("character_accuracy",), Said(values, gold))["character_accuracy"]
                self.found[f"{whose}{name}"] = 1 - right
            if task.name in strips.TASKS:
                self.found[f"{whose}symbols in place"] = in_place(task.kind, logits, "dev")


def in_place(kind: Sequences, logits: np.ndarray, split: str) -> float:
    """The fraction of emitted symbols of which the frame is inside the place of that symbol on the strip.

    Of neighbouring frames that emit the same symbol, which are one emission, the most probable one counts.
    """
    _, strings, spans = strips.composed(split)
    found = []
    for probabilities_TC, text, of_row in zip(kind.probabilities(logits), strings, spans, strict=True):
        for symbol, frame in kind.emitted(probabilities_TC):
            middle = (frame + 0.5) * COLUMNS
            there = [s for s, (begin, end) in zip(text, of_row, strict=True) if begin <= middle < end]
            found.append(symbol in there)
    return float(np.mean(found)) if found else 0.0
