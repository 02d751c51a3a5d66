"""DCD (Rao et al., IEEE TMM 25, 2023): a teacher picks the candidates that are hard; a smaller fusion learns those.

Axes in names: B rows, N candidates of a row, K that are kept.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError
from stages.distillation.models import load_classifier
from stages.distillation.outputs import CaptureSpec, ModelOutputs
from stages.distillation.settings import check_type, choose, whole
from stages.distillation.students.two_streams import TwoStreamsConfig
from stages.methods.base import Method, Targets
from stages.tasks.batches import Batch, batches_by_length
from stages.tasks.caption_rows import FALSE_CAPTIONS
from stages.tasks.task import Task
from stages.teaching.live_teacher import task_teacher
from stages.training.stage import Stage

KEEP = ("hardest", "random", "all")


class HardCandidates(Method):
    """The student has the teacher's encoders, frozen; it learns its own fusion layers, poolers and head.

    The encoders' outputs for all training images and captions are computed once. The teacher scores all candidates of
    an image; the student scores the true one and the false ones that are kept, or all if no loss reads the teacher.

    Args:
        keep: which false candidates: `hardest`, those with the highest logits of the teacher (published); for comparison
            `random`, or `all`.
        false: number of false candidates that are kept (published: 7).
    """

    def __init__(self, keep: str = "hardest", false: int = 7):
        super().__init__()
        self.keep = choose(keep, KEEP, "keep")
        self.false = whole(false, 1, FALSE_CAPTIONS, "false")

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse students other than two streams."""
        check_type(student, (TwoStreamsConfig.model_type,), "has no two streams with a fusion to learn")

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, Any]:
        """As in the base class, with the teacher's encoders; with its head, too, where layers are the teacher's."""
        student, processor = super().begin(stage, task)
        model: Any = student
        teacher: Any = load_classifier(stage.model("teacher"), task.kind)
        names = ("hidden_size", "intermediate_size", "num_attention_heads")
        own, wanted = ([getattr(of.config, name) for name in names] for of in (student, teacher))
        if own != wanted:
            raise UserError(
                f"width, feed_forward and heads are {own}, those of the teacher, whose encoders it shares, {wanted}; give "
                "these",
                argument="student",
            )
        model.model.encoders.load_state_dict(teacher.model.encoders.state_dict())
        model.model.encoders.requires_grad_(False)
        if stage.options.get("student", {}).get("init") == "teacher-layers":
            model.head.load_state_dict(teacher.head.state_dict())
        return student, processor

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """The teacher's logits of all candidates of the training images."""
        teacher = task_teacher(stage, task, spec)
        encoders: Any = teacher.model.base_model.encoders
        read = {name: of.to(stage.device) for name, of in rows["train"].read.items()}
        with torch.no_grad():
            seen = [
                encoders.see(batch.inputs["pixel_values"].to(stage.device, teacher.precision))
                for batch in batches_by_length(rows["train"])  # all are equally long: in their order
            ]
            self.known: dict[str, Tensor] = {"text_states": encoders.read(**read)}
        self.images = torch.cat(seen)
        return {"train": None if spec == CaptureSpec() else lambda batch: teacher(self._encoded(batch))}

    def _encoded(self, batch: Batch) -> Batch:
        """A batch with what the encoders make of its images and captions, in their place."""
        kept = {name: batch.inputs[name] for name in ("attention_mask", "candidates")}
        return replace(batch, inputs=kept | self.known | {"image_states": self.images[batch.rows]})

    def chosen(self, batch: Batch, teacher: ModelOutputs | None) -> tuple[Batch, ModelOutputs | None]:
        """The candidates that are kept, the true one first, and the teacher's logits of the same."""
        batch = self._encoded(batch)
        if teacher is None or teacher.logits_BC is None or self.keep == "all":
            return batch, teacher
        places_BN = torch.arange(FALSE_CAPTIONS, device=batch.weight.device).expand(len(batch.rows), -1)
        if self.keep == "hardest":
            places_BN = teacher.logits_BC[:, 1:].argsort(stable=True, dim=1, descending=True)
        kept_BK = torch.cat([torch.zeros_like(places_BN[:, :1]), 1 + places_BN[:, : self.false]], 1)
        candidates = batch.inputs["candidates"].gather(1, kept_BK)
        logits = teacher.logits_BC.gather(1, kept_BK)
        return replace(batch, inputs=batch.inputs | {"candidates": candidates}), replace(
            teacher, logits_BC=logits
        )
