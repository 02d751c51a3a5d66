"""Distillation for people who live in `transformers.Trainer`."""

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

from checkpoints.errors import UserError
from stages.distillation.losses import Loss
from stages.distillation.outputs import CaptureSpec, attention_switched, capture, inputs_of

LOSSES = "losses.safetensors"
"""The file of a checkpoint with what the losses have learned."""


class _ZeroGradients(TrainerCallback):
    """After a step the Trainer sets the gradients of its model to zero, but not those of the losses' projections."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["optimizer"].zero_grad()


class DistillationTrainer(Trainer):
    """A `transformers.Trainer` whose loss is the sum of distillation losses.

    The losses' projections are trained with the student. `save_model` writes the student alone; a checkpoint also has the
    projections (`losses.safetensors`). `evaluate` and `predict` compute the same loss. Resume and logging are the
    Trainer's own. Unlike the stages of this project, it does not resume bitwise and does not divide by the counts of the
    global batch.

    Args:
        student: a stock model, which is trained.
        teacher: a stock model, which is frozen; None if no loss reads it.
        losses: their weighted sum is the loss; one or several.
        **arguments: arguments of the Trainer, such as args, train_dataset, data_collator, eval_dataset.

    Raises:
        ValueError: there is more than one device; there are no losses, or other things than losses; the teacher is no model,
            or is the student; a loss reads a teacher and there is none.

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
        losses: Loss | Sequence[Loss],
        **arguments: Any,
    ):
        super().__init__(model=student, **arguments)
        self.add_callback(_ZeroGradients)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise UserError(
                "DistillationTrainer trains on one device, for the losses' own parameters are not shared among ranks; "
                "start one process with one visible GPU, or use the stages, which take any number of ranks"
            )
        given: Any = losses
        one = isinstance(given, str) or not isinstance(given, Iterable)
        self.losses: list[Any] = [given] if one else [*given]
        if not self.losses:
            raise UserError("none are given; give at least one", argument="losses")
        if not isinstance(teacher, nn.Module | None):
            raise UserError(f"{teacher!r} is not a model; give one that is loaded", argument="teacher")
        if teacher is student:
            raise UserError("the student itself, which would be frozen; give a copy", argument="teacher")
        for loss in self.losses:
            if not isinstance(loss, Loss):
                raise UserError(
                    f"{loss!r} is not a loss; give an object such as SoftLabels()", argument="losses"
                )
            if teacher is None and loss.teacher_capture != CaptureSpec():
                raise UserError(
                    f"None, but {type(loss).__name__} reads one; give a teacher", argument="teacher"
                )
        self.loss_modules = nn.ModuleList(self.losses).to(self.args.device, student.dtype)
        self.teacher = teacher.eval().requires_grad_(False).to(self.args.device) if teacher else None
        self.model_accepts_loss_kwargs = False  # the losses are means of their own batch

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the Trainer's optimiser, and add the losses' own parameters: matrices decay, as in the stages."""
        optimizer = super().create_optimizer(model)
        there = {id(p) for group in optimizer.param_groups for p in group["params"]}  # of an earlier `train`
        added = [p for p in self.loss_modules.parameters() if id(p) not in there]
        matrices, others = [p for p in added if p.ndim > 1], [p for p in added if p.ndim <= 1]
        for params, decay in ((matrices, self.args.weight_decay), (others, 0.0)):
            if params:
                optimizer.add_param_group({"params": params, "weight_decay": decay})
        return optimizer

    def _set_signature_columns_if_needed(self) -> None:
        """Keep the columns that the teacher reads, too."""
        super()._set_signature_columns_if_needed()
        if self.teacher is not None:
            read = inspect.signature(self.teacher.forward).parameters
            self._signature_columns = [*(self._signature_columns or ()), *read]  # type: ignore[assignment]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        save_file(self.loss_modules.state_dict(), Path(output_dir) / LOSSES)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / LOSSES).exists():
            self.loss_modules.load_state_dict(load_file(file))

    def training_step(self, model: nn.Module, *arguments: Any, **kwargs: Any) -> Tensor:
        """Forward and backward pass of a batch."""
        with attention_switched(model):
            return super().training_step(model, *arguments, **kwargs)

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

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Compute the loss, what the student returns, and the labels, if there are any, of a batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, output = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        # `capture` asked for the hidden states, not the user.
        ignored = {"loss", "hidden_states", *(ignore_keys or ())}
        shown = tuple(value for name, value in output.items() if name not in ignored)
        labels = tuple(inputs[name] for name in self.label_names if name in inputs)
        return loss, _alone(shown), _alone(labels)


def _alone(found: tuple) -> Any:
    """The only one of some tensors, all of them, or None."""
    return found[0] if len(found) == 1 else found or None
