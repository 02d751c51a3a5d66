"""GLUE's files and hub sets: layout, labels by name, and what is refused."""

import random

import pytest

from checkpoints.errors import UserError
from stages.tasks.readers import glue
from stages.tasks.task import find_task, load_task


def write(directory, **files):
    for name, lines in files.items():
        (directory / f"{name}.tsv").write_bytes("\n".join(lines).encode() + b"\n")
    return str(directory)


def load(name, data):
    return load_task(find_task(name, data))


@pytest.mark.parametrize("spelling", ["sts-b", "STSB", "sts_b", "STS-B"])
def test_names_in_any_spelling(spelling):
    source = find_task(spelling)
    assert source.name == "sts-b"
    assert (source.hub, source.config) == ("nyu-mll/glue", "stsb")


def test_cola_has_no_header(tmp_path):
    rows = ["gj04\t1\t\tShe left.", "gj04\t0\t*\tLeft she the."]
    task = load("cola", write(tmp_path, train=rows, dev=rows[:1]))
    assert task.splits["train"].text_a == ["She left.", "Left she the."]
    assert task.splits["train"].text_b is None
    assert task.splits["train"].labels == [1, 0]
    assert (task.labels, task.selection) == (("unacceptable", "acceptable"), "matthews")


def test_mrpc_byte_order_mark_and_literal_quotes(tmp_path):
    rows = ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"]
    rows += ['1\t1\t2\t" He said\tShe said " no', "0\t3\t4\ta\u2028b\td\r"]
    task = load("mrpc", write(tmp_path, train=rows, dev=rows))
    assert task.splits["train"].text_a == ['" He said', "a\u2028b"]
    assert task.splits["train"].text_b == ['She said " no', "d"]
    assert task.splits["train"].labels == [1, 0]
    assert (task.metrics, task.selection) == (("f1", "accuracy"), "f1")


def test_sts_b_scores(tmp_path):
    rows = ["index\tsentence1\tsentence2\tscore", "0\ta\tb\t5.000", "1\tc\td\t0.4"]
    task = load("sts-b", write(tmp_path, train=rows, dev=rows))
    assert task.labels is None
    assert task.splits["dev"].labels == [5.0, 0.4]
    rows[2] = "1\tc\td\tnan"
    write(tmp_path, dev=rows)
    with pytest.raises(UserError, match=r"dev.tsv, line 3: score 'nan' is not a finite number"):
        load("sts-b", str(tmp_path))


def test_qqp_skips_short_rows(tmp_path, caplog):
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta\tb\t1", "1\t1\t2\ta"]
    task = load("qqp", write(tmp_path, train=rows, dev=rows))
    assert task.splits["train"].labels == [1]
    assert "1 rows with missing columns skipped" in caplog.text


def test_short_rows_elsewhere_are_refused(tmp_path):
    rows = ["index\tsentence1\tsentence2\tlabel", "0\ta"]
    with pytest.raises(UserError, match=r"train.tsv, line 2: 2 fields, needed are 4"):
        load("rte", write(tmp_path, train=rows, dev=rows))


def test_mnli_labels_by_name_in_any_order(tmp_path, caplog):
    names = ["contradiction", "entailment", "neutral"]
    rows = [f"{n}\tpremise {n}\tclaim {n}\t{name}\t{name}" for n, name in enumerate(names)]
    rows.append("3\tp\tc\tneutral\t-")
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label"
    expected = {"premise 0": 2, "premise 1": 0, "premise 2": 1}
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        files = dict.fromkeys(("train", "dev_matched", "dev_mismatched"), [header, *rows])
        task = load("mnli", write(tmp_path, **files))
        assert task.labels == ("entailment", "neutral", "contradiction")
        for split in task.splits.values():
            assert dict(zip(split.text_a, split.labels, strict=True)) == expected
        assert set(task.splits) == {"train", "dev", "dev_mismatched"}
    assert "1 rows without a gold label skipped" in caplog.text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0\ta\tb\tmaybe", r"train.tsv, line 2: unknown label 'maybe'; known are entailment, not_entailment"),
        ("0\ta\tb\t1", r"unknown label '1'"),
        ("0\ta\0\tb\tentailment", r"line 2 holds a NUL"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, line, message):
    rows = ["index\tsentence1\tsentence2\tlabel", line]
    with pytest.raises(UserError, match=message):
        load("rte", write(tmp_path, train=rows, dev=rows))


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"data: no file .*train.tsv; give rte's directory"):
        find_task("rte", str(tmp_path))
    data = write(tmp_path, train=["index\tpremise\tlabel"], dev=["a"])
    with pytest.raises(UserError, match=r"no column 'sentence1'; its columns are index, premise, label"):
        load("rte", data)
    write(tmp_path, train=["index\tsentence1\tsentence2\tlabel"])
    with pytest.raises(UserError, match="no rows"):
        load("rte", data)
    (tmp_path / "train.tsv").write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\t\xff\tb\tentailment\n")
    with pytest.raises(UserError, match="line 2: not UTF-8"):
        load("rte", data)


def test_metric_must_fit():
    assert find_task("mrpc", metric="accuracy").metric == "accuracy"
    with pytest.raises(UserError, match="metric: 'pearson' does not fit"):
        find_task("mrpc", metric="pearson")


