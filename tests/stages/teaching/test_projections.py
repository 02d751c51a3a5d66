"""Projections are carried over where layers and shapes are the same, and nowhere else."""

import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.distillation import Distillation
from stages.teaching.projections import begin_with_projections, projections_writer
from stages.teaching.student import layer_losses
from stages.training.options import PROJECTIONS_FILE, Distilling
from tests.conftest import tiny_config


def model(seed: int, layers: int = 2, width: int = 8, **options) -> Distillation:
    from transformers import AutoModel

    student = tiny_config(layers=layers, width=width, heads=2)
    torch.manual_seed(seed)
    losses = layer_losses(Distilling(**options), student, tiny_config())
    return Distillation(AutoModel.from_config(student), losses)


def shared_with(model: Distillation, other: Distillation) -> list[bool]:
    """Of each projection of a model whether the other has one of that name, with the same numbers."""
    theirs = getattr(other.losses[0], "projections_by_name", {})
    return [
        name in theirs
        and bool((own.weight == theirs[name].weight).all() and (own.bias == theirs[name].bias).all())
        for name, own in model.losses[0].projections_by_name.items()
    ]


@pytest.mark.parametrize(
    ("general", "intermediate", "expected"),
    [
        ({}, {}, [True, True, True]),
        ({}, {"layer_map": [1, 4]}, [True, False, True]),  # uniform is [2, 4]
        ({"layers": 1, "layer_map": [2]}, {"layer_map": [2, 4]}, [True, True, False]),
        ({}, {"width": 4}, [False] * 3),
        ({"projection": "shared"}, {"projection": "shared"}, [True]),
        ({"projection": "shared"}, {}, [False] * 3),
        ({"hidden_weight": 0.0}, {}, [False] * 3),
    ],
    ids=str,
)
def test_projections_of_the_same_layers_and_shapes_are_carried_over(
    tmp_path, general, intermediate, expected
):
    before, after, untouched = model(1, **general), model(2, **intermediate), model(2, **intermediate)
    projections_writer(before)(tmp_path)
    said = begin_with_projections(after, tmp_path)
    assert said.startswith(f"{sum(expected)} of {len(expected)} projections")
    assert shared_with(after, untouched) == [not found for found in expected]
    if "width" not in intermediate:
        assert shared_with(after, before) == expected


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / PROJECTIONS_FILE).write_bytes(b"torn")
    with pytest.raises(UserError, match="is damaged .* remove it"):
        begin_with_projections(model(1), tmp_path)
