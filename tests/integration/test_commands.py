"""The commands on good and bad input: what a user sees."""

import csv
import json
import re
import zipfile

import pytest
import torch

from stages.tasks.tables import read_rows
from tests.conftest import make_encoder, make_tokenizer, sentences
from tests.integration.conftest import ROOT


def refused(place, command, *arguments, words, tiny=True):
    """The command ends with one clear line and a status that is not 0."""
    status, output = place.run(command, *arguments, tiny=tiny)
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in output, output
    for word in words:
        assert word in errors[0], output


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["task=nosuch", "data="], ["task: 'nosuch' is unknown", "mrpc"]),
        (["data=missing.csv"], ["missing.csv"]),
        (["preset=huge"], ["unknown preset 'huge'", "tinybert4"]),
        (["intermediate.speed=9"], ["unknown option 'intermediate.speed'"]),
        (["corpus=empty.txt"], ["empty.txt"]),
        (["corpus=nosuch.txt"], ["nosuch.txt"]),
        (["teacher=./nosuch"], ["nosuch", "no such directory"]),
        (["teacher=data"], ["config.json"]),
        (["run=notarun"], ["is not a run"]),
        (["text_columns=review"], ["review", "text"]),
        (["corpus=strange.txt", "run=strange"], ["[UNK]"]),
        (["architecture.layers=3", "run=odd"], ["general.layer_map", "1, 2, 4"]),
        (["prediction.max_length=500", "run=long"], ["prediction.max_length: 500", "64"]),
        (["teacher=foreign", "run=foreign"], ["classes", "cat"]),
        (["teacher=unnamed", "run=unnamed"], ["LABEL_0", "teacher_labels:"]),
        (
            ["teacher=ignorant", "run=ignorant", "teacher_labels=fresh,rotten"],
            ["does not know the task", "accept_teacher"],
        ),
        (["student=other", "run=other"], ["vocabulary"]),
    ],
    ids=lambda value: value[-1] if isinstance(value[0], str) and "=" in value[0] else "",
)
def test_bad_input_is_one_clear_line(place, arguments, words):
    from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

    path = place.path
    (path / "empty.txt").touch()
    (path / "strange.txt").write_text("zyx wvu tsr qpo\n\n" * 50)
    (path / "runs" / "notarun").mkdir(parents=True, exist_ok=True)
    (path / "runs" / "notarun" / "precious").touch()
    for name, labels in (("foreign", {0: "cat", 1: "dog"}), ("unnamed", None), ("ignorant", None)):
        if not (path / name).exists():
            arguments_of = (
                {"id2label": labels, "label2id": {v: k for k, v in labels.items()}} if labels else {}
            )
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(
                path / "teacher", num_labels=2, **arguments_of
            )
            with torch.no_grad():  # always the same answer
                model.classifier.weight.zero_()
            model.save_pretrained(path / name)
            make_tokenizer(path / name)
    if not (path / "other").exists():
        config = BertConfig(
            vocab_size=99, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
        )
        BertModel(config).save_pretrained(path / "other")
        make_tokenizer(path / "other")
    refused(place, "task-distill", *arguments, words=words)


def test_an_accepted_teacher_is_used_all_the_same(place):
    # runs after the refusal above has made the directory
    if not (place.path / "ignorant").exists():
        pytest.skip("needs the teacher that the refusal test makes")
    given = (
        "run=accepted",
        "student=teacher-layers",
        "teacher=ignorant",
        "teacher_labels=fresh,rotten",
        "accept_teacher=true",
    )
    status, output = place.run("task-distill", *given)
    assert status == 0 and "a constant answer" in output, output


def test_no_hub_is_one_line_in_seconds(place):
    refused(
        place,
        "task-distill",
        "teacher=someone/some-bert",
        "run=hub",
        words=["no such directory here, and the hub is out of reach", "local directory"],
    )
    refused(place, "task-distill", "task=mrpc", "data=", "text_columns=", "label_column=", "run=hub2",
            words=["out of reach"])  # fmt: skip


