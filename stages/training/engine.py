"""The DeepSpeed engine of a job, and the way of the gradients from the losses to the optimiser."""

import sys
from collections.abc import Sequence

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime import torch_autocast
from torch import Tensor, nn

from checkpoints.errors import UserError
from stages.training.optimizer_state import persistent_buffers
from stages.training.optimizers import combined, default_optimizer, scheduled
from stages.training.stage import Stage
from stages.training.step import Pass, Step


class Engine:
    """Trains a model by steps of one or more micro-batches.

    Args:
        stage: its options, how it runs, precision and device.
        model: on the stage's device.
        step: what the stage declares of a step.
        rows: number of rows of a micro-batch.
        micro_batches: number of micro-batches of a step, on each rank.

    Attributes:
        deepspeed: DeepSpeed's engine.
    """

    def __init__(self, stage: Stage, model: nn.Module, step: Step, rows: int, micro_batches: int, steps: int):
        self.declared, self.options, self.steps = step, stage.training, steps
        self.world = dist.get_world_size()
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.buffers = persistent_buffers(model)
        self.trained_by = trained_by_pass(step.passes, self.parameters)
        # DeepSpeed clips tensor by tensor, three kernels each and two waits: on a GPU half of a small model's step.
        self.clips_at_once = stage.device.type == "cuda" and stage.job.zero == 0 and not step.optimizers
        optimizer: torch.optim.Optimizer
        if step.optimizers:
            optimizer = combined(step.optimizers(self.parameters), self.parameters)
        else:
            optimizer = default_optimizer(self.parameters, self.options)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        details = stage.deepspeed.get("zero_optimization", {})
        config = stage.deepspeed | {
            "train_micro_batch_size_per_gpu": rows,
            "gradient_accumulation_steps": micro_batches,
            "gradient_clipping": 0.0 if step.optimizers or self.clips_at_once else self.options.clip,
            "zero_optimization": details | {"stage": stage.job.zero},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # offloaded moments are torch's AdamW's, too
            "steps_per_print": sys.maxsize,
        }
        if stage.precision != torch.float32:
            name = str(stage.precision).removeprefix("torch.")
            # No module may be reduced over ranks in low precision: one rank and two must agree.
            config["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
        torch_autocast.TORCH_AUTOCAST_INITIALIZED = False  # by a job of another precision in this process
        self.deepspeed = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
        self.single_process = self.world == 1 and stage.job.zero == 0
        if self.single_process:
            self.deepspeed.enable_backward_allreduce = False  # it would copy every gradient, for nothing

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        self.deepspeed.destroy()

    def backward(self, losses: dict[str, Tensor], ends_step: bool) -> None:
        """Back-propagate this rank's part of the global loss of each pass.

        Args:
            losses: scalars, by the tag of the pass.
            ends_step: whether this is the step's last micro-batch, after which gradients are reduced over ranks.

        Raises:
            UserError: the tags are not those of the passes.
        """
        *first, last = self.declared.passes
        if losses.keys() != self.trained_by.keys():
            raise UserError(
                f"the losses have the tags {sorted(losses)}, the passes {sorted(self.trained_by)}: declare a `Pass` for "
                "each tag of a `LossTerm`, and no other"
            )
        kept = [self._gradients(each, losses[each.tag]) for each in first]
        # DeepSpeed looks for the loss in what the model returns, and finds no tensor in loss terms. So its optimisers that
        # reduce while backward runs would learn of it after backward.
        self.deepspeed.set_gradient_accumulation_boundary(ends_step)
        # DeepSpeed averages gradients over ranks; ours are parts of one global mean.
        self.deepspeed.backward(losses[last.tag] * self.world, scale_wrt_gas=False)
        if not self.declared.has_own_passes:
            return
        trained = self.trained_by[last.tag]
        kept.append({name: p.grad for name, p in trained.items() if p.grad is not None})
        if last.hook:
            last.hook(kept[-1])
        for name, parameter in self.parameters.items():
            found = [gradients[name] for gradients in kept if name in gradients]
            parameter.grad = sum(found[1:], found[0]) if found else None

    def _gradients(self, one: Pass, loss: Tensor) -> dict[str, Tensor]:
        """The gradients of a pass that is not the last, by parameter name, as its hook leaves them."""
        trained = self.trained_by[one.tag]
        values = torch.autograd.grad(loss, list(trained.values()), retain_graph=True, allow_unused=True)
        found = {name: value for name, value in zip(trained, values, strict=True) if value is not None}
        if one.hook:
            one.hook(found)
        return found

    @property
    def loss_scale(self) -> float:
        """In fp16 the factor of the loss, which halves after a step whose gradients overflowed; 1 else. Read from the device."""
        scaler = self.deepspeed.torch_autocast_z0_gradscaler
        return scaler.get_scale() if scaler else 1.0

    def end_micro_batch(self) -> None:
        """Between two micro-batches of a step: their gradients add up."""
        self.deepspeed.step()

    def copy_buffers(self) -> dict[str, Tensor]:
        """The persistent buffers as they are."""
        return {name: buffer.clone() for name, buffer in self.buffers.items()}

    def step(self, number: int, skip_to: dict[str, Tensor] | None = None) -> float:
        """Take an optimiser step.

        Args:
            number: the step's, counted from 1.
            skip_to: leave the weights as they are, by gradients and learning rates of 0, and set the persistent
                buffers back to these. None: do not.

        Returns:
            The learning rate, under the stage's options.
        """
        skip = skip_to is not None
        for name, buffer in (skip_to or {}).items():
            self.buffers[name].copy_(buffer)
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = 0.0 if skip else scheduled(group["initial_lr"], self.options, number, self.steps)
        # All-reduce turns missing gradients into zeros. So does this on one rank: weight decay then applies equally.
        fill = self.single_process and not self.declared.optimizers
        for parameter in self.parameters.values():
            if skip or fill and parameter.grad is None:
                like = parameter if parameter.grad is None else parameter.grad  # sparse, where it is
                parameter.grad = torch.zeros_like(like, requires_grad=False)
        if self.options.clip and (self.declared.optimizers or self.clips_at_once):
            self._clip()
        self.deepspeed.step()
        if self.declared.after_step:
            self.declared.after_step()
        if self.world > 1:
            for buffer in self.buffers.values():
                dist.broadcast(buffer, 0)
        return 0.0 if skip else scheduled(self.options.learning_rate, self.options, number, self.steps)

    def _clip(self) -> None:
        """Limit the global norm of the gradients. DeepSpeed does it in place, which sparse gradients do not notice."""
        if self.clips_at_once:
            if scaler := self.deepspeed.torch_autocast_z0_gradscaler:
                scaler.unscale_(self.deepspeed.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.options.clip)
            return
        found = [(p, p.grad) for p in self.parameters.values() if p.grad is not None]
        norm = torch.stack([gradient.float().norm(2.0) for _, gradient in found]).norm(2.0)
        factor = (self.options.clip / (norm + 1e-6)).clamp(max=1.0)
        for parameter, gradient in found:
            parameter.grad = gradient * factor


def trained_by_pass(
    passes: Sequence[Pass], parameters: dict[str, nn.Parameter]
) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters that each pass trains, by tag and name: those it names, or all that no pass names."""
    named = {one.tag: {id(p) for p in one.trains} for one in passes if one.trains is not None}
    claimed = set().union(*named.values())
    return {
        one.tag: {
            name: p
            for name, p in parameters.items()
            if (id(p) in named[one.tag] if one.tag in named else id(p) not in claimed)
        }
        for one in passes
    }
