"""LEAD through the command: dual encoders that teach and learn, killed, resumed, evaluated, asked."""

import json
import re
import shutil

import pytest
import torch
from onnxruntime import InferenceSession
from transformers import AutoModel, AutoTokenizer

from stages.distillation.models import ModelSource, load_classifier
from tests.integration.test_ranking import asked
from tests.stages.tasks.test_ranking import table

FROM = {"student": {"init": "warm"}, "reads": ["late"]}
DRAWN = {"score_distributions": {"layers": "random", "pairs": 2, "every": 2}}
RECIPE = {
    "seeds": [1],
    "tuning": {"epochs": 1},
    "base": {
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32},
        "student": {"init": "teacher-layers", "layers": 2},
        "method": {"lead": {"vectors": "mean", "scale": 20.0}},
        "losses": ["in_batch_negatives"],
    },
    "stages": {
        "warm": {"training": {"epochs": 4}},
        "late": {"student": {"layers": 4}, "method": {"lead": {"vectors": "tokens", "scale": 5.0}}},
        "along": FROM | {
            "method": {"lead": {"train_teacher": True}},
            "losses": ["in_batch_negatives", {"in_batch_negatives": {"of": "teacher"}}, "score_distributions",
                       {"score_distributions": {"reverse": True}}],
        },
    },
    "students": {
        "of-cross-encoder": {
            "student": {"init": "warm"}, "reads": ["teacher", "late"],
            "method": {"lead": {"negatives": 2, "mined": 3}}, "losses": ["in_batch_negatives", "candidate_scores"],
        },
        "words": FROM | {
            "method": {"lead": {"words": 20}}, "losses": ["in_batch_negatives", "score_distributions", DRAWN],
        },
        "lead": FROM | {"losses": ["in_batch_negatives", "score_distributions", DRAWN], "training": {"epochs": 2}},
    },
}  # fmt: skip
GIVEN = ("name=lead.yaml", "task=passages", "data=passages", "metric=map", "text_columns=question,sentence",
         "label_column=label", "reuse=false")  # fmt: skip


@pytest.fixture(scope="module")
def made(place):
    (place.path / "passages").mkdir()
    for name, count, seed in (("train", 24, 1), ("dev", 8, 2), ("test", 10, 3)):
        table(place.path / "passages" / f"{name}.tsv", asked(count, seed))
    (place.path / "lead.yaml").write_text(json.dumps(RECIPE))
    status, output = place.run("recipe", *GIVEN, "run=lead")
    assert status == 0, output
    return place.path / "runs/lead-seed1"


def test_it_learns_to_rank_and_is_asked(place, made):
    results = json.loads((made / "results.json").read_text())
    constant = json.loads((made / "evaluate/finished.json").read_text())["scores"]["constant"]
    assert results["lead"]["metric"] > constant + 0.1
    summary = (place.path / "runs/lead.md").read_text()
    measured = " +\\| ".join(f"{name}@10 of 30 in test" for name in ("MRR", "nDCG", "recall"))
    assert re.search(rf"^\| student +\| {measured} +\|$", summary, re.M)
    for name in ("late", "lead", "of-cross-encoder"):
        assert re.search(rf"^\| {name} +(\| [01]\.\d{{4}} +){{3}}\|$", summary, re.M)
    lines = [json.loads(line) for line in (made / "lead/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives", "last_layer", "random_layers"} <= lines[0].keys()
    lines = [json.loads(line) for line in (made / "along/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives_of_teacher", "last_layer_reversed"} <= lines[0].keys()
    assert not any("teacher" in path.name for path in (made / "along/model").iterdir())
    status, output = place.run("predict", "run=lead-seed1", "text=a film ?", "text_b=a good film", tiny=False)
    assert status == 0, output


def test_an_export_is_a_stock_encoder_for_sentence_transformers(place, made):
    to = place.path / "exported-lead"
    status, output = place.run("export", f"run={made.name}", f"to={to.name}", "onnx=[]", tiny=False)
    assert status == 0 and "SentenceTransformer(" in output, output
    texts = ["a film ?", "a good and warm story"]
    tokenizer = AutoTokenizer.from_pretrained(to)
    encoder, ours = (
        AutoModel.from_pretrained(to).eval(),
        load_classifier(ModelSource(str(made / "lead/model"))).eval(),
    )
    rows = tokenizer([texts[0]], [texts[1]], return_tensors="pt")
    with torch.no_grad():
        alone = [
            encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts
        ]
        score = ours(**rows).logits[0, 1].item()
    cosine = torch.cosine_similarity(*alone, dim=0).item()
    assert 20 * cosine == pytest.approx(score, abs=1e-4)
    modules = json.loads((to / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
    (logits,) = InferenceSession(to / "onnx/model.onnx").run(
        ["logits"], {n: x.numpy() for n, x in rows.items()}
    )
    assert logits[0, 1] == pytest.approx(score, abs=1e-3)
    assert "SentenceTransformer(" in (to / "README.md").read_text()
    status, output = place.run(
        "predict", f"model={to.name}", f"text={texts[0]}", f"text_b={texts[1]}", tiny=False
    )
    assert status == 0 and float(output.splitlines()[-1].split()[0]) == pytest.approx(cosine, abs=1e-4), (
        output
    )


def test_killed_it_mines_and_learns_the_same_of_a_cross_encoder(place, made):
    whole = place.weights(made.name)
    lines = [json.loads(line) for line in (made / "of-cross-encoder/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives", "candidate_scores"} <= lines[0].keys()
    for path in (made / "of-cross-encoder", *(place.path / "runs/.cache").glob("mined-*")):
        shutil.rmtree(path)
    place.kill_during(made.name, "of-cross-encoder", *GIVEN, "run=lead", command="recipe")
    status, output = place.run("recipe", *GIVEN, "run=lead")
    assert status == 0 and "[of-cross-encoder] resumes" in output, output
    assert place.weights(made.name) == whole


def test_a_student_of_words_learns_from_a_teacher_of_other_tokens(place, made):
    theirs, own = (AutoTokenizer.from_pretrained(made / name / "model") for name in ("late", "words"))
    assert len(theirs) > len(own) == 4 + 20
    assert load_classifier(ModelSource(str(made / "words/model"))).config.vocab_size == len(own)
    lines = [json.loads(line) for line in (made / "words/metrics.jsonl").read_text().splitlines()]
    assert {"in_batch_negatives", "last_layer", "random_layers"} <= lines[0].keys()


@pytest.mark.slow
def test_killed_it_draws_the_same_layers_and_ends_in_the_same_weights(place, made):
    place.resumes("lead-seed1", ("lead",), *GIVEN, command="recipe")


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.lead.reads=[]", "lead.reads: a loss reads the teacher, and there is none; name an earlier student"),
        ("students.lead.reads=[teacher]", "lead.losses: a cross-encoder has no vectors of layers to compare; take candidate_"),
        ("students.lead.losses=[gold_labels]", "lead.losses: 'gold_labels' does not work on a dual encoder; take"),
        ("base.method={lead: {vectors: max}}", "lead.vectors: 'max' must be cls or mean or tokens"),
        ("base.method={lead: {scale: 0}}", "lead.scale: 0 must be a number above 0"),
        ("base.method={lead: {negatives: 0}}", "lead.negatives: 0 must be a whole number from 1 to 100"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_trained(place, made, change, words):
    status, output = place.run("recipe", *GIVEN, "run=wrong-lead", change)
    said = " ".join(output.split())
    assert status == 2 and re.search(words, said) and "Traceback" not in output, output
    assert "[teacher] starts" not in output
