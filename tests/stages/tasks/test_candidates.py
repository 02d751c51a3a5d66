"""Rows of questions with a right candidate and drawn wrong ones."""

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.tasks.candidates import Candidates
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split
from tests.conftest import make_tokenizer

SPLIT = Split(
    ["the film"] * 4 + ["a"] * 3 + ["good"],
    ["warm", "bad", "great", "actor", "film", "the", "a", "warm film"],
    [1, 0, 1, 0, 0, 1, 0, 1],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("candidates")
    tokenizer = make_tokenizer(path / "tokenizer")
    return write_task_rows([SPLIT], tokenizer, 16, path / "rows"), tokenizer


def read(rows: Candidates, tokenizer, indices: list[int], epoch: int) -> list[list[str]]:
    batch = rows.draw(rows.collate(np.array(indices), np.ones(len(indices), np.float32)), epoch)
    assert batch.inputs["input_ids"].shape[:2] == (len(indices), 1 + rows.negatives)
    return [
        [tokenizer.decode(ids, skip_special_tokens=True) for ids in row] for row in batch.inputs["input_ids"]
    ]


def test_a_row_is_a_right_candidate_and_wrong_ones_of_the_same_question(made):
    tokens, tokenizer = made
    rows = Candidates({"": tokens}, SPLIT, seed=3, negatives=2)
    assert len(rows) == 4 and rows.normalizers(np.array([1, 3]))["rows"] == 2
    batch = rows.collate(np.array([0, 1, 2, 3]), np.ones(4, np.float32))
    assert batch.labels.tolist() == [0, 0, 1, 2]  # the same question has the same number
    said = read(rows, tokenizer, [0, 1, 2, 3], epoch=0)
    assert [row[0] for row in said] == ["the film warm", "the film great", "a the", "good warm film"]
    assert {*said[0][1:], *said[1][1:]} <= {"the film bad", "the film actor"}
    assert {*said[2][1:]} <= {"a film", "a a"}
    assert all(
        text.split()[-1] in ("bad", "actor", "film", "a") for text in said[3][1:]
    )  # it has none of its own


def test_wrong_ones_depend_on_seed_epoch_and_row_alone(made):
    tokens, tokenizer = made
    rows = Candidates({"": tokens}, SPLIT, seed=3)
    epochs = [read(rows, tokenizer, [0, 1, 2, 3], epoch) for epoch in range(8)]
    assert all(len({epoch[row][1] for epoch in epochs}) > 1 for row in range(4))
    assert read(rows, tokenizer, [2, 0], 5) == [epochs[5][2], epochs[5][0]]
    assert [
        read(Candidates({"": tokens}, SPLIT, seed=4), tokenizer, [0, 1, 2, 3], e) for e in range(8)
    ] != epochs


def test_teacher_and_student_read_the_same_candidates_each_in_its_tokens(made, tmp_path):
    tokens, _ = made
    longer = write_task_rows([SPLIT], make_tokenizer(tmp_path), 5, tmp_path / "rows")
    rows = Candidates({"student_": tokens, "teacher_": longer}, SPLIT, seed=3)
    batch = rows.draw(rows.collate(np.arange(4), np.ones(4, np.float32)), 0)
    ours, theirs = (batch.inputs_of(side)["input_ids"] for side in ("student", "teacher"))
    assert ours.shape[-1] > theirs.shape[-1] == 5
    assert torch.equal(ours[..., :2], theirs[..., :2])


@pytest.mark.parametrize("labels", [[0] * 8, [1] * 8])
def test_a_ranking_without_right_or_wrong_candidates_is_refused(made, labels):
    with pytest.raises(UserError, match=r"^data: \d right and \d wrong candidates; .* give rows of both"):
        Candidates({"": made[0]}, Split(SPLIT.text_a, SPLIT.text_b, labels), seed=1)
