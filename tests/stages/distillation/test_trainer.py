"""Distillation through transformers' own Trainer."""

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    TrainingArguments,
    default_data_collator,
)

from pipeline.launch.launcher import RANK_VARIABLES
from stages.distillation.losses import AttentionScores, GoldLabels, HiddenStates, SoftLabels
from stages.distillation.outputs import read
from stages.distillation.trainer import DistillationTrainer
from stages.tasks.batches import Batch, normalizers
from tests.conftest import tiny_config


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Without the ranks of the fixture `world`, for which the Trainer would wrap the student in DistributedDataParallel."""
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def data():
    """Token rows of unlike lengths, padded, with labels."""
    random = torch.Generator().manual_seed(0)
    mask = (torch.arange(9) < torch.randint(3, 10, (16, 1), generator=random)).long()
    ids = torch.randint(5, 20, (16, 9), generator=random) * mask
    columns = {
        "input_ids": ids.tolist(),
        "attention_mask": mask.tolist(),
        "labels": [i % 2 for i in range(16)],
    }
    return datasets.Dataset.from_dict(columns)


def arguments(directory, **given):
    settings = {"per_device_train_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2, "report_to": []}
    return TrainingArguments(str(directory), use_cpu=True, **{"save_strategy": "no"} | settings | given)


def test_the_loss_is_ours_and_projections_learn_but_are_not_saved(tmp_path, data):
    torch.manual_seed(0)
    student = AutoModel.from_config(tiny_config(layers=2, width=8))
    teacher = AutoModel.from_config(tiny_config())
    losses = [HiddenStates(student.config, teacher.config), AttentionScores(student.config, teacher.config)]
    trainer = DistillationTrainer(
        student, teacher, losses, args=arguments(tmp_path / "run"), train_dataset=data.remove_columns("labels"),
        data_collator=default_data_collator,
    )  # fmt: skip

    inputs = default_data_collator([data[i] for i in range(4)])
    batch = Batch(
        {k: inputs[k] for k in ("input_ids", "attention_mask")}, None, torch.ones(4), torch.arange(4)
    )
    total = normalizers(inputs["attention_mask"].sum(1).numpy())
    student.eval()
    expected = sum(
        (term.weight * term.sum / total[term.normalizer]).item()
        for loss in losses
        for term in loss.terms(
            read(student, batch, loss.student_capture), read(teacher, batch, loss.teacher_capture), batch
        ).values()
    )
    assert trainer.compute_loss(student, inputs).item() == pytest.approx(expected, rel=1e-6)

    before = losses[0].projections[0].weight.detach().clone()
    first = trainer.compute_loss(student, inputs).item()
    trainer.train()
    student.eval()
    assert trainer.compute_loss(student, inputs).item() < first
    assert not torch.equal(losses[0].projections[0].weight, before)
    trainer.save_model(tmp_path / "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    assert loaded.state_dict().keys() == student.state_dict().keys()


def test_classifiers_learn_answers_and_gold_labels(tmp_path, data):
    torch.manual_seed(0)
    student = AutoModelForSequenceClassification.from_config(tiny_config(layers=2, width=8))
    teacher = AutoModelForSequenceClassification.from_config(tiny_config())
    trainer = DistillationTrainer(
        student, teacher, [SoftLabels(temperature=2.0), GoldLabels(weight=0.5)], args=arguments(tmp_path),
        train_dataset=data, data_collator=default_data_collator,
    )  # fmt: skip
    assert trainer.train().training_loss > 0


def layers(student, teacher):
    return [HiddenStates(student.config, teacher.config), AttentionScores(student.config, teacher.config)]


def trained(directory, data, **given):
    """A student of layers, trained, and its losses; the projections are drawn after the models."""
    torch.manual_seed(0)
    student, teacher = (
        AutoModel.from_config(tiny_config(**size)) for size in ({"layers": 2, "width": 8}, {})
    )
    losses = layers(student, teacher)
    trainer = DistillationTrainer(
        student, teacher, losses, args=arguments(directory, max_steps=4, **given),
        train_dataset=data.remove_columns("labels"), data_collator=default_data_collator,
    )  # fmt: skip
    return trainer, losses


def test_a_resumed_training_has_the_projections_of_its_checkpoint(tmp_path, data):
    saves = {"save_strategy": "steps", "save_steps": 2}
    whole, of_whole = trained(tmp_path, data, **saves)
    whole.train()
    resumed, of_resumed = trained(tmp_path, data, **saves)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for a, b in zip(of_whole[0].parameters(), of_resumed[0].parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in of_whole[0].parameters())  # else they add up over the steps
    whole.train()  # and once more, as a notebook's cell does


def test_evaluation_computes_the_loss_and_shows_logits_alone(tmp_path, data):
    student = AutoModelForSequenceClassification.from_config(tiny_config(layers=2, width=8))
    teacher = AutoModelForSequenceClassification.from_config(tiny_config())
    for dataset in data, data.remove_columns("labels"):
        trainer = DistillationTrainer(
            student, teacher, [SoftLabels(), *layers(student, teacher)], args=arguments(tmp_path),
            eval_dataset=dataset, data_collator=default_data_collator,
        )  # fmt: skip
        assert trainer.evaluate()["eval_loss"] > 0
        found = trainer.predict(dataset)
        assert found.predictions.shape == (16, 2)
        assert (found.label_ids is None) == ("labels" not in dataset.column_names)


def test_the_teacher_gets_the_columns_that_the_student_does_not_read(tmp_path, data):
    student = AutoModelForSequenceClassification.from_config(tiny_config("distilbert", layers=2, width=8))
    teacher = AutoModelForSequenceClassification.from_config(tiny_config())
    read_by_teacher = []
    teacher.register_forward_pre_hook(
        lambda _, args, kwargs: read_by_teacher.append(kwargs), with_kwargs=True
    )
    types = np.ones((16, 9), int).tolist()
    trainer = DistillationTrainer(
        student, teacher, SoftLabels(), args=arguments(tmp_path, max_steps=1),
        train_dataset=data.add_column("token_type_ids", types), data_collator=default_data_collator,
    )  # fmt: skip
    trainer.train()
    assert all(kwargs["token_type_ids"].all() for kwargs in read_by_teacher) and read_by_teacher


def test_activation_checkpointing_trains_and_the_kind_that_hides_gradients_is_refused(tmp_path, data):
    trained(tmp_path, data, gradient_checkpointing=True)[0].train()
    kwargs = {"use_reentrant": True}
    with pytest.raises(ValueError, match="use_reentrant=True hides the attention's gradient"):
        trained(tmp_path, data, gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)[0].train()


def test_what_cannot_be_learned_is_refused(tmp_path, data):
    student = AutoModelForSequenceClassification.from_config(tiny_config(layers=2, width=8))
    for teacher, losses, message in (
        (None, [], "losses: none are given"),
        (None, [SoftLabels()], "teacher: None, but SoftLabels"),
        (None, None, "losses: None is not a loss; give an object"),
        (None, "soft_labels", "losses: 'soft_labels' is not a loss"),
        (None, [GoldLabels], "GoldLabels'> is not a loss"),
        ("a/name", [SoftLabels()], "teacher: 'a/name' is not a model; give one that is loaded"),
        (student, [SoftLabels()], "teacher: the student itself, which would be frozen; give a copy"),
    ):
        with pytest.raises(ValueError, match=message):
            DistillationTrainer(student, teacher, losses, args=arguments(tmp_path), train_dataset=data)
    assert all(p.requires_grad for p in student.parameters())


def test_projections_decay_as_the_student_does(tmp_path, data):
    trainer, losses = trained(tmp_path, data, weight_decay=0.3)
    groups = trainer.create_optimizer().param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {(p.ndim > 1, decay[id(p)]) for p in losses[0].parameters()} == {(True, 0.3), (False, 0.0)}
