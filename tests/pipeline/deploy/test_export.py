"""The exported student: its logits are those of the trained one, in every form, and its card says what was measured."""

import csv
import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from checkpoints import store
from pipeline.cli import commands as cli
from pipeline.deploy import hub
from stages.distillation.models import ModelSource, load_classifier, load_config
from stages.distillation.task_heads import kind_of
from stages.evaluation.predict import predict
from stages.tasks.kinds import Ranking
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split
from tests.conftest import make_tokenizer, sentences, tiny_config
from tests.pipeline.report.test_report import EVIL, make_run


def make_finished(
    path: Path,
    labels: list[str] | None = None,
    pairs: bool = False,
    kind: str = "bert",
    ranking: bool = False,
) -> Path:
    """A finished run with a random student and teacher, and the rows that it reported."""
    from transformers import AutoModelForSequenceClassification

    make_run(path, labels)
    for stage, seed, sizes in (("prediction", 1, {"layers": 2, "width": 8, "heads": 2}), ("teacher", 2, {})):
        config = tiny_config(kind, **sizes)
        config.num_labels = len(labels) if labels else 1
        if labels:
            config.id2label, config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
        config.problem_type = "single_label_classification" if labels else "regression"
        config.ranking = ranking
        config.initializer_range = 0.5  # answers that differ from row to row
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config)
        shutil.rmtree(path / stage / "model", ignore_errors=True)
        with store.sealed(path / stage / "model") as directory:
            model.save_pretrained(directory)
            make_tokenizer(directory)
    spec = json.loads((path / "evaluate" / "stage.json").read_text())
    spec["inputs"] |= {"teacher": {"stage": "teacher"}, "distilled": {"stage": "prediction"}}
    spec["options"]["max_length"] = {"teacher": 24, "distilled": 24}
    (path / "evaluate" / "stage.json").write_text(json.dumps(spec))
    texts = [text for text, _ in sentences(30)]
    second = list(reversed(texts))
    with open(path / "test_predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *(["text_b"] if pairs else []), "label", "distilled"])
        for i, text in enumerate(texts):
            gold = labels[i % 2] if labels else str(i % 5)
            writer.writerow([text, *([second[i]] if pairs else []), gold, gold])
    return path


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_finished(tmp_path / "runs" / "one", ["good", EVIL])
    return tmp_path


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("pairs", [False, True])
def test_every_form_gives_the_logits_of_the_trained_student(tmp_path, monkeypatch, capsys, kind, pairs):
    import onnxruntime
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    run = make_finished(tmp_path / "runs" / "a", ["good", "bad"], pairs, kind)
    assert cli.main(["export", "run=a", "to=out"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert said.startswith("writing ONNX files; ") and max(map(len, said.splitlines()[:10])) <= 120
    assert "student, ONNX int8" in said
    out = tmp_path / "out"
    trained = AutoModelForSequenceClassification.from_pretrained(run / "prediction" / "model").eval()
    exported, information = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.model_max_length == 24
    with open(run / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [[row[name] for row in rows] for name in (("text", "text_b") if pairs else ("text",))]
    as_trained = Split(columns[0], columns[1] if pairs else None, [0] * len(rows))
    tokens = write_task_rows([as_trained], make_tokenizer(tmp_path / "tokenizer"), 24, tmp_path / "rows")
    expected = predict(trained, tokens, torch.device("cpu"))
    assert np.ptp(expected, axis=0).min() > 0.01  # answers that differ
    encoded = tokenizer(*columns, padding=True, truncation=True, return_tensors="pt")  # as a user does
    with torch.no_grad():
        np.testing.assert_allclose(exported.eval()(**encoded).logits.numpy(), expected, atol=1e-5)
    for file, tolerance in (("model.onnx", 1e-4), ("model_quantized.onnx", 1.0)):
        session = onnxruntime.InferenceSession(out / "onnx" / file)
        names = [i.name for i in session.get_inputs()]
        assert sorted(names) == sorted(encoded)
        for some in (slice(0, 1), slice(0, 30), slice(3, 9)):
            fed = {name: encoded[name][some].numpy() for name in names}
            np.testing.assert_allclose(session.run(None, fed)[0], expected[some], atol=tolerance)
    assert not list(tmp_path.glob(".writing-*"))


SMALLER = {"int8": "model_quantized", "int8_static": "model_static_quantized", "fp16": "model_fp16"}


def logits_of_files(directory: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """The logits of the ONNX files of an export, by their names."""
    import onnxruntime
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(directory)(
        texts, padding=True, truncation=True, return_tensors="np"
    )
    return {
        path.stem: onnxruntime.InferenceSession(path).run(None, dict(encoded))[0]
        for path in (directory / "onnx").iterdir()
    }


def test_smaller_formats_change_no_more_than_they_may(place, capsys):
    texts = [text for text, _ in sentences(30)]
    loose, strict = (
        ["export", "run=one", f"to={limit}", f"onnx=[{','.join(SMALLER)}]", f"max_changed={limit}"]
        for limit in (1, 0)
    )
    assert cli.main(loose) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    found = logits_of_files(Path("1"), texts)
    assert found.keys() == {"model", *SMALLER.values()} and "in fp32" not in said and "left out" not in said
    for name, tolerance in ("model_fp16", 0.05), *((SMALLER[name], 1.5) for name in ("int8", "int8_static")):
        assert 0 < np.abs(found[name] - found["model"]).max() < tolerance, name

    assert cli.main(strict) == 0, capsys.readouterr().err
    said, card = capsys.readouterr().out, Path("0/README.md").read_text().replace("\\_", "_")
    kept = logits_of_files(Path("0"), texts)
    for name, logits in kept.items():
        assert (logits.argmax(1) == kept["model"].argmax(1))[::2].all(), (
            name
        )  # the rows on which it was decided
    for title, file in (
        ("int8 ", SMALLER["int8"]),
        ("int8, static", SMALLER["int8_static"]),
        ("fp16", "model_fp16"),
    ):
        line = next(line for line in said.splitlines() if f"ONNX {title}" in line)
        assert ("left out" in line) == (file not in kept) == (f"onnx/{file}.onnx" not in card)
        changes = (found[file].argmax(1) != found["model"].argmax(1))[::2].any()
        assert changes == ("left out" in line or "in fp32" in line)
    assert "in fp32" in said or "left out" in said  # the limit was felt


def test_scores_change_in_standard_deviations():
    from pipeline.deploy.smaller import changed, fewest_in_fp32
    from stages.tasks.kinds import Classes, Scores

    expected = np.array([[0.0], [4.0], [-4.0]])
    assert changed(Scores(), expected + 1, expected) == pytest.approx(1 / expected.std())
    assert changed(Classes(("a", "b")), np.eye(2)[[0, 1, 1, 0]], np.eye(2)[[0, 1, 0, 0]]) == 0.25

    tried = []

    def measure(kept):
        tried.append(kept)
        return 0.4 - 0.1 * (2 in kept) - 0.2 * (0 in kept)

    assert fewest_in_fp32(measure, 3, 0.45) == [] and tried == [[]]
    assert fewest_in_fp32(measure, 3, 0.25) == [0]  # the one that helps most
    assert fewest_in_fp32(measure, 3, 0.15) == [0, 2] and tried[-1] == [0, 2]
    assert fewest_in_fp32(measure, 3, 0.05) is None and tried[-1] == [0, 1, 2]
    assert fewest_in_fp32(measure, 0, 0.05) is None


def test_the_card_says_what_is_known_and_escapes_it(place, capsys):
    assert cli.main(["export", "run=one", "to=out", "license=apache-2.0"]) == 0, capsys.readouterr().err
    _, head, body = Path("out/README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["license"] == "apache-2.0" and about["pipeline_tag"] == "text-classification"
    assert about["metrics"] == ["accuracy", "f1"] and "language" not in about and "datasets" not in about
    assert "<script>" not in body.replace("\\<script\\>", "") and "0.7500 (0.7000 – 0.8000)" in body
    assert "student, ONNX int8" in body and "24 tokens" in body and "No licence" not in body
    assert str(place) not in body
    code = body.split("```python\n")[1].split("```")[0].replace("path/to/this/directory", "out")
    exec(code, {})
    assert "'label'" in capsys.readouterr().out


def test_the_card_tells_of_rows_left_out_and_of_hidden_labels(place, capsys):
    path = Path("runs/one/evaluate/stage.json")
    spec = json.loads(path.read_text())
    for told, identity in ((False, {}), (True, {"rows": [40, 1], "unlabelled": [0.7, 1]})):
        spec["inputs"]["task"]["identity"] |= identity
        path.write_text(json.dumps(spec))
        assert cli.main(["export", "run=one", f"to=told-{told}", "onnx=false"]) == 0, capsys.readouterr().err
        card = Path(f"told-{told}/README.md").read_text()
        assert told == ("No more than 40 of its training rows" in card) == ("The labels of 70% of" in card)


def test_a_regression_and_no_onnx(place, capsys):
    make_finished(place / "runs" / "scores", None, pairs=True)
    assert cli.main(["export", "run=scores", "to=out"]) == 0, capsys.readouterr().err
    assert "one score" in Path("out/README.md").read_text()
    assert cli.main(["export", "run=one", "to=plain", "onnx=false"]) == 0
    assert not Path("plain/onnx").exists() and "ONNX" not in Path("plain/README.md").read_text()


def refused(capsys, words: str, *arguments: str) -> None:
    assert cli.main(["export", "run=one", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1, said
    assert not Path("out").exists() and not list(Path().glob(".writing-*"))


def test_what_cannot_be_exported_leaves_nothing_behind(place, capsys, monkeypatch):
    refused(capsys, "true or false", "to=out", "onnx=maybe")
    refused(capsys, "exists: give another", "to=runs")
    refused(capsys, "OWNER/NAME", "to=out", "push=mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    refused(capsys, "hf auth login", "to=out", "push=me/mine")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("torch.onnx.export", full)
        refused(capsys, "no space left", "to=out")
    with monkeypatch.context() as patched:
        patched.delitem(__import__("sys").modules, "pipeline.deploy.onnx_model", raising=False)
        patched.setitem(__import__("sys").modules, "onnxruntime", None)
        refused(
            capsys,
            "ONNX files need onnxruntime; export without them (onnx=false), or install it: run `",
            "to=out",
        )
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.deploy.formats.LARGEST_DIFFERENCE", 0.0)
        refused(capsys, "from PyTorch's", "to=out")
    (place / "runs" / "one" / "prediction" / "model" / "config.json").write_text("{}")
    refused(capsys, "is damaged", "to=out")


def test_push_gives_the_directory_to_the_hub(place, capsys, monkeypatch):
    did = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            did.append((name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            did.append((repo_id, sorted(p.name for p in Path(folder_path).iterdir())))

    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert cli.main(["export", "run=one", "to=out", "push=me/mine", "onnx=false"]) == 0
    assert did[0] == ("me/mine", True, True)
    assert did[1][0] == "me/mine" and {"README.md", "model.safetensors"} <= set(did[1][1])
    assert "https://hub/me/mine" in capsys.readouterr().out

    def down(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(Api, "upload_folder", down)
    with pytest.raises(Exception, match="hf upload me/mine out"):
        hub.push(Path("out"), "me/mine")


def test_a_run_of_long_texts_is_exported(place, capsys):
    path = Path("runs/one/test_predictions.csv")
    rows = list(csv.reader(path.read_text().splitlines()))
    rows[1][0] = "word " * 40_000
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert cli.main(["export", "run=one", "to=out"]) == 0, capsys.readouterr().err


def test_a_ranker_has_one_output_in_its_files_and_two_here(place, capsys):
    from onnxruntime import InferenceSession
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = make_finished(Path("runs/two"), ["wrong", "right"], pairs=True, ranking=True)
    evaluated = run / "evaluate/finished.json"
    evaluated.write_text(evaluated.read_text().replace('"kind": "classes"', '"kind": "ranking"'))
    source, out = ModelSource(str(run / "prediction/model")), Path("out")
    assert cli.main(["export", "run=two", "to=out"]) == 0, capsys.readouterr().err
    assert "CrossEncoder('out') loads it" in capsys.readouterr().out
    tokens = AutoTokenizer.from_pretrained(out)(
        ["a film", "a"], ["a good one", "the"], padding=True, return_tensors="pt"
    )
    trained = load_classifier(source).eval()(**tokens).logits.detach().diff()
    stock = AutoModelForSequenceClassification.from_pretrained(out).eval()
    torch.testing.assert_close(stock(**tokens).logits.detach(), trained)
    written = InferenceSession(out / "onnx/model.onnx").run(None, {n: x.numpy() for n, x in tokens.items()})
    torch.testing.assert_close(torch.from_numpy(written[0]), trained, atol=1e-4, rtol=0)
    for kind in (None, Ranking(("wrong", "right"))):
        again = load_classifier(ModelSource("out"), kind)
        torch.testing.assert_close(again.eval()(**tokens).logits.detach().diff(), trained)
    assert kind_of(again.config) == kind_of(load_config(ModelSource("out"))) == Ranking(("wrong", "right"))
    assert stock.config.sentence_transformers["activation_fn"].endswith(".Sigmoid")
    assert "CrossEncoder(" in (out / "README.md").read_text()
