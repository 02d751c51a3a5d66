"""The heads of models: which one a model has, what kind of task it answers, and changes to its last layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForZeroShotImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from checkpoints.errors import UserError
from stages.distillation.sentence_vectors import AutoModelForSentenceSimilarity
from stages.distillation.students.graph_networks import AutoModelForNodeClassification
from stages.tasks.kinds import (
    Classes,
    Entities,
    ImageClasses,
    ImageTexts,
    Kind,
    LabelSets,
    Nodes,
    Questions,
    Ranking,
    Scores,
    Sequences,
    Similarity,
    Words,
)
from stages.tasks.kinds.base import Head

HEADS: dict[Head, Any] = {
    "SequenceClassification": AutoModelForSequenceClassification,
    "TokenClassification": AutoModelForTokenClassification,
    "QuestionAnswering": AutoModelForQuestionAnswering,
    "ImageClassification": AutoModelForImageClassification,
    "CTC": AutoModelForCTC,
    "NodeClassification": AutoModelForNodeClassification,
    "SentenceSimilarity": AutoModelForSentenceSimilarity,
    "ZeroShotImageClassification": AutoModelForZeroShotImageClassification,
}
"""What a model answers with, and what loads it: one answer a row, a token, an image, a node or a pair of texts that are read
apart, or where an answer starts and ends."""


def head_of(config: PretrainedConfig) -> Head | None:
    """Return the head that is among a model's weights; None for an encoder without one."""
    names = config.architectures or []
    return next((head for head in HEADS if any(f"For{head}" in name for name in names)), None)


def check_head(config: PretrainedConfig, kind: Kind) -> None:
    """Check that a model of the config's type has a head for the kind of task."""
    if type(config) not in HEADS[kind.head]._model_mapping:
        raise UserError(f"a {config.model_type} has no head for {kind.name}; give a model of BERT's kind")


def knows(config: PretrainedConfig, kind: Kind) -> bool:
    """Whether a model has a head for the kind of task, and so is a teacher that need not be tuned.

    A classifier of images with other classes, such as ImageNet's, is tuned: most published ones are of that sort.
    """
    of_others = kind.labels and kind.reads_images and {*label_names(config)} != {*kind.labels}
    return head_of(config) == kind.head and not of_others


def label_names(config: PretrainedConfig) -> tuple[str, ...]:
    """The names of a classifier's labels, in the order of its outputs."""
    names: Any = config.id2label
    return tuple(str(names[i]) for i in range(len(names)))


def kind_of(config: PretrainedConfig) -> Kind:
    """Return the kind of task in a classifier's config, with labels in the order of the logits."""
    labels, head = label_names(config), head_of(config)
    if head == Questions.head:
        return Questions().of_model(config)
    if head == Words.head:
        return Entities(labels) if Entities.describes(labels) else Words(labels)
    with_labels: tuple[type[Kind], ...] = (ImageClasses, Sequences, Nodes)
    for kind in with_labels:
        if head == kind.head:
            return kind(labels)
    if head == Similarity.head:
        return Similarity()
    if head == ImageTexts.head:
        return ImageTexts()
    pooling = getattr(config, "window_pooling", "")
    if pooling not in ("", "mean", "max"):
        raise UserError(f"window_pooling {pooling!r} in config.json is neither mean nor max; correct it")
    if config.problem_type == LabelSets.problem_type:
        return LabelSets(labels, pooling=pooling).of_model(config)
    if getattr(config, "ranking", False):
        return Ranking(labels, pooling=pooling)
    return Scores(pooling=pooling) if config.num_labels == 1 else Classes(labels, pooling=pooling)


def to_learned_scale(model: PreTrainedModel, scale: tuple[float, float]) -> None:
    """Change a model that answers scores in the user's units so that it answers standard deviations from the mean.

    Args:
        model: the model, whose last linear layer is changed.
        scale: mean and standard deviation; (0, 1) changes nothing.
    """
    mean, deviation = scale
    if scale != (0.0, 1.0):
        _, head = last_linear(model)
        with torch.no_grad():
            head.weight.div_(deviation)
            head.bias.sub_(mean).div_(deviation)


def in_units(
    model: PreTrainedModel, weights: dict[str, torch.Tensor], scale: tuple[float, float]
) -> dict[str, torch.Tensor]:
    """Return a model's weights, changed so that it answers in the user's units, not in deviations from the mean.

    The model has a head, unless the scale is (0, 1).
    """
    mean, deviation = scale
    if scale == (0.0, 1.0):
        return weights
    head, _ = last_linear(model)
    changed = {
        f"{head}.weight": weights[f"{head}.weight"] * deviation,
        f"{head}.bias": weights[f"{head}.bias"] * deviation + mean,
    }
    return weights | changed


def one_output(config: PretrainedConfig) -> bool:
    """Whether a saved ranker has one output; its config then names, as `ranking`, the two classes that it is loaded with."""
    labels = getattr(config, "ranking", None)
    return isinstance(labels, list) and len(labels) == 2


def to_one_output(model: PreTrainedModel) -> None:
    """Change a cross-encoder's two logits to their difference, the log-odds of right, by which sentence-transformers ranks.

    Its config says so, and that a sigmoid makes it a probability. `load_classifier` gives it two logits again.
    """
    config, (wrong, right) = model.config, label_names(model.config)
    recombine_outputs(model, [[-1.0, 1.0]])
    config.ranking, config.id2label, config.label2id = [wrong, right], {0: right}, {right: 0}
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    config.problem_type = None


def set_first_bias(model: nn.Module, kind: Kind, labels: Sequence[Any]) -> None:
    """Give a new head, whose bias is 0, the bias that its kind of task begins with.

    Args:
        labels: those of the training rows.
    """
    bias_C = kind.first_bias(labels)
    if bias_C is None:
        return
    _, head = last_linear(model)
    if not head.bias.any():
        with torch.no_grad():
            head.bias.copy_(torch.from_numpy(bias_C))


def recombine_outputs(model: PreTrainedModel, by: list[list[float]]) -> None:
    """Replace a model's outputs by linear combinations of them; `by` has the factors, (new outputs, old outputs)."""
    _, head = last_linear(model)
    head.out_features = len(by)
    for name, parameter in list(head.named_parameters()):
        setattr(head, name, nn.Parameter(torch.tensor(by) @ parameter.detach()))


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, which gives the score, and its name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
