"""Students with a vocabulary of their own: made, resumed, given, exported."""

import csv

import pytest
import torch

SIZE = 22  # of the 25 of the teacher's 28 tokens that the text has


def test_a_student_has_fewer_tokens_and_begins_as_its_teacher_and_the_general_stage_tell(place):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    own = (
        f"architecture.vocabulary={SIZE}",
        "general.init=teacher-embeddings",
        "intermediate.projection_init=general",
        "baselines=true",
        "reuse=false",
    )
    place.kill_during("vocabulary", "intermediate", *own)
    status, output = place.run("task-distill", "run=vocabulary", *own)
    assert status == 0 and "resumed at step" in output, output
    run = place.path / "runs" / "vocabulary"
    for stage in ("general", "intermediate", "prediction", "finetuned", "finetuned_general"):
        model = run / stage / "model"
        tokenizer = AutoTokenizer.from_pretrained(model)
        assert len(tokenizer) == SIZE and tokenizer.pad_token_id == 0, stage
    assert len(AutoTokenizer.from_pretrained(run / "teacher" / "model")) == 28

    status, output = place.run("export", "run=vocabulary", "to=own-words", tiny=False)
    assert status == 0, output
    student = AutoModelForSequenceClassification.from_pretrained(place.path / "own-words").eval()
    assert student.get_input_embeddings().weight.shape[0] == SIZE
    tokenizer = AutoTokenizer.from_pretrained(place.path / "own-words")
    with open(run / "dev_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with torch.no_grad():
        logits = student(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    assert [student.config.id2label[i] for i in logits.argmax(-1).tolist()] == [
        row["distilled"] for row in rows
    ]


def test_a_general_student_begins_as_layers_of_the_teacher(place):
    from transformers import AutoModel

    status, output = place.run(
        "general-distill", "run=from-layers", "general.init=teacher-layers", f"architecture.vocabulary={SIZE}",
        "general.learning_rate=1e-12", "reuse=false",
    )  # fmt: skip
    assert status == 0, output
    made = place.path / "runs" / "from-layers"
    student, teacher = (
        AutoModel.from_pretrained(made / "general" / "model"),
        AutoModel.from_pretrained(place.path / "teacher"),
    )
    assert student.config.hidden_size == teacher.config.hidden_size
    every = teacher.config.num_hidden_layers // student.config.num_hidden_layers
    for own, taught in zip(student.encoder.layer, teacher.encoder.layer[every - 1 :: every], strict=True):
        torch.testing.assert_close(own.output.dense.weight, taught.output.dense.weight, rtol=0, atol=1e-6)
    assert student.get_input_embeddings().weight.shape[0] == SIZE


def test_a_given_student_gets_the_tasks_tokens(place):
    """Those that it lacked are made of the teacher's; killed and resumed; its projections come along."""
    from transformers import AutoModel, AutoTokenizer

    status, output = place.run("general-distill", "run=fewer", f"architecture.vocabulary={SIZE - 4}")
    assert status == 0, output
    given = ("student=run:fewer", f"architecture.vocabulary={SIZE}", "intermediate.projection_init=general",
             "baselines=true", "reuse=false")  # fmt: skip
    place.kill_during("exchanged", "intermediate", *given)
    status, output = place.run("task-distill", "run=exchanged", *given)
    assert status == 0 and "resumed at step" in output, output
    run = place.path / "runs" / "exchanged"
    for stage in ("vocabulary", "intermediate", "prediction", "finetuned", "finetuned_general"):
        assert len(AutoTokenizer.from_pretrained(run / stage / "model")) == SIZE, stage
    tables = [
        AutoModel.from_pretrained(path).get_input_embeddings().weight
        for path in (place.path / "runs/fewer/general/model", run / "vocabulary" / "model")
    ]
    assert [len(table) for table in tables] == [SIZE - 4, SIZE]
    rows = {tuple(row) for row in tables[1].tolist()}
    assert len(rows & {tuple(row) for row in tables[0].tolist()}) > SIZE // 2, "known tokens keep theirs"
    status, output = place.run("export", "run=exchanged", "to=exchanged", "onnx=false", tiny=False)
    assert status == 0, output
    card = (place.path / "exchanged" / "README.md").read_text()
    assert "began as the general student `run:fewer`" in card and "vocabulary, teacher, intermediate" in card


@pytest.mark.slow
def test_a_student_with_its_own_vocabulary_is_given_or_begins_as_teacher_layers(place):
    from transformers import AutoModel

    own = f"architecture.vocabulary={SIZE}"
    status, output = place.run("general-distill", "run=own-general", own, "reuse=false")
    assert status == 0 and f"{SIZE} of 28 tokens are kept" in output, output
    status, output = place.run("task-distill", "run=own-given", "student=run:own-general")
    assert status == 0, output
    status, output = place.run(
        "task-distill", "run=own-layers", "student=teacher-layers", "intermediate.epochs=1", own
    )
    assert status == 0, output
    for run in ("own-given", "own-layers"):
        student = AutoModel.from_pretrained(place.path / "runs" / run / "prediction" / "model")
        assert student.get_input_embeddings().weight.shape[0] == SIZE
    status, output = place.run("task-distill", "run=own-none", "architecture.vocabulary=5", "reuse=false")
    assert status == 2 and "architecture.vocabulary: 5 has no room for the 6 special tokens" in output, output
    assert "[teacher]" not in output, "the refusal comes before the teacher is tuned"


RECIPE = """\
seeds: [1]
baseline: alone
base:
  student: {init: general}
  training: {epochs: 1, batch_size: 8, max_length: 32}
stages:
  text: {data: corpus, losses: [hidden_states], training: {mlm_probability: 0}}
students:
  alone: {losses: [gold_labels]}
  taught: {student: {init: text}, losses: [soft_labels, hidden_states]}
"""


def test_students_of_a_recipe_begin_as_a_given_one_with_all_tokens_of_the_teacher(place):
    from transformers import AutoModel, AutoTokenizer

    status, output = place.run("general-distill", "run=fewer", f"architecture.vocabulary={SIZE - 4}")
    assert status == 0, output
    (place.path / "begun.yaml").write_text(RECIPE)
    status, output = place.run("recipe", "name=begun.yaml", "student=run:fewer", "reuse=false")
    assert status == 0 and "28 of 28 tokens are kept" in output, output
    run, given = place.path / "runs" / "begun-seed1", place.path / "runs" / "fewer" / "general" / "model"
    teacher = AutoTokenizer.from_pretrained(place.path / "teacher")
    assert AutoTokenizer.from_pretrained(run / "taught" / "model").get_vocab() == teacher.get_vocab()
    sizes = {
        AutoModel.from_pretrained(model).config.hidden_size for model in (given, run / "taught" / "model")
    }
    assert len(sizes) == 1
