"""Layer maps: which teacher layer each student layer learns from (paper section 3.1, the function g)."""

from collections.abc import Sequence

from checkpoints.errors import UserError


def layer_map(kind: str | Sequence[int], student_layers: int, teacher_layers: int) -> dict[int, int]:
    """{student index: teacher index} of hidden states; 0, the embedding, always maps to 0.

    `uniform` takes every k-th layer (paper: g(m) = m N / M), `last` the top ones, `first` the bottom ones;
    a list names the teacher layer, from 1, of each student layer.

    Raises:
        UserError: the layer counts do not fit the map.
    """
    m, n = student_layers, teacher_layers
    if m > n:
        raise UserError(
            f"a student of {m} layers cannot be mapped onto a teacher of {n}: set architecture.layers"
        )
    if kind == "uniform":
        if n % m:
            fits = ", ".join(str(k) for k in range(1, n + 1) if n % k == 0)
            raise UserError(
                f"layer_map=uniform: {m} student layers do not divide the teacher's {n}: "
                f"set architecture.layers to one of {fits}, or layer_map to last, first or a list"
            )
        targets = [i * n // m for i in range(1, m + 1)]
    elif kind == "last":
        targets = [i + n - m for i in range(1, m + 1)]
    elif kind == "first":
        targets = list(range(1, m + 1))
    else:
        targets = list(kind)
        if len(targets) != m or not all(isinstance(t, int) and 1 <= t <= n for t in targets):
            raise UserError(f"layer_map={targets} must name {m} teacher layers, each from 1 to {n}")
    return {0: 0} | {i: t for i, t in enumerate(targets, start=1)}
