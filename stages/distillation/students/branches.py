"""A student with auxiliary branches, which are there while it learns: more last stages over one trunk, and their fusion.

The student of adversarial collaborative distillation (Liu et al., arXiv 2111.14356), as reconstructed here.

Axes in names: B rows, K learners (the student's own last stage, then the branches), W width, C classes.
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

TRUNKS = {
    "bert": ("bert.encoder.layer", "bert.pooler", "classifier"),
    "resnet": ("resnet.encoder.stages", "resnet.pooler", "classifier"),
}
"""Types of models that get branches: where their stages (or layers), their pooling and their classifier are."""


@dataclass
class BranchedOutput(ModelOutput):
    """The stock model's `logits` and `hidden_states`, and what is added to it.

    Attributes:
        head_logits: (B, K + 1, C): of each learner, and of their fusion.
        features: (B, K + 1, W), from which these logits are.
        attention: (B, K), the weight of each learner in the fusion.
    """

    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    head_logits: Tensor | None = None
    features: Tensor | None = None
    attention: Tensor | None = None


def last_parts(model: PreTrainedModel) -> tuple[Any, nn.Module, nn.Module]:
    """The last stage of a model of one of TRUNKS, its pooling and its classifier."""
    stages, pooler, classifier = map(model.get_submodule, TRUNKS[model.config.model_type])
    return cast(nn.ModuleList, stages)[-1], pooler, classifier


class Branch(nn.Module):
    """The last parts of a model, over the trunk of another."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.stage, self.pooler, self.classifier = last_parts(model)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What the trunk gives its own last stage. Returns features (B, W) and logits (B, C)."""
        features_BW = self.pooler(self.stage(*args, **kwargs)).flatten(1)
        return features_BW, self.classifier(features_BW)


class Fusion(nn.Module):
    """Weighs the learners' features and classifies the sum.

    Args:
        width, classes: W and C.
        attention: whether weights are learned, row by row: softmax(q . k / sqrt(W)), the query of the first learner and
            the keys of all. Otherwise all are equal.
    """

    def __init__(self, width: int, classes: int, attention: bool):
        super().__init__()
        self.attention = attention
        if attention:
            self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, features_BKW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the weights (B, K), the fused features (B, W) and their logits (B, C)."""
        weights_BK = torch.full_like(features_BKW[..., 0], 1 / features_BKW.shape[1])
        if self.attention:
            products_BK = (self.query(features_BKW[:, :1]) * self.key(features_BKW)).sum(-1)
            weights_BK = torch.softmax(products_BK / features_BKW.shape[-1] ** 0.5, -1)
        fused_BW = (weights_BK[..., None] * features_BKW).sum(1)
        return weights_BK, fused_BW, self.classifier(fused_BW)


class WithBranches(nn.Module):
    """A stock classifier and K - 1 branches, which read what its own last stage reads.

    All branches, and their fusion, begin with random weights from torch's generator: equal branches would stay equal.

    Args:
        main: one of TRUNKS. It answers as it did before, and it alone is kept in the end.
        branches: their number.
        attention: whether the fusion learns its weights.

    Example:
        >>> student = WithBranches(stock, branches=2).eval()
        >>> output = student(**batch)
        >>> torch.equal(output.logits, stock(**batch).logits), output.head_logits.shape[1]   # main, two branches, fusion
        (True, 4)
    """

    def __init__(self, main: PreTrainedModel, branches: int, attention: bool = True):
        super().__init__()
        config: Any = main.config
        self.main, self.config = main, config
        drawn = [type(main)._from_config(copy.deepcopy(config)) for _ in range(branches)]
        self.branches = nn.ModuleList(map(Branch, drawn))
        self.fusion = Fusion(width_of(config), config.num_labels, attention)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> BranchedOutput:
        """The inputs are those of `main`."""
        given = {"pixel_values": pixel_values, "input_ids": input_ids, "attention_mask": attention_mask,
                 "token_type_ids": token_type_ids}  # fmt: skip
        inputs = {name: tensor for name, tensor in given.items() if tensor is not None}
        stage, pooler, _ = last_parts(self.main)
        read: list[tuple[tuple, dict]] = []
        pooled: list[Tensor] = []
        hooks = (
            stage.register_forward_pre_hook(
                lambda module, args, kwargs: read.append((args, kwargs)), with_kwargs=True
            ),
            pooler.register_forward_hook(lambda module, args, output: pooled.append(output)),
        )
        try:
            output = self.main(**inputs, output_hidden_states=output_hidden_states)
        finally:
            for hook in hooks:
                hook.remove()
        ((args, kwargs),) = read
        found = [(pooled[0].flatten(1), output.logits)]
        found += [branch(*args, **kwargs) for branch in self.branches]
        features_BKW, logits_BKC = (torch.stack(parts, 1) for parts in zip(*found, strict=True))
        attention_BK, fused_BW, fused_BC = self.fusion(features_BKW)
        return BranchedOutput(
            output.logits,
            output.hidden_states,
            torch.cat([logits_BKC, fused_BC[:, None]], 1),
            torch.cat([features_BKW, fused_BW[:, None]], 1),
            attention_BK,
        )


def width_of(config: Any) -> int:
    """The width of the features that a model's classifier reads."""
    return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size


def last_hidden(config: Any) -> int:
    """The index of a model's last hidden state."""
    return len(config.depths) if hasattr(config, "depths") else config.num_hidden_layers
