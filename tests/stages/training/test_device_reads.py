"""A step reads nothing back from the device, which on a GPU would be a wait in each step: counted on a CPU."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stages.distillation import outputs
from stages.distillation.distillation import Distillation
from stages.distillation.losses import (
    AttentionScores,
    GoldLabels,
    HiddenStates,
    MaskedSoftLabels,
    MaskedWords,
    attention,
)
from stages.distillation.models import ModelSource, load_masked_lm, load_tokenizer
from stages.distillation.outputs import ModelOutputs
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.masking import Masking
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split
from stages.teaching.recorded_logits import TeacherLogits
from tests.conftest import make_corpus, make_encoder, make_tokenizer
from tests.stages.distillation.losses.test_all_losses import LINES, MASKED, given_to, made
from tests.stages.training.test_job import make_job

READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "bincount", "_ctc_loss")
WRITE = "lift_fresh"
"""`torch.tensor`, or an index that is a list: Python also waits until a GPU has it. DeepSpeed's clipping, which is for CPUs
alone, does that."""


MUST_READ = (
    {"name": "image_frames"},
    {"name": "score_distributions", "layers": "random", "pairs": 2},
    {"name": "typed_relations", "statistic": "edges"},
)
"""Losses that do: docs/speed.md."""


class Reads(TorchDispatchMode):
    """Notes the operations that wait for a GPU: a number for Python, or a result whose shape depends on the data."""

    def __init__(self, *names: str):
        super().__init__()
        self.names, self.found = (*READS, *names), []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        if name in self.names or by_mask:
            self.found.append(name)
        return function(*arguments, **(keywords or {}))


@pytest.fixture
def job(tmp_path, world, monkeypatch):
    """A job that learns layers and masked words, its masks drawn as on a GPU."""
    make_corpus(tmp_path / "corpus.txt")
    make_encoder(tmp_path / "bert")
    source = ModelSource(str(tmp_path / "bert"))
    (student, _), (teacher, _) = load_masked_lm(source), load_masked_lm(source)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # on a CPU its draws are read, on a GPU not
    configs = student.config, teacher.config
    losses = [HiddenStates(*configs), AttentionScores(*configs), MaskedWords(), MaskedSoftLabels()]
    model = Distillation(student, losses)
    frozen = FrozenTeacher(teacher, model.teacher_capture, torch.device("cpu"))
    made = make_job(tmp_path, model)
    masking = Masking(load_tokenizer(source), 0.2, seed=1)
    made.rows = dataclasses.replace(made.rows, masking=masking)
    made.targets, made.batch_transform = frozen, masking
    plain = outputs.sdpa_mask
    monkeypatch.setattr(
        outputs, "sdpa_mask", lambda **given: plain(**given | {"allow_is_bidirectional_skip": False})
    )
    return made


def test_a_step_reads_nothing_back(job):
    ready = job._batch(np.arange(8), np.ones(8, np.float32))
    job._batch = lambda indices, weights: ready
    with Reads() as reads:
        job.step(np.arange(8))
    assert reads.found == []


def test_the_count_sees_a_read(job):
    ready = job._batch(np.arange(8), np.ones(8, np.float32))
    job._batch = lambda indices, weights: dataclasses.replace(ready, masked=None)
    with Reads() as reads:
        job.step(np.arange(8))
    assert len(reads.found) == 3  # two models and a loss


def test_recording_the_logits_of_words_reads_nothing_back(tmp_path):
    split = Split(["a good film", "the"], None, [[1, 0, 1], [0]])
    rows = write_task_rows([split], make_tokenizer(tmp_path / "tokenizer"), 16, tmp_path / "rows")
    recorded, batch = TeacherLogits(rows, 2, torch.device("cpu")), rows.collate(np.arange(2), np.ones(2))
    with Reads() as reads:
        recorded.note(batch, ModelOutputs(torch.zeros(*batch.input_ids.shape, 2)))
    assert reads.found == [] and not recorded.table_NC.isnan().any()


def on_meta(value: Any) -> Any:
    """Tensors without their content, of which nothing can be read."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("meta").requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {name: on_meta(each) for name, each in value.items()}
    if dataclasses.is_dataclass(value):
        found = {field.name: on_meta(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **found)
    return value


@pytest.mark.parametrize("name, given", LINES)
def test_a_loss_reads_nothing_back(name, given, monkeypatch):
    loss = made(name, given).to("meta").train()
    student, teacher, batch = map(on_meta, given_to(loss))
    places = torch.arange(len(batch.rows), device="meta")
    batch = dataclasses.replace(batch, counted=places, masked=torch.arange(len(MASKED), device="meta"))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # not for this device
    monkeypatch.setitem(attention.MAPS_UP_TO, "meta", 0)
    must = {"name": name} | given in MUST_READ
    raises = pytest.raises((NotImplementedError, RuntimeError)) if must else contextlib.nullcontext()
    with Reads(WRITE) as reads, raises:
        sum(term.sum for term in loss.terms(student, teacher, batch).values()).backward()
    assert must or not reads.found


def test_weights_of_classes_move_with_the_loss():
    """A list would be copied to the device in each step."""
    assert GoldLabels(class_weights=[0.5, 2.0]).to("meta").class_weights.device.type == "meta"
