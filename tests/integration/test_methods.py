"""Recipes with methods through the real command, on a tiny teacher: made, killed, resumed, shown, exported, asked."""

import json
import re
import runpy
import shutil

import pytest
import yaml

from tests.integration.conftest import ROOT

TRAINING = {"epochs": 2, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32}
LOSSES = ["gold_labels", {"soft_labels": {"temperature": 2.0}}]


def of_assistants(weights, reads=("large", "medium", "small")) -> dict:
    return {"method": {"assistants": {"weights": weights, "temperature": 2.0}}, "reads": list(reads)}


ASSISTANTS = {
    "seeds": [1],
    "held_out": 0.25,
    "baseline": "plain",
    "main": "evolved",
    "base": {
        "training": TRAINING,
        "student": {"layers": 1, "width": 8, "feed_forward": 16, "heads": 2},
        "losses": LOSSES,
    },
    "students": {
        "large": {"student": {"layers": 3}},
        "medium": {"student": {"layers": 2}},
        "small": {"student": {"width": 16}},
        "plain": {},
        "one": of_assistants("equal", ["medium"]),
        "random-weights": of_assistants("random", ["teacher", "large"]),
        "evolved": of_assistants("evolved"),
    },
}


@pytest.fixture(scope="module")
def assistants(place):
    (place.path / "assistants.yaml").write_text(yaml.safe_dump(ASSISTANTS, sort_keys=False))
    status, output = place.run("recipe", "name=assistants.yaml", "run=assistants", "reuse=false")
    assert status == 0, output
    return output


def test_assistants_teach_with_weights_that_are_reported(place, assistants):
    run = place.path / "runs/assistants-seed1"
    found = {
        name: json.loads((run / name / "finished.json").read_text())["scores"].get("found")
        for name in ASSISTANTS["students"]
    }
    assert found["plain"] is None and found["one"]["weight of medium"] == 1
    weights = [found["evolved"][f"weight of {name}"] for name in ("large", "medium", "small")]
    assert sum(weights) == pytest.approx(1, abs=1e-5) and min(weights) >= 0
    assert found["random-weights"].keys() >= {"weight of teacher", "weight of large"}
    summary = (place.path / "runs/assistants.md").read_text()
    assert re.search(
        r"^- evolved: weight of large 0\.\d{4}, .*accuracy of the mixture on held-out rows", summary, re.M
    )
    # The rows that are held out are in no epoch, of the teacher's tuning either.
    task = json.loads((run / "plain/stage.json").read_text())["inputs"]["task"]["identity"]
    assert task["held_out"] == [0.25, 1]
    for command in (
        ("report",),
        ("export", "to=exported-assistants", "onnx=false"),
        ("predict", "text=a good film"),
    ):
        status, output = place.run(*command[:1], "run=assistants-seed1", *command[1:], tiny=False)
        assert status == 0, output


def test_a_student_of_assistants_killed_and_resumed_is_bitwise_the_same(place, assistants):
    given = ("name=assistants.yaml", "reuse=false")
    place.resumes("assistants-seed1", ("medium", "evolved"), *given, command="recipe")


