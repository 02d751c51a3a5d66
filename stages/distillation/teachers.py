"""Teachers: anything that gives targets for a batch."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import torch
from transformers import PretrainedConfig, PreTrainedModel

from checkpoints.errors import UserError
from stages.distillation.model_surgery import pack
from stages.distillation.outputs import CaptureSpec, ModelOutputs, read
from stages.distillation.task_heads import head_of, label_names
from stages.tasks.kinds import Kind, Questions
from stages.tasks.kinds.base import ProblemType
from stages.tasks.text import as_argument

if TYPE_CHECKING:
    from stages.tasks.batches import Batch


class FrozenTeacher:
    """A model in eval mode, without gradients, whose outputs are the targets.

    Args:
        model: encoder or classifier. Nothing else may use it afterwards, because its weights are packed.
        spec: what the losses read from it.
        precision: type of its weights and of all that it computes, so that nothing is cast in a step.
        class_order: for each of the task's classes, the index of that class in the teacher. None: the same order.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        spec: CaptureSpec,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        class_order: list[int] | None = None,
    ):
        self.model = model.eval().requires_grad_(False).to(device, precision)
        pack(self.model.base_model)  # some heads multiply by their weights themselves
        self.spec, self.device, self.precision = spec, device, precision
        in_order = class_order is None or class_order == sorted(class_order)
        self.class_order = None if in_order else class_order

    def __call__(self, batch: "Batch") -> ModelOutputs:
        """Compute the outputs of a batch, with logits in the task's class order."""
        # `no_grad`, as tensors of `inference_mode` cannot enter a loss that has gradients.
        # Whoever asks may be under the student's.
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            outputs = read(self.model, batch, self.spec, "teacher")
        if outputs.logits_BC is not None and self.class_order:
            outputs.logits_BC = outputs.logits_BC[..., self.class_order]
        return outputs


def class_order(
    config: PretrainedConfig, labels: Sequence[str] | None, teacher_labels: list[str]
) -> list[int]:
    """Find each class of the task among the teacher's, by name, never by position.

    Args:
        labels: class names of the task; None for regression, and for questions.
        teacher_labels: the teacher's class names in its own order, where its config lacks them.

    Raises:
        ValueError: the teacher's classes are unnamed, or not those of the task; or the given names contradict its config.
    """
    if head_of(config) == Questions.head:
        return [0, 1]  # start and end, which are not named
    if labels is None:
        if config.num_labels != 1:
            raise UserError(f"the task is a regression, but the teacher has {config.num_labels} classes")
        return [0]
    names = teacher_labels or list(label_names(config))
    if config.num_labels != len(labels):
        raise UserError(
            f"the teacher has {config.num_labels} classes ({', '.join(names):.200}), the task {len(labels)} "
            f"({', '.join(labels):.200}); give a teacher of this task"
        )
    example = as_argument("teacher_labels", labels)
    unnamed = names == [f"LABEL_{i}" for i in range(len(names))]
    if not teacher_labels and unnamed and set(names) != set(labels):
        raise UserError(
            f"the teacher's classes are unnamed ({', '.join(names)}); give their names in the teacher's order, for "
            f"example {example}",
            argument="teacher_labels",
        )
    order = _places(names, labels)
    if order is None:
        raise UserError(
            f"the teacher's classes ({', '.join(names)}; {config.num_labels} outputs) are not the task's "
            f"({', '.join(labels)}); give a teacher of this task, or the names of its classes in its own order, for example "
            f"{example}",
            argument="teacher_labels",
        )
    own = label_names(config)
    if teacher_labels and _places(own, labels) not in (None, order):
        raise UserError(
            f"{', '.join(names)}, but the teacher's config.json has the order {', '.join(own)}; leave this out, or correct "
            "id2label there",
            argument="teacher_labels",
        )
    return order


def _places(names: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Where each label stands among some names: as they are, else forgiving, where that stays one to one."""
    for plain in (str, str.casefold, _plain):
        index = {plain(name): i for i, name in enumerate(names)}
        wanted = [plain(label) for label in labels]
        if len(names) == len(index) and sorted(index) == sorted(wanted):
            return [index[name] for name in wanted]
    return None


def check_problem_type(config: PretrainedConfig, kind: Kind) -> None:
    """Check that a classifier gives one label a row, or several, as the task does; its config tells."""
    known = get_args(ProblemType)
    if config.problem_type not in (None, *known):
        raise UserError(
            f"problem_type in the teacher's config.json is {config.problem_type!r}; write one of {', '.join(known)}, or null"
        )
    if kind.labels and config.problem_type not in (None, "regression", kind.problem_type):
        gives, wants = (
            "several labels" if problem == "multi_label_classification" else "one label"
            for problem in (config.problem_type, kind.problem_type)
        )
        raise UserError(
            f"the teacher gives {gives} a row (problem_type {config.problem_type}), the task has {wants}; give a teacher "
            "tuned on the task, or an encoder, which is tuned here"
        )


def _plain(name: str) -> str:
    return re.sub(r"(?<=\w)[-\s_]+(?=\w)", "_", name.casefold())
