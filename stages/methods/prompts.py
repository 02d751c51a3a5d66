"""Soft prompts on a frozen encoder, and PANDA: a prompt that learns from one that came from another task.

Prompt tuning is that of P-tuning v2 (Liu et al., arXiv 2110.07602). PANDA is Zhong et al., arXiv 2208.10160.

Axes in names: B rows, C classes, L positions, W width of the hidden states.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from checkpoints.errors import UserError
from stages.distillation.models import load_classifier
from stages.distillation.outputs import CaptureSpec, inputs_of
from stages.distillation.settings import number, whole
from stages.distillation.students.prompted import PromptedConfig, PromptedForSequenceClassification
from stages.methods.base import Method, Targets
from stages.tasks.batches import batches_by_length
from stages.tasks.task import Task
from stages.tasks.token_rows import TokenRows
from stages.teaching.recorded_logits import logits_as_outputs, teacher_logits
from stages.training.cached_rows import task_rows
from stages.training.options import StageToCheck
from stages.training.stage import Stage

SIMILARITY = "similarity"
"""As the weight of a loss: what PANDA measures."""


class SoftPrompt(Method):
    """Trains a soft prompt and the head of a frozen encoder. The prompt is a prefix of keys and values in each layer.

    If the student begins as an earlier one that has a prompt, training starts from that prompt (prompt transfer). The
    head is then new, unless the earlier student learned the same labels.

    Args:
        tokens: number of tokens of the prompt in each layer (PANDA: 20). A prompt that is transferred keeps its own.
        dropout: dropout of the prompt (PANDA: 0.1).
    """

    def __init__(self, tokens: int = 20, dropout: float = 0.1):
        super().__init__()
        self.tokens = whole(tokens, 1, 512, "tokens")
        self.dropout = number(dropout, "from 0 to below 1", "dropout")

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse shared or missing attention layers, heads other than SequenceClassification, and losses on attention."""
        super().check(task, student, spec)
        if not hasattr(student, "num_attention_heads") or hasattr(student, "num_hidden_groups"):
            raise UserError(
                "a soft prompt needs layers that each have attention of their own, and those of "
                f"{student.model_type} have not; give an encoder of BERT's kind",
                argument="method",
            )
        if task.kind.head != "SequenceClassification":
            raise UserError(
                f"{task.kind.name} are not for a soft prompt, whose student answers once a row; take plain",
                argument="method",
            )
        if spec.layers:
            raise UserError(
                "attention to a prompt has no counterpart in the teacher; take losses on logits or hidden states",
                argument="losses",
            )

    def trained(self, student: PretrainedConfig) -> PretrainedConfig:
        """The student with its prompt."""
        return PromptedConfig.of(student, self.tokens, self.dropout)

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student as it begins, with a prompt drawn from the seed or transferred; all else is frozen."""
        student, tokenizer = super().begin(stage, task)
        if not isinstance(student, PromptedForSequenceClassification):
            student = PromptedForSequenceClassification.of(student, self.tokens, self.dropout)
        student.encoder.requires_grad_(False)
        student.prompt.requires_grad_(True)
        return student, tokenizer


class Panda(SoftPrompt):
    """The teacher is a student whose prompt came from another task and was tuned on this one.

    Args:
        reads: three earlier students: the teacher; the source, whose prompt the teacher began with, and which may have
            learned another task; one that tuned a fresh prompt on this task.
        tokens, dropout: those of the student's own prompt.

    A loss's weight `similarity` stands for max(0, cosine) of the source's and the fresh prompt's embeddings. That of
    a prompt is the mean, over the tokens of the training rows, of what the prompt adds to the encoder's output.
    """

    reads_other_tasks = True

    def __init__(self, reads: Sequence[str], tokens: int = 20, dropout: float = 0.1):
        super().__init__(tokens, dropout)
        if len(reads) != 3:
            raise UserError(
                f"{list(reads)} must be three earlier students: the teacher, the source of its prompt, and one with a fresh "
                "prompt",
                argument="reads",
            )
        self.teacher, self.source, self.fresh = reads
        self.similarity = 0.0

    def check(self, task: Task, student: PretrainedConfig, spec: CaptureSpec) -> None:
        """Refuse losses that do not read the teacher's logits, or read its layers."""
        super().check(task, student, spec)
        if spec != CaptureSpec(logits=True):
            raise UserError(
                "a transferred prompt teaches by its logits; take losses on them, matched_logits at least",
                argument="losses",
            )

    def check_plan(self, plan: StageToCheck) -> None:
        """Refuse a source, or a student given as the one with a fresh prompt, whose method makes no prompt."""
        super().check_plan(plan)
        for name in (self.source, self.fresh):
            method = plan.methods_read.get(name, "")
            if not {"panda", "soft_prompt"} & ({method} if isinstance(method, str) else method.keys()):
                raise UserError(
                    f"{name!r} has no prompt; name students with method soft_prompt or panda",
                    argument="reads",
                )

    def begin(self, stage: Stage, task: Task) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A fresh prompt on the frozen encoder; the similarity of the source's prompt to this task's is measured."""
        student, tokenizer = super().begin(stage, task)
        rows = task_rows(stage, task, "train", tokenizer, stage.training.max_length)
        source, fresh = (_prompted(stage, given) for given in (self.source, self.fresh))
        of_outputs = functional.cosine_similarity(embedding(source, rows), embedding(fresh, rows), dim=0)
        mean, mean_fresh = (prompted.prompt.table.weight.mean(0) for prompted in (source, fresh))
        of_prompts = functional.cosine_similarity(mean, mean_fresh, dim=0)
        self.similarity = max(0.0, of_outputs.item())
        self.found = {SIMILARITY: of_outputs.item(), "cosine of mean prompt tokens": of_prompts.item()}
        stage.log("; ".join(f"{name} {value:.4f}" for name, value in self.found.items()))
        return student, tokenizer

    def losses(self, lines: Sequence[str | dict[str, Any]]) -> Sequence[str | dict[str, Any]]:
        """The lines, with the similarity where a weight is its name."""
        return [_weighted(line, self.similarity) for line in lines]

    def targets(self, stage: Stage, task: Task, spec: CaptureSpec, rows: dict[str, Any]) -> Targets:
        """The teacher's logits on train."""
        logits_NC = teacher_logits(stage, task, rows["train"], f"reads {self.teacher}")
        return {"train": logits_as_outputs(logits_NC, rows["train"], stage.device)}


