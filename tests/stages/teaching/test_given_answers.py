"""Answers that are doubtful beside an encoder's predictions, and the folds of those that judge them."""

import math
from dataclasses import replace

import numpy as np
import pytest

from checkpoints.errors import UserError
from stages.tasks.kinds import Classes, LabelSets
from stages.tasks.task import find_task, fold_rows, load_task
from stages.tasks.types import Split, Task
from stages.teaching.given_answers import LOGITS_FILE, answer_logits, learned_answers
from tests.stages.foreign import make_stage

ANSWERS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.9, 0.1)]
ENCODER = np.float32([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-3.0, 3.0]])


def learned(tmp_path, monkeypatch, kind, **options):
    """What a stage learns of four answers, of which an encoder says other things."""
    task = Task(
        "t", kind, {"train": Split(["a", "b", "c", "d"], None, [0, 1, 0, 0], answers=ANSWERS)}, (), ""
    )
    stage = make_stage(tmp_path)
    stage.options.update(options)
    stage.inputs["out_of_fold"] = {}
    np.save(tmp_path / LOGITS_FILE, ENCODER)
    monkeypatch.setattr(type(stage), "artifact_dir", lambda *_: tmp_path)
    return learned_answers(stage, task), answer_logits(task)


@pytest.mark.parametrize("leave_out, replaced", [(0.0, []), (0.25, [3]), (0.5, [1, 3])])
def test_the_farthest_answers_are_replaced(tmp_path, monkeypatch, leave_out, replaced):
    found, answers = learned(tmp_path, monkeypatch, Classes(("no", "yes")), leave_out=leave_out)
    for row in range(4):
        assert np.array_equal(found[row], (ENCODER if row in replaced else answers)[row])


@pytest.mark.parametrize("kind", [Classes(("no", "yes")), LabelSets(("no", "yes"))])
def test_a_mixture_trusts_an_answer_by_its_agreement(tmp_path, monkeypatch, kind):
    found, answers = learned(tmp_path, monkeypatch, kind, leave_out=0.0, weight="agreement")
    p_answer, p_encoder, p_found = map(kind.probabilities, (answers, ENCODER, found))
    for answer, said, row in zip(p_answer, p_encoder, p_found, strict=True):
        pairs = (
            [(answer, said)]
            if kind.exclusive
            else [((p, 1 - p), (q, 1 - q)) for p, q in zip(answer, said, strict=True)]
        )
        trust = 1 - sum(plain_distance(*pair) for pair in pairs) / len(pairs)
        assert np.allclose(row, trust * answer + (1 - trust) * said, atol=1e-4)
    assert np.allclose(p_found[2], 0.5) and p_found[1][1] < p_answer[1][1], "agreed on, and doubted"


def plain_distance(p, q) -> float:
    """The Jensen-Shannon distance, base 2, by its definition."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def divergence(a):
        return sum(x * math.log2(x / y) for x, y in zip(a, m, strict=True) if x > 0)

    return math.sqrt(max(0.0, (divergence(p) + divergence(q)) / 2))


def test_folds_share_the_training_rows_and_a_fold_is_not_trained_on(tmp_path):
    rows = "\n".join(f"text {i},{'ab'[i % 2]}" for i in range(200))
    (tmp_path / "train.csv").write_text(f"text,label\n{rows}\n")
    source = find_task("t", str(tmp_path), ("text",), "label")
    whole = load_task(source).splits["train"]
    shares = [fold_rows(len(whole), fold, 3) for fold in range(3)]
    assert sorted(row for of in shares for row in of) == list(range(len(whole)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for fold, chosen in enumerate(shares):
        kept = load_task(replace(source, fold=(fold, 3))).splits["train"]
        assert set(kept.text_a) == set(whole.text_a) - {whole.text_a[i] for i in chosen}
    with pytest.raises(UserError, match="500 folds of .* training rows"):
        load_task(replace(source, fold=(0, 500)))
