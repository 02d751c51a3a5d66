"""What student and teacher read: the same tokens, under the ids of one vocabulary or of two."""

from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from stages.distillation.models import ModelSource, load_config, load_tokenizer
from stages.distillation.trimmed_vocabulary import teacher_ids
from stages.tasks.token_rows import TokenRows
from stages.training.stage import Stage


@dataclass(frozen=True)
class Reading:
    """How a student reads.

    Attributes:
        tokenizer: the tokenizer of the student's rows.
        teacher_ids: (V,) the teacher's id of each of its tokens; None: the teacher reads the same ids.
    """

    tokenizer: PreTrainedTokenizerBase
    teacher_ids: np.ndarray | None = None

    def both(self, rows: TokenRows) -> TokenRows:
        """Rows of the student's tokens that the teacher can read, too."""
        return replace(rows, teacher_ids=self.teacher_ids)


def reading(stage: Stage) -> Reading:
    """How a stage's student reads: as the teacher, unless it has a vocabulary of its own."""
    teacher, source = load_tokenizer(stage.model("teacher")), _own_vocabulary(stage)
    if source is None:
        return Reading(teacher)
    own = load_tokenizer(source)
    return Reading(own, teacher_ids(own, teacher))


def _own_vocabulary(stage: Stage) -> ModelSource | None:
    if "vocabulary" in stage.inputs:
        return stage.model("vocabulary")
    size = load_config(stage.model("teacher")).vocab_size
    given = [stage.model(name) for name in ("student", "shape") if name in stage.inputs]
    return next((source for source in given if load_config(source).vocab_size != size), None)
