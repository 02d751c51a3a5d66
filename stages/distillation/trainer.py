"""Distillation for people who live in `transformers.Trainer`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from checkpoints.errors import UserError
from stages.distillation.losses import Loss
from stages.distillation.outputs import capture, inputs_of


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` whose loss is the sum of distillation losses.

    The losses' projections are trained with the student. `save_model` and checkpoints hold the student alone. Resume,
    ranks and logging are the Trainer's own. Unlike the stages of this project, it does not resume bitwise and does not
    divide by the counts of the global batch.

    Args:
        student: a stock model, which is trained.
        teacher: a stock model, which is frozen; None if no loss reads it.
        losses: their weighted sum is the loss.
        **arguments: arguments of the Trainer, such as args, train_dataset, data_collator, eval_dataset.

    Raises:
        ValueError: there is more than one device.

    Example:
        >>> losses = [HiddenStates(student.config, teacher.config), AttentionScores(student.config, teacher.config)]
        >>> trainer = DistillationTrainer(
        ...     student, teacher, losses, args=arguments, train_dataset=dataset, data_collator=collator
        ... )
        >>> _ = trainer.train()
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        losses: Sequence[Loss],
        **arguments: Any,
    ):
        super().__init__(model=student, **arguments)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise UserError(
                "DistillationTrainer trains on one device, for the losses' own parameters are not shared among ranks; "
                "start one process with one visible GPU, or use the stages, which take any number of ranks"
            )
        self.losses = list(losses)
        self.loss_parameters = list(nn.ModuleList(losses).to(self.args.device).parameters())
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device) if teacher else None
        self.model_accepts_loss_kwargs = False  # the losses are means of their own batch

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the Trainer's optimiser, and add the losses' own parameters."""
        optimizer = super().create_optimizer(model)
        if self.loss_parameters:
            optimizer.add_param_group({"params": self.loss_parameters})
        return optimizer

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Compute the weighted sum of the losses of a batch."""
        for loss in self.losses:
            loss.progress = self.state.global_step / max(1, self.state.max_steps)
        outputs_of_teacher = None
        if self.teacher is not None:
            with torch.no_grad(), capture(self.teacher, self.losses, side="teacher") as outputs_of_teacher:
                self.teacher(**inputs_of(self.teacher, inputs))
        with capture(model, self.losses, side="student") as outputs_of_student:
            output = model(**inputs_of(self.model, inputs))
        loss = sum(
            loss(outputs_of_student, outputs_of_teacher, inputs.get("attention_mask"), inputs.get("labels"))
            for loss in self.losses
        )
        return (loss, output) if return_outputs else loss