def test_a_finished_student_is_a_stock_model_with_the_same_logits(place):
    from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    status, output = place.run(
        "task-distill",
        "run=final",
        "baselines=true",
        *(f"{stage}.grid={{learning_rate: [1e-5, 1e-2]}}" for stage in ("prediction", "finetuning")),
    )
    assert status == 0 and "distilled student" in output, output
    for name in ("prediction", "finetuned"):
        assert f"is best on dev of {name}-learning_rate=" in output
        assert re.search(rf"^  {name} +not counted$", output, re.M), output
    run = place.path / "runs" / "final"
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"teacher", "finetuned", "finetuned_general", "distilled"}
    for entry in results.values():
        assert (
            0 <= entry["metric"] <= 1
            and entry["parameters"] > 0
            and entry["bytes"] > 0
            and entry["costs"]["rows_per_second"] > 0
            and 0 < entry["costs"]["latency"]["p50"] <= entry["costs"]["latency"]["p99"]
            and entry["flops"] > 0
            and entry["costs"]["peak_bytes"] > entry["bytes"] / 2
        )
        low, high = entry["intervals"]["accuracy"]
        assert low <= entry["metric"] <= high
        assert sum(map(sum, entry["confusion"])) == sum(c["rows"] for c in entry["classes"])
        assert "temperature" not in entry["calibration"]  # dev is what is reported
    student = results["distilled"]
    assert student["retained"] == student["metric"] / results["teacher"]["metric"]
    assert 0 < student["probability_loyalty"] <= 1 and len(student["differ_most"]) == 10
    status, output = place.run("report", "run=final", tiny=False)
    assert status == 0, output
    page = (run / "report.html").read_text()
    assert all(stage in page for stage in ("intermediate", "finetuned_general", "is overconfident"))
    status, output = place.run("evaluate", "run=final", tiny=False)
    assert status == 0 and max(map(len, output.splitlines())) <= 120, output
    status, output = place.run("export", "run=final", "to=exported", tiny=False)
    assert status == 0, output
    model, information = AutoModelForSequenceClassification.from_pretrained(
        place.path / "exported", output_loading_info=True
    )
    assert not information["missing_keys"] and not information["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(place.path / "exported")
    model.eval()
    with open(run / "dev_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["text", "label", "teacher", "distilled"]
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    assert [model.config.id2label[i] for i in logits.argmax(-1).tolist()] == [
        row["distilled"] for row in rows
    ]
    learned = json.loads((run / "finetuned_general-learning_rate=0.01" / "stage.json").read_text())
    made = learned["inputs"]["student"]["path"]  # another test may have made it
    _, information = AutoModel.from_pretrained(made, output_loading_info=True)
    assert not information["missing_keys"] and not information["unexpected_keys"]
    assert (place.path / "exported" / "onnx" / "model_quantized.onnx").is_file()
    given = ("run=final", f"file={run / 'dev_predictions.csv'}", "to=answered.csv")
    status, output = place.run("predict", *given, tiny=False)
    assert status == 0, output
    with open(place.path / "answered.csv", newline="") as file:
        assert all(row["predicted_label"] == row["distilled"] for row in csv.DictReader(file))
    refused(place, "export", "run=final", "to=exported", words=["exported exists"], tiny=False)
    refused(place, "evaluate", "run=nosuch", words=["there is no run 'nosuch'"], tiny=False)


def test_seeds_give_mean_and_spread(place):
    arguments = ("seeds=1 2", "run=seeds", "reuse=false")
    status, output = place.run("task-distill", *arguments)
    assert status == 0 and "over 2 seeds" in output and "std" in output, output
    assert output.count("; 1 more seed follows") == 1, output
    assert place.weights("seeds-seed1")["general"] != place.weights("seeds-seed2")["general"]


@pytest.mark.parametrize("order", ["contradiction entailment neutral", "neutral entailment contradiction"])
def test_mnli_in_glues_layout_with_a_teacher_of_either_label_order(place, order):
    """The teacher's classes are found by name: with its rows permuted, the student learns the same."""
    from transformers import AutoModelForSequenceClassification

    data = place.path / "MNLI"
    data.mkdir(exist_ok=True)
    names = ["entailment", "neutral", "contradiction"]
    head = "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2\tlabel1\tgold_label"
    for file, count in (("train", 24), ("dev_matched", 9), ("dev_mismatched", 9)):
        lines = [
            "\t".join([str(i), "0", "0", "x", *"bbpp", text, text, names[i % 3], names[i % 3]])
            for i, (text, _) in enumerate(sentences(count, count + len(file)))
        ]
        (data / f"{file}.tsv").write_text("\n".join([head, *lines]) + "\n")
    for file in ("test_matched", "test_mismatched", "diagnostic"):  # without labels, and longest rows first
        texts = sorted((text for text, _ in sentences(9, len(file))), key=len, reverse=True)
        lines = [f"{i}\t{text}\t{text}" for i, text in enumerate(texts, 100)]
        (data / f"{file}.tsv").write_text("\n".join(["index\tsentence1\tsentence2", *lines]) + "\n")
    canonical = names
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(place.path / "teacher", num_labels=3)
    places = [canonical.index(name) for name in order.split()]
    with torch.no_grad():
        model.classifier.weight.copy_(20 * model.classifier.weight[places])
    model.config.id2label = dict(enumerate(order.split()))
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    name = f"mnli-{order.split()[0]}"
    model.save_pretrained(place.path / name)
    make_tokenizer(place.path / name)
    run = f"run={name}"
    status, output = place.run(
        "task-distill", run, f"teacher={name}", "task=mnli", "data=MNLI", "accept_teacher=true",
        "text_columns=", "label_column=", "student=teacher-layers",
    )  # fmt: skip
    assert status == 0, output
    results = json.loads((place.path / "runs" / name / "results.json").read_text())
    assert "accuracy_mismatched" in results["distilled"]["scores"]
    with zipfile.ZipFile(place.path / "runs" / name / "glue_submission.zip") as archive:
        assert archive.namelist() == ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"]
        answers = [line.split("\t") for line in archive.read("MNLI-m.tsv").decode().splitlines()]
    assert answers[0] == ["index", "prediction"]
    assert [row[0] for row in answers[1:]] == [str(i) for i in range(100, 109)]
    assert {row[1] for row in answers[1:]} <= set(names)
    weights = place.weights(name)["prediction"]
    other = [
        p for p in (place.path / "runs").glob("mnli-*") if p.name != name and (p / "results.json").exists()
    ]
    for run_of_the_other_order in other:
        assert place.weights(run_of_the_other_order.name)["prediction"] == weights


def test_scores_of_pairs_from_a_task_file(place):
    """A regression: gold targets, one output, Pearson and Spearman."""
    for name, count in (("train", 30), ("test", 12)):
        texts = [text for text, _ in sentences(count, count)]
        lines = [
            f"{a},{b},{len(set(a.split()) & set(b.split())) / 4}"
            for a, b in zip(texts, texts[1:], strict=False)
        ]
        (place.path / f"pairs-{name}.csv").write_text("\n".join(["one,other,score", *lines]) + "\n")
    (place.path / "pairs.yaml").write_text(
        "train: pairs-train.csv\ntest: pairs-test.csv\ntext: [one, other]\nlabel: score\ntype: regression\n"
    )
    given = ("task=pairs.yaml", "data=", "text_columns=", "label_column=", "student=teacher-layers")
    status, output = place.run("task-distill", "run=pairs", *given)
    assert status == 0 and "pearson on test" in output, output
    results = json.loads((place.path / "runs" / "pairs" / "results.json").read_text())
    assert set(results["distilled"]["scores"]) == {"pearson", "spearman", "mae", "rmse"}
    assert "pearson_to_teacher" in results["distilled"] and "calibration" not in results["distilled"]
    assert place.run("report", "run=pairs", tiny=False)[0] == 0
    assert (
        (place.path / "runs" / "pairs" / "test_predictions.csv").read_text().startswith("text,text_b,label,")
    )


@pytest.mark.parametrize("kind", ["roberta", "electra", "distilbert"])
def test_other_kinds_of_teachers(place, kind):
    if not (place.path / kind).exists():
        make_encoder(place.path / kind, kind)
    status, output = place.run("task-distill", f"run={kind}", f"teacher={kind}")
    assert status == 0, output


def test_a_student_of_every_kth_teacher_layer_and_a_given_general_student(place):
    status, output = place.run("task-distill", "run=layers", "student=teacher-layers")
    assert status == 0 and "general" not in output.replace("general-", ""), output
    make_encoder(place.path / "general-student", layers=2, width=8, heads=2, seed=5)
    status, output = place.run("task-distill", "run=given", "student=general-student")
    assert status == 0, output


def test_make_lists_its_targets():
    import subprocess

    output = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in "setup demo general-distill task-distill augment evaluate report compare export predict serve doctor test test-all torture docs lint clean".split():
        assert f"\n{target} " in "\n" + output


def test_class_names_are_the_users_from_file_to_export(place):
    names = ["LABEL_0", "LABEL_1", "Yes", "yes", "no-show", "no show", 'a, "b"', "it's"]
    with open(place.path / "names.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(text, names[n % len(names)]) for n, (text, _) in enumerate(sentences(120))]
        csv.writer(file, delimiter=";").writerows(
            [("text", "label", "", ""), *((*row, "", "") for row in rows)]
        )
    given = ("data=names.csv", "run=names", "student=teacher-layers", "accept_teacher=true")
    status, output = place.run("task-distill", *given)
    assert status == 0, output
    assert (
        "separated by semicolon" in output
        and "8 classes in train" in output
        and re.search(r"tuning: \d+ rows x \d epochs?, [1-9][\d,]* tokens \(mean", output)
        and re.search(r"left to run: about .* TFLOP\)\n  teacher +[\d.]+ minutes\n", output)
    )
    status, output = place.run("export", "run=names", "to=names-export", tiny=False)
    assert status == 0, output
    again = json.loads((place.path / "names-export" / "config.json").read_text())
    assert sorted(again["id2label"].values()) == sorted(names)
    predictions = place.path / "runs" / "names" / "dev_predictions.csv"
    status, output = place.run("predict", "run=names", f"file={predictions}", "to=again.tsv", tiny=False)
    assert status == 0, output
    for _, row in read_rows(place.path / "again.tsv"):
        assert row["predicted_label"] == row["distilled"] and row["label"] in names


def test_a_teacher_of_another_scale_is_refused_before_any_work(place):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(place.path / "teacher", num_labels=1)
    model.config.id2label = {0: "score"}
    with torch.no_grad():
        model.classifier.bias.fill_(-50)
    model.save_pretrained(place.path / "scorer")
    make_tokenizer(place.path / "scorer")
    with open(place.path / "scores.csv", "w", newline="") as file:
        rows = [(text, n % 9 / 2) for n, (text, _) in enumerate(sentences(120))]
        csv.writer(file).writerows([("text", "label"), *rows])
    refused(place, "task-distill", "data=scores.csv", "teacher=scorer", "run=scorer",
            words=["check: accept_teacher: ", "on another scale than the labels"])  # fmt: skip