@pytest.mark.parametrize(
    "change, words",
    [
        ("held_out=0", "evolved.method.assistants.weights: evolved are fitted on rows that nothing else reads"),
        ("held_out=0.001", "held_out: 0.001 of .* training rows sets 0 aside"),
        ("students.one.reads=[nobody]", "one: reads='nobody' must be one of teacher, large, medium, small, plain"),
        ("students.plain.reads=[large]", "plain: reads=.* is for a student of the task with a method"),
        ("students.one.losses=[hidden_states]", "one.losses: assistants give no layers"),
        ("students.one.method=assistant", "one.method: 'assistant' is unknown; there are assistants"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_line_before_anything_is_trained(place, assistants, change, words):
    status, output = place.run("recipe", "name=assistants.yaml", "run=wrong-assistants", change)
    said = " ".join(output.split())
    assert status == 2 and re.search(words, said) and "Traceback" not in output, output
    assert "[teacher] starts" not in output


NGRAMS = {
    "seeds": [1],
    "unlabelled": 0.5,
    "base": {"training": TRAINING, "losses": ["soft_labels"]},
    "students": {
        "bilstm": {"student": {"kind": "bilstm", "layers": 1, "width": 8}},
        "ngrams": {
            "student": {"kind": "ngrams", "width": 8},
            "method": {"sparse_ngrams": {"ngrams": 200}},
            "with_unlabelled": True,
        },
    },
}


@pytest.fixture(scope="module")
def ngrams(place):
    (place.path / "ngrams.yaml").write_text(yaml.safe_dump(NGRAMS, sort_keys=False))
    status, output = place.run("recipe", "name=ngrams.yaml", "run=ngrams", "reuse=false")
    assert status == 0, output
    return output


def test_a_student_of_ngrams_has_its_own_tokenizer_wherever_it_is_read(place, ngrams):
    run = place.path / "runs/ngrams-seed1"
    vocabularies = [len(json.loads((run / name / "model/tokenizer.json").read_text())["model"]["vocab"])
                    for name in ("bilstm", "ngrams")]  # fmt: skip
    assert vocabularies[0] != vocabularies[1] > 10
    known = json.loads((run / "ngrams/finished.json").read_text())["scores"]["found"]["n-grams"]
    assert 150 < known <= 200
    status, output = place.run("export", "run=ngrams-seed1", "to=exported-ngrams", tiny=False)
    assert status == 0 and "import stages.distillation.students" in output and "ONNX fp32" in output, output
    text = "a good film of great warm actor"
    answers = [
        place.run("predict", of, f"text={text}", tiny=False)
        for of in ("run=ngrams-seed1", "model=exported-ngrams")
    ]
    assert answers[0] == answers[1] and answers[0][0] == 0, answers
    for command in (("report", "run=ngrams-seed1"), ("pareto", "task=tiny")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output


def test_the_models_of_a_run_are_timed_in_batches_of_a_size(place, ngrams, monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "docs/recipes/speed_by_batch.py"))
    monkeypatch.chdir(place.path)
    script["main"](**vars(script["parse"](["runs/ngrams-seed1", "16"])))
    output = capsys.readouterr().out
    assert re.search(r"^ngrams +[\d.]+ ms +[\d.]+x +[\d,]+/s +[\d.]+x$", output, re.M), output
    assert "16 rows" in output and re.search("^medians, . thread", output, re.M), output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["runs/none", "16"], "runs/none is not the directory of a finished run"),
        (["16"], "required: batch"),
    ],
)
def test_what_cannot_be_timed_is_refused_in_a_line(given, words, capsys):
    script = runpy.run_path(str(ROOT / "docs/recipes/speed_by_batch.py"))
    with pytest.raises(SystemExit, match="2"):
        script["parse"](given)
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_student_of_ngrams_killed_and_resumed_is_bitwise_the_same(place, ngrams):
    place.resumes("ngrams-seed1", ("ngrams",), "name=ngrams.yaml", "reuse=false", command="recipe")


def test_two_ranks_learn_the_same_ngrams(place, ngrams):
    """Dropout is off, so that only rounding may differ."""
    losses = []
    same = ("name=ngrams.yaml", "base.student.dropout=0", "students.ngrams.method={sparse_ngrams: {ngrams: 200, drop: 0}}",
            "tuning.dropout=0", "reuse=false")  # fmt: skip
    for ranks in (1, 2):
        for stage in ("teacher", "ngrams"):  # made again, and what was checked is not checked again
            shutil.rmtree(place.path / "runs/ngrams-of-ranks-seed1" / stage, ignore_errors=True)
        status, output = place.run("recipe", *same, "run=ngrams-of-ranks", f"job.nproc={ranks}")
        assert status == 0 and "[ngrams] starts" in output, output
        lines = place.metrics("ngrams-of-ranks-seed1")["ngrams"]
        losses.append([line["soft_labels"] for line in lines if "soft_labels" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.ngrams.method=plain", "ngrams.method: a student of kind ngrams needs a method"),
        ("students.bilstm.method=sparse_ngrams", "bilstm.kind: a bilstm does not read n-grams; give a student of ngrams"),
        ("students.ngrams.losses=[hidden_states]", "ngrams.losses.hidden_states: a ngrams has no layers"),
        ("students.ngrams.method={sparse_ngrams: {ngrams: -1}}", "method.sparse_ngrams.ngrams: -1 must be"),
    ],
)  # fmt: skip
def test_mistakes_about_ngrams_are_told_in_a_line(place, ngrams, change, words):
    status, output = place.run("recipe", "name=ngrams.yaml", "run=wrong-ngrams", change)
    assert status != 0 and re.search(words, " ".join(output.split())) and "Traceback" not in output, output