@torch.no_grad()
def embedding(student: PromptedForSequenceClassification, rows: TokenRows) -> Tensor:
    """What a prompt adds to the encoder's output, (W,): the mean over all tokens of the rows.

    Args:
        student: with the prompt; it is set to eval mode.
        rows: in its tokens.
    """
    student.eval()
    added_W, tokens = torch.zeros(student.encoder.config.hidden_size, device=student.device), 0
    for batch in batches_by_length(rows):
        inputs = inputs_of(student, batch.to(student.device).inputs)
        mask_BL1 = inputs["attention_mask"][..., None]
        prompted_BLW = student(**inputs, output_hidden_states=True).hidden_states[-1]
        with student.without_prompt():
            plain_BLW = student(**inputs, output_hidden_states=True).hidden_states[-1]
        added_W += ((prompted_BLW - plain_BLW) * mask_BL1).sum((0, 1))
        tokens += int(mask_BL1.sum())
    return added_W / tokens


def _prompted(stage: Stage, name: str) -> PromptedForSequenceClassification:
    model: Any = load_classifier(stage.model(f"reads {name}"))
    return model.to(stage.device)


def _weighted(line: str | dict[str, Any], similarity: float) -> str | dict[str, Any]:
    """The line, with the similarity where its weight is that word."""
    if not isinstance(line, dict):
        return line
    return {
        name: settings | {"weight": similarity}
        if isinstance(settings, dict) and settings.get("weight") == SIMILARITY
        else settings
        for name, settings in line.items()
    }
