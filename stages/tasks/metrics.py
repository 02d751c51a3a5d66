"""The names of metrics; `stages.tasks.kinds` has their values."""

from __future__ import annotations

from collections.abc import Sequence

from checkpoints.errors import UserError

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")
ERRORS = ("mae", "rmse")
AGREEMENT = {"accuracy": "agreement", "subset_accuracy": "subset_agreement"}
"""Their names where they compare with a teacher's answers, not with gold labels."""
RANKING = ("map", "mrr", "precision_at_1")
SEQUENCES = ("character_accuracy", "sequence_accuracy")
RECALL_AT = (1, 5, 10)
RECALLS = ("mean_recall", *(f"{of}_recall_at_{k}" for of in ("text", "image") for k in RECALL_AT))
LABEL_SETS = ("micro_f1", "macro_f1", "mean_average_precision", "subset_accuracy")


def select(
    metric: str,
    defaults: tuple[str, ...] = ("accuracy", "f1"),
    allowed: Sequence[str] = CLASSIFICATION,
) -> tuple[tuple[str, ...], str]:
    """Return (metrics to report, metric that selects on dev): `metric` selects if it is given, else the first default.

    Raises:
        UserError: `metric` is not one of `allowed`.
    """
    if not metric:
        return defaults, defaults[0]
    if metric not in allowed:
        raise UserError(
            f"{metric!r} does not fit this task; choose one of {', '.join(allowed)}", argument="metric"
        )
    return (defaults if metric in defaults else (metric, *defaults)), metric
