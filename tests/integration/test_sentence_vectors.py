"""A recipe of sentence vectors through the real command: made, killed, resumed, shown, exported, asked."""

import csv
import json

import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from tests.conftest import sentences

TEXT = {"data": "corpus", "training": {"epochs": 2, "mlm_probability": 0, "sentences": True}}
RECIPE = {
    "seeds": [1],
    "sentence_vectors": True,
    "baseline": "pairs",
    "main": "both",
    "base": {
        "student": {"layers": 1, "width": 8, "feed_forward": 16, "heads": 2},
        "training": {"epochs": 0, "batch_size": 8, "learning_rate": 1.0e-2, "max_length": 32},
        "losses": ["contrastive_pairs"],
    },
    "stages": {"text": TEXT | {"losses": [{"contrastive_vectors": {"queue": 20}}]}},
    "students": {
        "pairs": {"training": {"epochs": 2}},
        "vectors": {"student": {"init": "text"}},
        "both": {"student": {"init": "text"}, "training": {"epochs": 2}},
    },
}
GIVEN = ("name=sentences.yaml", "task=pairs", "data=pairs.csv", "text_columns=a,b", "label_column=score",
         "reuse=false", "tuning.epochs=0")  # fmt: skip


@pytest.fixture(scope="module")
def run(place):
    (place.path / "sentences.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with (place.path / "pairs.csv").open("w") as file:
        texts = [text for text, _ in sentences(160)]
        rows = [(*texts[2 * i : 2 * i + 2], i % 6 + 0.5) for i in range(80)]
        csv.writer(file).writerows([("a", "b", "score"), *rows])
    status, output = place.run("recipe", *GIVEN, "run=sentences")
    assert status == 0, output
    return place.path / "runs/sentences-seed1"


@pytest.mark.slow
def test_killed_in_a_contrastive_stage_it_ends_in_the_same_weights_and_queue(place, run):
    place.resumes(run.name, ("text", "both"), *GIVEN, command="recipe")


def test_models_are_evaluated_as_they_are_and_the_teacher_is_not_changed(place, run):
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"teacher", "pairs", "vectors", "both"}
    given, kept = (
        load_file(path / "model.safetensors") for path in (place.path / "teacher", run / "teacher/model")
    )
    assert all(torch.equal(given[name.removeprefix("bert.")], kept[name]) for name in kept)
    weights = [load_file(run / name / "model/model.safetensors") for name in ("text", "vectors", "both")]
    name = "encoder.layer.0.output.dense.weight"
    text, vectors, both = weights[0][name], weights[1][f"bert.{name}"], weights[2][f"bert.{name}"]
    assert torch.equal(text, vectors) and not torch.equal(text, both)


def test_an_export_gives_the_vectors_whose_cosine_predict_says(place, run):
    status, output = place.run("export", f"run={run.name}", "to=exported-sentences", "onnx=true", tiny=False)
    assert status == 0 and "SentenceTransformer(" in output, output
    exported = place.path / "exported-sentences"
    texts = ("a good film", "the plot was dull and it is poor")
    pair = ("predict", "model=exported-sentences", f"text={texts[0]}", f"text_b={texts[1]}")
    status, output = place.run(*pair, tiny=False)
    assert status == 0, output
    score = float(output.splitlines()[-1].split("\t")[0])
    tokenizer, encoder = AutoTokenizer.from_pretrained(exported), AutoModel.from_pretrained(exported).eval()
    vectors = []  # what modules.json says: the encoder, the mean over its tokens, normalised
    for text in texts:
        with torch.no_grad():
            vectors.append(encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0))
    assert torch.cosine_similarity(*vectors, dim=0).item() == pytest.approx(score, abs=1e-4)
    modules = json.loads((exported / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]
    assert all((exported / module["path"]).is_dir() for module in modules)
    assert json.loads((exported / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"] is True
    assert "a distilled sentence encoder" in (exported / "README.md").read_text()
    session = onnxruntime.InferenceSession(exported / "onnx/model.onnx")
    rows = tokenizer([texts[0]], [texts[1]], return_tensors="np")
    first, second = session.run(["first_BW", "second_BW"], dict(rows))
    for found, wanted in zip((first, second), vectors, strict=True):
        assert torch.from_numpy(found[0]).allclose(wanted, atol=1e-4)


@pytest.mark.parametrize(
    "change, words",
    [
        ("sentence_vectors=false", "epochs: 0 leaves the new head untrained"),
        ("stages.text.losses=[contrastive_vectors: {queue: -1}]", "queue: -1 must be a number of vectors"),
        ("students.both.losses=[contrastive_pairs: {scale: 0}]", "scale: 0 must be a number above 0"),
        ("task=tiny", "sentence_vectors: true needs pairs of texts with scores"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(place, run, change, words):
    given = GIVEN if change != "task=tiny" else ("name=sentences.yaml", "reuse=false")
    status, output = place.run("recipe", *given, "run=wrong-sentences", change)
    assert status == 2 and words in " ".join(output.split()), output