GRAIN = {
    "seeds": [1],
    "baseline": "stock",
    "base": {
        "training": TRAINING | {"epochs": 4},
        "student": {"init": "teacher-layers", "layers": 4},
        "losses": [{"soft_labels": {"temperature": 8.0}}, "hidden_states"],
    },
    "students": {
        "stock": {"method": {"grain": {"density": 0.7, "units": "feed_forward"}}},
        "grain": {"method": {"grain": {"density": 0.3, "embedding_rank": 8}}},
    },
}


@pytest.fixture(scope="module")
def grain(place):
    (place.path / "grain.yaml").write_text(yaml.safe_dump(GRAIN, sort_keys=False))
    status, output = place.run("recipe", "name=grain.yaml", "run=grain", "reuse=false")
    assert status == 0, output
    return output


def test_pruned_students_are_smaller_and_stay_so_wherever_they_are_read(place, grain):
    run = place.path / "runs/grain-seed1"
    results = json.loads((run / "results.json").read_text())
    size = {name: of["parameters"] for name, of in results.items()}
    assert size["grain"] < 0.6 * size["teacher"] and size["stock"] < size["teacher"]
    assert results["grain"]["flops"] < results["stock"]["flops"] < results["teacher"]["flops"]
    found = {name: json.loads((run / name / "finished.json").read_text())["scores"]["found"] for name in ("grain", "stock")}  # fmt: skip
    assert 0.2 < found["grain"]["density"] <= 0.3 and found["stock"]["values left"] == 1
    config = json.loads((run / "stock/model/config.json").read_text())
    assert config["model_type"] == "bert" and config["intermediate_size"] < 32
    evaluated = [json.loads(line) for line in (run / "grain/metrics.jsonl").read_text().splitlines()]
    assert [line["best"] for line in evaluated if "dev" in line][0] is False  # units are left that will go
    status, output = place.run("export", "run=grain-seed1", "to=exported-grain", tiny=False)
    assert status == 0 and "import stages.distillation.students" in output and "ONNX fp32" in output, output
    answers = [
        place.run("predict", of, "text=a good film", tiny=False)
        for of in ("run=grain-seed1", "model=exported-grain")
    ]
    assert answers[0] == answers[1] and answers[0][0] == 0, answers
    for command in (("report", "run=grain-seed1"), ("pareto", "task=tiny")):
        status, output = place.run(*command, tiny=False)
        assert status == 0, output
    assert "grain: grain" in output


@pytest.mark.slow
def test_a_pruned_student_killed_and_resumed_is_bitwise_the_same(place, grain):
    place.resumes("grain-seed1", ("grain",), "name=grain.yaml", "reuse=false", command="recipe")


@pytest.mark.parametrize(
    "change, words",
    [
        ("students.grain.method={grain: {density: 2}}", "grain.method.grain.density: 2 must be a number between"),
        ("students.grain.losses=[gold_labels]", "grain.losses: grain scores units by losses on the teacher's logits"),
        ("students.grain.student.kind=pruned_bert", "init=teacher-layers makes a student of the teacher's own kind"),
    ],
)  # fmt: skip
def test_mistakes_about_pruning_are_told_in_a_line(place, grain, change, words):
    status, output = place.run("recipe", "name=grain.yaml", "run=wrong-grain", change)
    assert status != 0 and re.search(words, " ".join(output.split())) and "Traceback" not in output, output
