"""Rows that are no text: images, and a graph that is one row. All that they need is in this file."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from transformers import BatchEncoding

from checkpoints.errors import UserError
from stages.distillation.losses.base import LossTerm
from stages.training.job import Job
from tests.stages.foreign import Table, assert_resumes, make_stage


def convnet(width: int) -> nn.Module:
    """A classifier of (B, 1, 8, 8) images into 10 classes."""
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


class Classifier(nn.Module):
    """A student of gold labels, or of a teacher's distribution where there are targets."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student

    def forward(self, batch: BatchEncoding, targets: Tensor | None) -> dict[str, LossTerm]:
        logits_BC = self.student(batch["x"])
        wanted = batch["y"] if targets is None else targets.softmax(-1)
        losses = functional.cross_entropy(logits_BC, wanted, reduction="none")
        return {"digits": LossTerm((losses * batch["weight"]).sum(), "rows")}


def test_images_with_a_convnet_teacher_and_a_smaller_student(tmp_path, world):
    pixels, classes = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(classes)
    train, dev = Table(x[:800], y[:800]), Table(x[800:1000], y[800:1000])

    def accuracy(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return (model(dev.x_NF).argmax(-1) == dev.y_N).float().mean().item()

    def make_teacher(directory):
        torch.manual_seed(0)
        model = Classifier(convnet(16))
        stage = make_stage(directory, {"batch_size": 32})
        return Job(stage, model, train, evaluate=lambda: accuracy(model.student))

    teacher = assert_resumes(tmp_path / "teacher", make_teacher).model.student.eval()
    assert accuracy(teacher) > 0.85
    assert teacher[1].num_batches_tracked > 0  # BatchNorm's statistics were learned, and so resumed

    def make_student(directory):
        torch.manual_seed(1)
        model = Classifier(convnet(8))

        def targets(batch: BatchEncoding) -> Tensor:
            with torch.no_grad():
                return teacher(batch["x"])

        stage = make_stage(directory, {"batch_size": 32, "epochs": 4})
        return Job(stage, model, train, targets, lambda: accuracy(model.student))

    assert accuracy(assert_resumes(tmp_path / "student", make_student).model.student) > 0.8


class Graph:
    """A graph as one row: its nodes do not come apart."""

    max_ranks = 1
    lengths = np.ones(1, np.int64)

    def __init__(self, nodes: int):
        generator = torch.Generator().manual_seed(0)
        self.classes_N = torch.arange(nodes) % 2
        same_NN = self.classes_N[:, None] == self.classes_N
        edges_NN = torch.rand(nodes, nodes, generator=generator) < torch.where(same_NN, 0.5, 0.1)
        self.mix_NN = (edges_NN | torch.eye(nodes, dtype=torch.bool)).float()
        self.mix_NN /= self.mix_NN.sum(1, keepdim=True)
        self.x_NF = functional.one_hot(self.classes_N).float() + torch.randn(nodes, 2, generator=generator)

    def __len__(self) -> int:
        return 1

    def normalizers(self, indices: np.ndarray) -> dict[str, int]:
        return {"nodes": len(self.classes_N)}

    def collate(self, indices: np.ndarray, weights: np.ndarray) -> BatchEncoding:
        return BatchEncoding({"x": self.x_NF, "mix": self.mix_NN, "y": self.classes_N})


class GraphNet(nn.Module):
    """A student that reads each node's neighbours."""

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(2, 2)

    def forward(self, batch: BatchEncoding, targets: None) -> dict[str, LossTerm]:
        logits_NC = batch["mix"] @ self.student(batch["x"])
        return {"nodes": LossTerm(functional.cross_entropy(logits_NC, batch["y"], reduction="sum"), "nodes")}


def test_a_graph_is_one_row_and_refuses_two_ranks(tmp_path, world, monkeypatch):
    graph = Graph(40)

    def make(directory):
        torch.manual_seed(0)
        return Job(make_stage(directory, {"epochs": 30, "learning_rate": 0.1}), GraphNet(), graph)

    model = assert_resumes(tmp_path, make).model
    found_N = (graph.mix_NN @ model.student(graph.x_NF)).argmax(-1)
    assert (found_N == graph.classes_N).float().mean() > 0.9
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(
        UserError, match=r"^nproc: the rows .Graph. .* at most 1 rank, not on 2; set it to 1$"
    ):
        make(tmp_path / "two")
