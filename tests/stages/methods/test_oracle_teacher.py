"""Where symbols are emitted on the strips of digit-strings."""

import numpy as np
import pytest

from stages.methods.oracle_teacher import in_place
from stages.tasks.readers import strips
from stages.tasks.strip_rows import COLUMNS
from stages.tasks.task import find_task, load_task


@pytest.mark.parametrize("moved, expected", [(0, 1.0), (strips.SIDE // COLUMNS, 0.0)])
def test_symbols_count_where_their_digit_stands(moved, expected):
    kind = load_task(find_task("digit-strings")).kind
    _, strings, spans = strips.composed("dev")
    logits = np.zeros((len(strings), strips.WIDTH // COLUMNS, kind.outputs))
    logits[:, :, 0] = 1.0
    alone = 0
    for frames, text, of_row in zip(logits, strings, spans, strict=True):
        symbol, (begin, _) = text[-1], of_row[-1]
        frame = begin // COLUMNS + moved
        if frame < len(frames):  # beyond its own digit there is none
            frames[frame, kind.labels.index(symbol)] = 5.0
            alone += 1
    assert alone > 100 and in_place(kind, logits, "dev") == expected
    assert in_place(kind, np.zeros_like(logits), "dev") == 0.0
