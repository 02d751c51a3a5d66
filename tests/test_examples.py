"""Every example in a docstring runs, in the names of its module and these: what its reader has at hand."""

import doctest
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, BatchEncoding

from stages.distillation import CaptureSpec, capture, losses
from stages.distillation.models import new_classifier
from stages.distillation.outputs import ModelOutputs
from stages.tasks.kinds import Classes
from tests.conftest import tiny_config

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "stages", "data_aug", "checkpoints")
ELSEWHERE = ("pipeline", "data_aug", "stages.distillation.trainer")
"""Theirs need files or print times; test_docs and test_augment run them."""


def modules() -> list[str]:
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in files
        if ">>>" in path.read_text(encoding="utf-8")
    ]
    return [name for name in names if name not in ELSEWHERE]


class Players(nn.Module):
    """A student and a discriminator, as methods have them."""

    def __init__(self):
        super().__init__()
        self.student, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 1)


def names() -> dict:
    """Tiny models and inputs, by the names that examples have for them."""
    torch.manual_seed(0)
    labels = Classes(("bad", "fair", "good"))
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 2 + [0] * 5])
    batch = {"input_ids": torch.randint(5, 20, (3, 7)) * mask, "attention_mask": mask}
    tiny = vars(losses) | {"torch": torch, "np": np, "capture": capture, "CaptureSpec": CaptureSpec}
    return tiny | {
        "ModelOutputs": ModelOutputs,
        "BatchEncoding": BatchEncoding,
        "teacher": AutoModel.from_config(tiny_config()),
        "student": AutoModel.from_config(tiny_config(layers=2, width=8)),
        "stock": new_classifier(tiny_config(), labels).eval(),
        "model": Players(),
        "batch": batch,
        "ids": batch["input_ids"],
    }


@pytest.mark.parametrize("name", modules())
def test_the_examples_run(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [*sys.argv])  # an example changes it
    module = importlib.import_module(name)
    known = names() | vars(module)
    examples = [test for test in doctest.DocTestFinder().find(module, globs=known) if test.examples]
    assert examples, f"{name} has a line with >>> that is in no docstring"
    for test in examples:
        result = doctest.DocTestRunner(verbose=False).run(test)
        assert not result.failed, f"{test.name}\n{capsys.readouterr().out}"
