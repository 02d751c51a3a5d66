"""Students of a corpus: where they begin, and what they and their teacher see. Resumes: integration/test_corpus_students.py."""

from dataclasses import asdict, replace

import pytest
import torch

from stages import pretrain
from stages.distillation.distillation import Distillation
from stages.distillation.models import ModelSource, load_classifier, load_encoder, load_masked_lm
from stages.distillation.teachers import FrozenTeacher
from stages.tasks.kinds import Classes
from stages.training.options import Job, Pretraining
from stages.training.stage import Stage
from tests.conftest import make_corpus, make_encoder

BUNDLE = ["masked_words", {"masked_soft_labels": {"temperature": 2.0}}, "hidden_states", "attention_maps"]


@pytest.fixture
def stage(tmp_path, world):
    """What makes a stage of a tiny teacher of 6 layers and a corpus, 12 documents of which none is held out."""
    path = make_corpus(tmp_path / "corpus.txt", 12)
    files = {"reader": "files", "version": 1, "files": {"corpus.txt": str(path)}}
    inputs = {
        "corpus": {"name": "corpus", "identity": files},
        "teacher": {"path": str(make_encoder(tmp_path / "teacher", layers=6))},
    }
    settings = Job(precision="fp32")

    def make(student: dict, losses: list, **training) -> Stage:
        directory = tmp_path / "runs" / "r" / "text"
        directory.mkdir(parents=True, exist_ok=True)
        training = asdict(
            replace(Pretraining(), **{"epochs": 1, "batch_size": 8, "max_length": 32} | training)
        )
        options = {"seed": 1, "student": student, "losses": losses, "layer_map": "uniform"}
        device = torch.device("cpu")
        return Stage(
            "text", "pretrain", directory, options | {"training": training}, inputs, "", settings, device
        )

    return make


def sizes(layers=3, init="random", init_layers="uniform", **others):
    return {"layers": layers, "dropout": 0.0, "init": init, "init_layers": init_layers} | others


def test_teacher_and_student_see_the_same_masks_which_are_other_ones_in_each_epoch(stage, monkeypatch):
    seen = {"teacher": [], "student": []}

    def spy(who, real):
        def seeing(self, batch, *rest):
            seen[who].append((batch.rows.tolist(), batch.input_ids.clone(), batch.labels.clone()))
            return real(self, batch, *rest)

        return seeing

    monkeypatch.setattr(FrozenTeacher, "__call__", spy("teacher", FrozenTeacher.__call__))
    monkeypatch.setattr(Distillation, "forward", spy("student", Distillation.forward))
    pretrain.run(stage(sizes(), BUNDLE, epochs=2))
    assert len(seen["teacher"]) == len(seen["student"]) > 4
    masks = {}
    for (_, ids, labels), (rows, others, of_student) in zip(seen["teacher"], seen["student"], strict=True):
        assert torch.equal(ids, others) and torch.equal(labels, of_student) and (labels >= 0).any()
        assert (ids[labels >= 0] == 4).all() and (labels[ids != 4] == -100).all()  # 4: [MASK]
        for row, places in zip(rows, of_student >= 0, strict=True):
            masks.setdefault(row, []).append(places.tolist())
    assert (
        all(len(of) == 2 for of in masks.values()) and sum(a != b for a, b in masks.values()) > len(masks) / 2
    )


@pytest.mark.parametrize("layers", [[1, 3, 5], [2, 4, 6]], ids=["even", "odd"])
def test_a_student_begins_as_layers_of_the_teacher_with_its_head(stage, layers):
    """Papers count from 0: layers 0, 2, 4 are the list [1, 3, 5]; layers 1, 3, 5 are [2, 4, 6], every second."""
    made = stage(sizes(init="teacher-layers", init_layers=layers), ["masked_words"])
    student, teacher = (
        pretrain.begin(made, masked=True).state_dict(),
        load_masked_lm(made.model("teacher"))[0].state_dict(),
    )
    for mine, theirs in enumerate(layers):
        for part in ("attention.self.query.weight", "output.dense.bias"):
            name = f"bert.encoder.layer.{{}}.{part}"
            assert torch.equal(student[name.format(mine)], teacher[name.format(theirs - 1)])
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.transform.dense.weight"):
        assert torch.equal(student[name], teacher[name])
    if layers == [2, 4, 6]:
        same = pretrain.begin(stage(sizes(init="teacher-layers"), ["masked_words"]), masked=True).state_dict()
        assert all(torch.equal(same[name], student[name]) for name in student)


def test_what_is_made_is_a_masked_language_model_a_task_can_begin_from(stage):
    made = stage(sizes(width=8, feed_forward=16, heads=2), BUNDLE)
    pretrain.run(made)
    source = ModelSource(str(made.directory / "model"))
    model, has_head = load_masked_lm(source)
    classifier = load_classifier(source, Classes(("a", "b")))
    assert has_head and classifier.config.num_labels == 2
    torch.testing.assert_close(classifier.bert.encoder.state_dict(), model.bert.encoder.state_dict())


def test_without_masks_it_is_an_encoder_of_the_text_as_it_is(stage):
    made = stage(sizes(), ["hidden_states", "attention_scores"], mlm_probability=0.0, epochs=2)
    pretrain.run(made)
    encoder = load_encoder(ModelSource(str(made.directory / "model")))
    assert encoder.config.architectures == ["BertModel"] and encoder.config.num_hidden_layers == 3
