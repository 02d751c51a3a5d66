"""Models that do not fit are one line of the stage `check`, and what is not taken as it is is said."""

import json
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from checkpoints.errors import UserError
from stages.distillation.models import ModelSource, new_classifier
from stages.tasks.kinds import Classes
from stages.tasks.task import find_task, load_task
from stages.teaching import given_models
from stages.teaching.given_models import Models, check_models, check_plan
from stages.training.options import StageToCheck
from tests.conftest import make_encoder, make_task, make_tokenizer, tiny_config

OPTIONS = {"architecture": {"layers": 2, "width": 8, "heads": 2}, "teacher_labels": [], "stages": {}}


@pytest.fixture
def task(tmp_path):
    return load_task(find_task("mine", str(make_task(tmp_path / "data")), ("text",), "label"))


@pytest.fixture
def teacher(tmp_path):
    return make_encoder(tmp_path / "teacher")


def student(directory, labels=None):
    """A student of the teacher's, general or of a task with these labels."""
    make_encoder(directory, layers=2, width=8)
    if labels:
        new_classifier(tiny_config(layers=2, width=8), Classes(labels)).save_pretrained(directory)
    return directory


def check(teacher, task, given=None):
    """What is said."""
    said = []
    given = ModelSource(str(given)) if given else None
    check_models(ModelSource(str(teacher)), given, OPTIONS, task, said.append)
    return said


def test_a_pair_that_fits_says_nothing(tmp_path, teacher, task):
    assert check(teacher, task) == check(teacher, task, student(tmp_path / "s")) == check(teacher, None) == []
    assert check(teacher, task, student(tmp_path / "tuned", task.labels)) == []


def test_layers_that_are_not_found_by_name_are_told_before_the_teacher_is_tuned(teacher, task, monkeypatch):
    def no_layers(model):
        raise UserError("not found by name")

    monkeypatch.setattr(given_models, "check_layers", no_layers)
    assert check(teacher, task) == []  # a student of sizes of its own needs none
    with pytest.raises(UserError, match="not found by name"):
        check_models(ModelSource(str(teacher)), None, OPTIONS | {"architecture": {"layers": 2}}, task, print)


def test_weights_of_teacher_and_student_are_there(tmp_path, teacher, task):
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    with pytest.raises(UserError, match="teacher: its weights do not fit .* 80 missing"):
        check(teacher, task)
    (teacher / "config.json").write_text(json.dumps(config))
    given = student(tmp_path / "s")
    weights = load_file(given / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, given / "model.safetensors", {"format": "pt"})  # fmt: skip
    assert check(teacher, task, given) == [f"{given}: 'module.' is taken off the names of its weights"]
    weights.pop("embeddings.word_embeddings.weight")
    save_file(weights, given / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"s: its weights .* 1 missing \(bert.embeddings.word_embeddings.weight\)"
    ):
        check(teacher, task, given)


def test_a_students_head_of_another_task_is_dropped_and_said_at_once(tmp_path, teacher, task):
    (line,) = check(teacher, task, student(tmp_path / "s", ("a", "b", "c")))
    assert "its head is of another task (classifier.bias (3,) instead of (2,)" in line and "dropped" in line


def test_a_given_classifier_without_its_head_is_refused(teacher, task):
    make_tokenizer(teacher)
    new_classifier(tiny_config(), task.kind).save_pretrained(teacher)
    assert check(teacher, task) == []
    weights = load_file(teacher / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    save_file(weights, teacher / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"2 missing \(classifier.bias, classifier.weight\).*for a new head"):
        check(teacher, task)


def test_a_student_of_another_vocabulary_of_equal_size_is_refused(tmp_path, teacher, task):
    given = student(tmp_path / "s")
    state = make_tokenizer(given).backend_tokenizer.to_str()
    other = Tokenizer.from_str(state.replace('"film"', '"cinema"'))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=other, **special).save_pretrained(given)
    with pytest.raises(UserError, match="2 of 28 tokens are not the same .* same vocabulary"):
        check(teacher, task, given)
    for path in given.glob("token*"):
        path.unlink()
    (line,) = check(teacher, task, given)
    assert line.startswith("of the vocabularies only the sizes were compared: ") and "no tokenizer" in line


def test_only_a_student_of_text_learns_from_a_corpus(tmp_path):
    models = Models(make_tokenizer(tmp_path), tiny_config(), tiny_config())
    student = {"layers": 0, "width": 9, "feed_forward": 7, "kind": "cmow"}
    masked = StageToCheck(
        "student", "corpus", 32, 1, 8, mlm_probability=0.15, losses=["masked_words"], student=student
    )
    check_plan(masked, models, None)
    for plan in (masked, replace(masked, mlm_probability=None, losses=["hidden_states"])):
        with pytest.raises(UserError, match="student.kind: 'textcnn' does not learn from unlabelled.* cmow"):
            check_plan(replace(plan, student=student | {"kind": "textcnn"}), models, None)


@pytest.mark.parametrize("loss", ["weighed_candidates", "contrastive_pairs", "in_batch_negatives"])
def test_a_loss_of_one_label_is_refused_where_images_are_mixed(tmp_path, loss):
    teacher = tiny_config()
    models = Models(make_tokenizer(tmp_path), teacher, teacher)
    size = {"layers": 2, "width": 8, "feed_forward": 8, "heads": 2}
    plan = StageToCheck("student", "task", 32, 1, 8, losses=[loss], student=size, mixing={"mixup": 0.8})
    with pytest.raises(
        UserError, match=f"{loss} reads one label of an image, and mixup and cutmix give it two"
    ):
        check_plan(plan, models, None)
    check_plan(replace(plan, losses=["gold_labels"]), models, None)
