"""What a stage may declare of its optimiser step. The default: one loss, one backward pass, one AdamW."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from checkpoints.errors import UserError
from stages.distillation.losses.base import LossTerm
from stages.training.options import Job as JobOptions
from stages.training.rows import Rows


@dataclass(frozen=True)
class Pass:
    """One backward pass: of the loss terms with its tag.

    Attributes:
        tag: the tag of its `LossTerm`s.
        hook: called after the pass with the gradients of this pass alone, by parameter name. The optimiser gets the sum of
            what the hooks leave in their dicts.
        trains: parameters that only this pass trains (a discriminator's). None: all parameters that no other pass names.
    """

    tag: str = LossTerm.tag
    hook: Callable[[dict[str, Tensor]], None] | None = None
    trains: Iterable[nn.Parameter] | None = None


class StepKind(NamedTuple):
    """What options of a job must go with, as it is known before there is a model.

    Attributes:
        whole_batch: whether a loss reads the whole global batch.
        passes: whether the step has several passes, a gradient hook or parameters of a pass's own.
        optimizers: whether it has optimisers of its own.
        after_step: whether it has a hook after the optimiser's step.
    """

    whole_batch: bool = False
    passes: bool = False
    optimizers: bool = False
    after_step: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the step is not one loss, one backward pass, one AdamW and nothing after it."""
        return self.passes or self.optimizers or self.after_step

    @property
    def takes_batch_whole(self) -> bool:
        """Whether a global batch must not be split into micro-batches."""
        return self.whole_batch or self.passes


@dataclass(frozen=True)
class Step:
    """One optimiser step of a job.

    What `hook` and `after_step` remember from step to step belongs into buffers of the model: those are in the job's
    checkpoints.

    Attributes:
        passes: backward passes, in order.
        after_step: called after the optimiser's step (for example to apply masks that keep weights at zero).
        optimizers: given all parameters by name, makes the optimisers, each with groups and settings of its own. The
            job scales each group's `lr` by its schedule. None: one AdamW under the stage's options.

    Example:
        A discriminator with an optimiser of its own, against a student:

        >>> def optimizers(parameters):
        ...     judge = [p for name, p in parameters.items() if name.startswith("discriminator")]
        ...     other = [p for name, p in parameters.items() if not name.startswith("discriminator")]
        ...     return [torch.optim.AdamW(other, lr=1e-3), torch.optim.Adam(judge, lr=1e-4, betas=(0.5, 0.99))]
        >>> judge = Pass("judge", trains=model.discriminator.parameters())
        >>> step = Step(passes=(judge, Pass()), optimizers=optimizers)
    """

    passes: Sequence[Pass] = (Pass(),)
    after_step: Callable[[], None] | None = None
    optimizers: Callable[[dict[str, nn.Parameter]], Sequence[torch.optim.Optimizer]] | None = None

    @property
    def has_own_passes(self) -> bool:
        """Whether the step has several passes, a gradient hook or parameters of a pass's own."""
        return len(self.passes) > 1 or self.passes[0].hook is not None or self.passes[0].trains is not None

    def kind(self, model: nn.Module) -> StepKind:
        """What options must go with, of this step and the losses of `model`."""
        whole = any(getattr(module, "whole_batch", False) for module in model.modules())
        return StepKind(whole, self.has_own_passes, self.optimizers is not None, self.after_step is not None)


def refuse_ranks(rows: Rows, ranks: int) -> None:
    """Raises UserError where there are more ranks than the rows can be trained on."""
    most = getattr(rows, "max_ranks", ranks)
    if ranks > most:
        raise UserError(
            f"the rows ({type(rows).__name__}) train on at most {most} rank{'s' if most > 1 else ''}, not on {ranks}; set "
            f"it to {most}",
            argument="nproc",
        )


def refuse_unsupported(kind: StepKind, settings: JobOptions, ranks: int, micro_batches: int) -> None:
    """Raises UserError where settings do not go with a step, or with a loss that needs the whole batch.

    Args:
        micro_batches: parts that a rank's batch is split into.
    """
    if kind.takes_batch_whole and micro_batches > 1:
        what = "a step of several backward passes" if kind.passes else "a loss over the whole batch"
        raise UserError(
            f"{settings.micro_batch} rows at once split the batch into {micro_batches} parts, and {what} takes it in "
            "one; set it to 0",
            argument="micro_batch",
        )
    if settings.zero and kind.is_own:
        raise UserError(
            f"a step of the stage's own needs whole weights and gradients, and ZeRO stage {settings.zero} shards them; "
            "set it to 0",
            argument="zero",
        )
    if kind.passes and ranks > 1:
        raise UserError(
            f"a step of several backward passes runs on 1 rank, not on {ranks}; set it to 1", argument="nproc"
        )
    if (kind.passes or kind.optimizers) and settings.precision == "fp16":
        raise UserError(
            "fp16 scales the loss of one backward pass for one AdamW, and the step is the stage's own; take bf16 or fp32",
            argument="precision",
        )
