"""Layer maps: which teacher layer each student layer learns from (TinyBERT, section 3.1, the function g)."""

from collections.abc import Sequence
from typing import Any

from checkpoints.errors import UserError


def layer_map(which: str | Sequence[int], student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Find the teacher layer of each student layer.

    Args:
        which: `uniform`: every k-th layer (g(m) = m N / M). `last`: the top ones. `first`: the bottom ones. Or a list of
            the teacher layer, from 1, of each student layer.
        student_layers: M.
        teacher_layers: N.

    Returns:
        {student layer: teacher layer}. 0 is the embedding, which maps to the embedding.

    Raises:
        ValueError: the layer counts do not fit the map.

    Example:
        >>> layer_map("uniform", 2, 6)
        {0: 0, 1: 3, 2: 6}
    """
    m, n = student_layers, teacher_layers
    if m > n:
        raise UserError(
            f"the student has {m} layers, the teacher {n}; give it at most {n}", argument="layers"
        )
    if not isinstance(which, str | list | tuple):  # the keys of a mapping would pass for layers
        raise UserError(
            f"{which!r} is not a map; give uniform, last, first or a list of {m} teacher layers, each from 1 to {n}",
            argument="layer_map",
        )
    if which == "uniform":
        if n % m:
            fits = ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)
            raise UserError(
                f"uniform needs a student whose layers divide the teacher's {n}, not {m}; give the student {fits} "
                "layers, or take last, first or a list of layers",
                argument="layer_map",
            )
        targets = [i * n // m for i in range(1, m + 1)]
    elif which == "last":
        targets = [i + n - m for i in range(1, m + 1)]
    elif which == "first":
        targets = list(range(1, m + 1))
    else:
        targets = [] if isinstance(which, str) else list(which)
        whole = all(isinstance(t, int) and not isinstance(t, bool) for t in targets)
        if len(targets) != m or not whole or not all(1 <= t <= n for t in targets):
            raise UserError(
                f"{which!r} must be {m} teacher layers, each from 1 to {n}, or uniform, last or first",
                argument="layer_map",
            )
    return {0: 0} | {i: t for i, t in enumerate(targets, start=1)}


def attention_window(config: Any, layer: int) -> int | None:
    """Find how many positions away the tokens of a transformer layer attend to; None: no limit.

    Args:
        config: the model's config; ModernBERT's names a kind of attention for each layer.
        layer: number of the layer, from 1.
    """
    kinds = getattr(config, "layer_types", None)
    return config.sliding_window if kinds and kinds[layer - 1] == "sliding_attention" else None
