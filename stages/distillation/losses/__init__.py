"""Losses, by the names that recipes have for them.

A new one is a class in a file of this package, and a line in `LOSSES`.
"""

import inspect
from typing import Any

from checkpoints.errors import UserError
from stages.distillation.losses.attention import AttentionMaps, AttentionScores
from stages.distillation.losses.base import Loss, Pair
from stages.distillation.losses.continuation import Continuation
from stages.distillation.losses.hidden import Gram, HiddenStates
from stages.distillation.losses.masked import MaskedSoftLabels, MaskedWords
from stages.distillation.losses.prediction import GoldLabels, MatchedLogits, SoftLabels
from stages.distillation.losses.relations import Relations

LOSSES: dict[str, type[Loss]] = {
    "attention_maps": AttentionMaps,
    "attention_scores": AttentionScores,
    "continuation": Continuation,
    "gold_labels": GoldLabels,
    "gram": Gram,
    "hidden_states": HiddenStates,
    "masked_soft_labels": MaskedSoftLabels,
    "masked_words": MaskedWords,
    "matched_logits": MatchedLogits,
    "relations": Relations,
    "soft_labels": SoftLabels,
}


def build(line: str | dict[str, Any], pair: Pair) -> Loss:
    """The loss of a recipe's line: its name, or {name: settings}.

    Raises:
        UserError: there is none of that name, or it has no such setting, or the settings do not fit the models.
    """
    if isinstance(line, str):
        line = {line: {}}
    if not isinstance(line, dict) or len(line) != 1:
        raise UserError(f"a loss is a line `- name` or `- name: {{setting: value}}`, not {line!r}")
    ((name, settings),) = line.items()
    known = LOSSES
    if name not in known:
        raise UserError(f"unknown loss {name!r}: there are {', '.join(sorted(known))}")
    settings = settings or {}
    takes = list(inspect.signature(known[name]).parameters)[1:]
    if not isinstance(settings, dict) or settings.keys() - set(takes):
        raise UserError(f"loss {name}: {settings!r} must be among its settings: {', '.join(takes)}")
    try:
        return known[name](pair, **settings)
    except UserError as error:
        raise UserError(f"loss {name}: {error}") from error
