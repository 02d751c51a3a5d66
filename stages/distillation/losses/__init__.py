"""Distillation losses, by the names that recipes have for them.

Each can be called alone (`loss(student_outputs, teacher_outputs, attention_mask=...)`). A new one is a class in a file
of this package and a line in `LOSSES`.
"""

from typing import Any

from transformers import PretrainedConfig

from checkpoints.errors import UserError
from stages.distillation.losses.adversary import Adversary
from stages.distillation.losses.attention import AttentionMaps, AttentionScores, Relations
from stages.distillation.losses.base import Loss
from stages.distillation.losses.base import LossTerm as LossTerm  # for losses of one's own
from stages.distillation.losses.distillation_token import DistillationToken
from stages.distillation.losses.each_head import EachHead, Peers
from stages.distillation.losses.hidden import Gram, HiddenStates
from stages.distillation.losses.image_frames import ImageFrames
from stages.distillation.losses.masked import MaskedSoftLabels, MaskedWords
from stages.distillation.losses.passages import CandidateScores, InBatchNegatives, ScoreDistributions
from stages.distillation.losses.prediction import Continuation, GoldLabels, MatchedLogits, SoftLabels
from stages.distillation.losses.sentence_vectors import ContrastivePairs, ContrastiveVectors, MatchedVectors
from stages.distillation.losses.typed_relations import TypedRelations
from stages.distillation.losses.weighed_candidates import WeighedCandidates
from stages.distillation.recipe_lines import build_from_line

LOSSES: dict[str, type[Loss]] = {
    "adversary": Adversary,
    "attention_maps": AttentionMaps,
    "attention_scores": AttentionScores,
    "candidate_scores": CandidateScores,
    "continuation": Continuation,
    "contrastive_pairs": ContrastivePairs,
    "contrastive_vectors": ContrastiveVectors,
    "distillation_token": DistillationToken,
    "each_head": EachHead,
    "gold_labels": GoldLabels,
    "gram": Gram,
    "hidden_states": HiddenStates,
    "image_frames": ImageFrames,
    "in_batch_negatives": InBatchNegatives,
    "masked_soft_labels": MaskedSoftLabels,
    "masked_words": MaskedWords,
    "matched_logits": MatchedLogits,
    "matched_vectors": MatchedVectors,
    "peers": Peers,
    "relations": Relations,
    "score_distributions": ScoreDistributions,
    "soft_labels": SoftLabels,
    "typed_relations": TypedRelations,
    "weighed_candidates": WeighedCandidates,
}


def build(
    line: str | dict[str, Any],
    student: PretrainedConfig,
    teacher: PretrainedConfig,
    layer_map: Any = "uniform",
    mlm_probability: float = 0.0,
) -> Loss:
    """Make the loss that a line of a recipe describes.

    Args:
        line: the loss's name, or {name: settings}.
        student, teacher: the models' configs.
        layer_map: used if the settings have none.
        mlm_probability: the fraction of tokens that are masked.

    Raises:
        ValueError: there is no such loss or setting, the settings do not fit the models, or the loss reads masked tokens
            and none are masked.
    """
    given: dict[str, Any] = {"student": student, "teacher": teacher}
    given["problem_type"] = getattr(student, "problem_type", None)  # a bare config has none
    given["class_weights"] = getattr(student, "class_weights", None)
    loss = build_from_line(line, LOSSES, "losses", given, {"layer_map": layer_map})
    if loss.student_capture.vocabulary and not mlm_probability:
        raise UserError(
            f"{line!r} reads masked tokens, and none are masked; give the student a corpus as data and an "
            "mlm_probability above 0, or another loss",
            argument="losses",
        )
    return loss