def hub(monkeypatch, names, **splits):
    datasets = pytest.importorskip("datasets")
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("float32")
    value = datasets.Value("string")
    features = datasets.Features({"premise": value, "hypothesis": value, "label": kind})
    if not names:
        features = datasets.Features({"sentence1": value, "sentence2": value, "label": kind})
    sets = {}
    for name, labels in splits.items():
        texts = [f"text {n}" for n in range(len(labels))]
        columns = dict(zip(features, (texts, texts, labels), strict=True))
        sets[name] = datasets.Dataset.from_dict(columns, features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: sets)


def test_hub_labels_by_name(monkeypatch):
    names = ["contradiction", "entailment", "neutral"]
    labels = [0, 1, 2, -1]
    hub(monkeypatch, names, train=labels, validation_matched=labels, validation_mismatched=[2])
    task = load("mnli", "")
    assert task.splits["train"].labels == [2, 0, 1]
    assert task.splits["dev_mismatched"].labels == [1]
    hub(monkeypatch, ["yes", "no", "perhaps"], train=labels, validation_matched=labels)
    with pytest.raises(UserError, match="has the labels .*'yes'.*, expected are .*'entailment'"):
        load("mnli", "")


def test_hub_hidden_test_labels_are_no_split(monkeypatch):
    hub(monkeypatch, None, train=[1.5, 5.0], validation=[0.0], test=[-1.0, -1.0])
    task = load("sts-b", "")
    assert set(task.splits) == {"train", "dev"}
    assert task.splits["train"].labels == [1.5, 5.0]


def test_no_hub_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="nyu-mll/glue.*Couldn't reach it.*TSV files.*rotten-tomatoes"):
        load("mrpc", "")


def test_every_task_has_metrics_and_columns():
    assert len(glue.TASKS) == 9
    for task in glue.TASKS.values():
        assert len(task.text) == len(task.hub_text or task.text)


def test_unlabelled_test_rows_and_the_names_and_answers_of_a_submission(tmp_path):
    labelled = ["id\t1\t\tShe left."]
    data = write(tmp_path, train=labelled, dev=labelled)
    assert glue.unlabelled_files(find_task("cola", data)) == {}
    write(tmp_path, test=["index\tsentence", "7\tHe left.", '9\t"He', "8\tThey left."])
    source = find_task("cola", data)
    (name, path), *others = glue.unlabelled_files(source).items()
    assert name == "CoLA.tsv" and not others
    indices, rows = glue.read_unlabelled("cola", tmp_path / "test.tsv")
    assert (indices, rows.text_a, rows.text_b) == (["7", "9", "8"], ["He left.", '"He', "They left."], None)
    assert source.files.keys() == {"train", "dev"}  # what was trained stays as it is
    write(tmp_path, test=["index\tsentence", "7"])
    with pytest.raises(UserError, match="line 2: 1 fields, needed are 2"):
        glue.read_unlabelled("cola", tmp_path / "test.tsv")
    write(tmp_path, test=["index\ttext", "7\tx"])
    with pytest.raises(UserError, match="no column 'sentence'"):
        glue.read_unlabelled("cola", tmp_path / "test.tsv")
    assert glue.unlabelled_files(find_task("sst2")) == {}  # from the hub
    mnli = tmp_path / "MNLI"
    mnli.mkdir()
    for file in ("train", "dev_matched", "test_matched"):
        (mnli / f"{file}.tsv").write_text("")
    diagnostic = tmp_path / "diagnostic" / "diagnostic.tsv"
    diagnostic.parent.mkdir()
    diagnostic.write_text("")
    found = glue.unlabelled_files(find_task("mnli", str(mnli)))
    assert found == {"MNLI-m.tsv": str(mnli / "test_matched.tsv"), "AX.tsv": str(diagnostic)}
    answers = [
        ("rte", 1, "not_entailment"),
        ("mrpc", 1, "1"),
        ("sts-b", 5.2, "5.000"),
        ("mnli", 2, "contradiction"),
    ]
    for task, answer, written in answers:
        assert glue.written_answer(task, answer) == written


def test_the_directories_of_the_tasks(tmp_path):
    for name in ("CoLA", "STS-B", "QNLI", "notes"):
        (tmp_path / name).mkdir()
    for name in ("CoLA", "STS-B"):
        (tmp_path / name / "train.tsv").touch()
    data = str(tmp_path)
    both = {"cola": str(tmp_path / "CoLA"), "sts-b": str(tmp_path / "STS-B")}
    assert glue.task_directories(data) == both
    assert glue.task_directories(data, ["stsb"]) == {"sts-b": both["sts-b"]}
    assert glue.task_directories("", ["MRPC", "rte"]) == {"mrpc": "", "rte": ""}
    assert list(glue.task_directories("")) == list(glue.TASKS)
    for chosen, error in ((["squad"], "'squad' is not a GLUE task"), (["cola", "rte"], "no directory rte")):
        with pytest.raises(UserError, match=error):
            glue.task_directories(data, chosen)
    with pytest.raises(UserError, match="no directory cola"):
        glue.task_directories(str(tmp_path / "notes"))
