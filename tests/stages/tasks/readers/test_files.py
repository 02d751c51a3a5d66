"""The user's own data: CSV, TSV, JSONL and task files."""

import csv
import hashlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.errors import UserError
from stages.tasks.labelled_rows import parted
from stages.tasks.tables import read_rows
from stages.tasks.task import TaskSource, find_task, load_task

ROWS = [(f"a fine text number {n}", ["bad", "good"][n % 2]) for n in range(60)]


def write_csv(path, rows=ROWS, header=("text", "label"), **options):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows([header, *rows])
    return str(path)


def load(data, text=("text",), label="label", name="my task", **options):
    return load_task(find_task(name, str(data), text, label, **options))


def pairs(split):
    return list(zip(split.text_a, split.labels, strict=True))


def test_csv_quotes_byte_order_mark_and_crlf(tmp_path):
    path = tmp_path / "reviews.csv"
    rows = '"good, ""very"" good",1\r\n"two\r\nlines",0\r\n\r\nplain,1\r\n'
    path.write_bytes(("\ufefftext,label\r\n" + rows).encode())
    write_csv(tmp_path / "dev.csv", [("other", 1), ("another", 0)])
    (tmp_path / "t.yaml").write_text("{train: reviews.csv, dev: dev.csv, text: text, label: label}")
    task = load_task(find_task(str(tmp_path / "t.yaml")))
    assert pairs(task.splits["train"]) == [('good, "very" good', 1), ("two\r\nlines", 0), ("plain", 1)]
    assert (task.name, task.labels) == ("t", ("0", "1"))


def test_identity_is_cheap_and_complete(tmp_path):
    data = write_csv(tmp_path / "My Reviews.csv")
    source = find_task("", data, ("text",), "label")
    assert source.name == "my-reviews"
    assert source.files == {"train": data}
    assert TaskSource.of(json.loads(json.dumps(source.entry))) == source
    assert find_task("sst2").entry["identity"] == {
        "reader": "glue", "version": 1, "hub": "nyu-mll/glue", "config": "sst2", "task": "sst-2",
    }  # fmt: skip


def test_held_out_dev_keeps_equal_texts_together(tmp_path):
    rows = [(f"Text  {n % 150}" if n < 150 else f"text {n % 150} ", n % 2) for n in range(300)]
    task = load(write_csv(tmp_path / "a.csv", rows))
    sides = [{" ".join(text.casefold().split()) for text in split.text_a} for split in task.splits.values()]
    assert not sides[0] & sides[1]
    assert list(task.splits) == ["train", "dev"]
    assert 10 <= len(task.splits["dev"]) <= 60
    assert sum(map(len, task.splits.values())) == 300


def test_order_of_rows_does_not_matter(tmp_path):
    rows = [(f"text {n}", n % 12) for n in range(120)]
    first = load(write_csv(tmp_path / "a.csv", rows))
    random.Random(1).shuffle(rows)
    second = load(write_csv(tmp_path / "a.csv", rows))
    assert first.labels == second.labels == tuple(str(n) for n in range(12))
    for role in ("train", "dev"):
        assert sorted(pairs(first.splits[role])) == sorted(pairs(second.splits[role]))


def test_directory_and_repeats_across_splits(tmp_path):
    write_csv(tmp_path / "train.csv", ROWS)
    write_csv(
        tmp_path / "validation.csv", [("A fine TEXT number 0", "bad"), ("new", "good"), ("held", "bad")]
    )
    write_csv(tmp_path / "test.csv", [("held", "bad"), ("a fine text number 1", "good")])
    task = load(tmp_path)
    assert {role: len(split) for role, split in task.splits.items()} == {"train": 58, "dev": 2, "test": 2}
    assert "train: 2 of 60 rows dropped, also in dev or test" in task.notes
    assert "dev: 1 of 3 rows dropped, also in test" in task.notes


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_classes_that_join_others_are_named(tmp_path, separator):
    labels = ("login", "billing", f"login{separator} billing")
    task = load(write_csv(tmp_path / "a.csv", [(f"text {n}", labels[n % 3]) for n in range(60)]))
    (note,) = (note for note in task.notes if "other classes" in note)
    assert repr(labels[2]) in note and f"label_separator='{separator}'" in note
    task = load(write_csv(tmp_path / "b.csv", [(f"text {n}", ("a, b", "c")[n % 2]) for n in range(60)]))
    assert not any("other classes" in note for note in task.notes)


def test_an_empty_cell_of_several_labels_is_told_from_none(tmp_path):
    path = tmp_path / "a.csv"
    cells = ["login", '"login, billing"', "billing", "", "[]"]
    path.write_text("text,label\n" + "".join(f"text {n},{cells[n % 5]}\n" for n in range(50)))
    with pytest.raises(UserError, match=r"is empty .* or write \[\] where a row has no label"):
        load(path, label_separator=",")
    task = load(path, label_separator=",", unfit_rows="leave_out")
    assert (0.0, 0.0) in [tuple(row) for row in task.splits["train"].labels]


def test_tsv_quotes_are_literal_and_pairs(tmp_path):
    rows = [(f'"a {n}', f'b" {n}', n % 2) for n in range(40)]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join("\t".join(map(str, row)) for row in [("p", "q", "y"), *rows]))
    task = load(path, ("p", "q"), "y")
    assert task.splits["train"].text_a[0].startswith('"a ')
    assert task.splits["train"].text_b[0].startswith('b" ')


def test_jsonl_values(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"é {n}", "label": n % 2 == 0}) + "\n" for n in range(40)))
    assert load(path).labels == ("false", "true")


@pytest.mark.parametrize(
    ("labels", "metric", "regression"),
    [
        ([1.5, 2, 3], "", True),
        ([1, 2, 3], "", False),
        ([1, 2, 3], "spearman", True),
        ([1.5, 2.5, 1.5], "accuracy", False),
        (["1.5", "y", "x"], "", False),
    ],
)
def test_type_rule(tmp_path, labels, metric, regression):
    rows = [(f"text {n}", labels[n % 3]) for n in range(60)]
    task = load(write_csv(tmp_path / "a.csv", rows), metric=metric)
    assert (task.labels is None) == regression
    assert task.selection == (metric or ("pearson" if regression else "accuracy"))
    assert {type(label) for label in task.splits["train"].labels} == {float if regression else int}


def test_task_file(tmp_path):
    write_csv(tmp_path / "a.csv", [(*row, "x") for row in ROWS], ("text", "label", "other"))
    path = tmp_path / "My_Task.yaml"
    path.write_text("train: a.csv\ntext: [text, other]\nlabel: label\nlabels: [good, bad]\nmetric: f1\n")
    task = load_task(find_task(str(path)))
    assert (task.name, task.labels, task.selection) == ("my-task", ("good", "bad"), "f1")
    assert task.splits["train"].text_b is not None
    odd = [int(text.split()[-1]) % 2 for text in task.splits["train"].text_a]
    assert task.splits["train"].labels == [1 - rest for rest in odd]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: a.csv\n", "the unknown key 'trian'; known are train, dev"),
        ("train: a.csv\ntext: text\n", "lacks the key 'label'"),
        ("train: b.csv\ntext: text\nlabel: label\n", "no file .*b.csv"),
        (
            "train: a.csv\ntext: body\nlabel: label\n",
            "text: no column 'body'; the columns of .* are 'text', 'label'",
        ),
        ("train: a.csv\ntext: text\nlabel: label\ntype: sorting\n", "type: 'sorting' is unknown"),
        (
            "train: a.csv\ntext: text\nlabel: label\nlabels: [yes, no]\n",
            "labels: .* put yes, no, true and false in quotes",
        ),
        (
            "train: a.csv\ntext: text\nlabel: label\ntype: regression\nmetric: f1\n",
            "metric: 'f1' does not fit .* pearson",
        ),
        ("train: [", "is not readable YAML"),
        (
            "train: a.csv\ntrain: b.csv\n",
            "readable YAML: line 2 has the key 'train' again; keep one of the two",
        ),
        ("- a\n", "must hold keys and values"),
    ],
)
def test_task_file_mistakes(tmp_path, text, message):
    write_csv(tmp_path / "a.csv")
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        find_task(str(tmp_path / "t.yaml"))
    assert "\n" not in str(caught.value)


def test_missing_task_file():
    with pytest.raises(UserError, match="nothing.yaml cannot be read"):
        find_task("nothing.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text,label\n", "no rows"),
        (b"", "no rows"),
        (b"text,label\na,1\n ,0\n", "a.csv, line 3: 'text' is empty"),
        (b"text,label\na,1\nb,\n", "line 3: the label 'label' is empty"),
        (b"text,label\na,1\nb\n", "line 3: 1 fields, the header has 2"),
        (b"text,label\na,1\nb,c,0\n", "line 3: 3 fields, the header has 2"),
        (b"text,label\na,1\nb\0,0\n", "line 3 holds a NUL"),
        (b'text,label\na,1\n"b\nc,0\n', "line 3: not CSV"),
        (b"text,label\na,1\n\xe9\xe8\xff,0\n", "encoding: .*line 3: not UTF-8"),
        (b"text,label\na,1\nb,1\n", "every label is '1'"),
        (b"text,text\na,1\n", "names a column twice"),
        (b"text,label\na,1\na,0\n", "2 rows of one text leave nothing to hold out as dev; give a dev file"),
        (b"text,label\na,1\nb,0\n", "every label is '1'"),
    ],
)
def test_bad_csv_is_one_line(tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "not a JSON object"),
        ('{"label": 1}', "line 2: 'text' is empty"),
        ('{"text": 3, "label": 1}', "line 2: 'text' is not a string"),
        ('{"text": "a", "label": null}', "label 'label' is empty"),
        (r'{"text": "\ud800", "label": 1}', "half a surrogate pair"),
        (r'{"text": "\u0000", "label": 1}', "NUL"),
    ],
)
def test_bad_jsonl_is_one_line(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 0}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "a.jsonl")


def test_label_only_in_dev(tmp_path):
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "dev.csv", [("x", "good"), ("y", "awful")])
    with pytest.raises(
        UserError, match="dev.csv, line 3: label 'awful' is not one of train's labels bad, good"
    ):
        load(tmp_path)


def test_truth_written_in_two_ways_is_said(tmp_path):
    labels = ["true", "false", "0", "1"] * 10
    rows = [(f"text {i}", label) for i, label in enumerate(labels)]
    notes = load(write_csv(tmp_path / "a.csv", rows)).notes
    assert any(
        "'0', '1', 'false', 'true' are different classes, though some seem to be the same" in note
        for note in notes
    )
    notes = load(write_csv(tmp_path / "b.csv", rows[:2] * 5 + rows[4:6])).notes
    assert not any("seem to be" in note for note in notes)


def test_whole_numbers_that_only_dev_has_may_be_scores(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"t{i}", f"{1000 * (i // 4)}.0") for i in range(160)])
    write_csv(tmp_path / "dev.csv", [("x", "0.0"), ("y", "70500.0")])
    with pytest.raises(
        UserError, match=r"'70500.0' is not .* \.\.\.; give metric=pearson if labels are scores; else"
    ):
        load(tmp_path)
    assert load(tmp_path, metric="pearson").kind.problem_type == "regression"


def test_names_in_any_script_stay_apart(tmp_path):
    """Runs are named after their tasks: two tasks with one name would replace each other's models."""
    data = str(write_csv(tmp_path / "train.csv"))
    for task, name in (("Отзывы", "отзывы"), ("新闻_2", "新闻-2"), ("My Task/1", "my-task-1"), ("☺", "task")):
        assert find_task(task, data, ("text",), "label").name == name


def test_places_and_columns_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="data: no file .*gone.csv"):
        load(tmp_path / "gone.csv")
    with pytest.raises(UserError, match="holds no train file"):
        load(tmp_path)
    data = write_csv(tmp_path / "train.csv")
    with pytest.raises(UserError, match="text_columns: 0 text columns; name 1 or 2: .* are 'text', 'label'"):
        load(data, ())
    with pytest.raises(UserError, match="text_columns: 'text' twice; name two different columns"):
        load(data, ("text", "text"))
    with pytest.raises(UserError, match="text_columns: no column 'body'; the columns"):
        load(data, ("body",))
    with pytest.raises(UserError, match="label_column: no column 'stars'; the columns"):
        load(data, ("text",), "stars")
    with pytest.raises(UserError, match="label_column: no label column; name it: the columns"):
        load(data, ("text",), "")
    with pytest.raises(UserError, match="label_column: .* cannot be text and label at once"):
        load(data, ("text",), "text")
    (tmp_path / "train.tsv").write_text("text\tlabel\n")
    with pytest.raises(UserError, match="holds both train.csv and train.tsv"):
        load(tmp_path)


def test_a_split_that_is_all_in_another_names_that_one(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"text {n}", n % 2) for n in range(9)])
    for name in ("dev.csv", "test.csv"):
        write_csv(tmp_path / name, [(f"other {n}", n % 2) for n in range(9)])
    with pytest.raises(UserError, match="every row of dev is also in test; give other rows"):
        load(tmp_path)


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="task: 'xyzxyz' is unknown: known are cola, "):
        find_task("xyzxyz")
    with pytest.raises(
        UserError, match="task: 'mrcp' is unknown: did you mean mrpc\\? Known are cola, .*rotten-tom"
    ):
        find_task("mrcp")


plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(plain, plain), min_size=1))
def test_csv_and_jsonl_give_back_what_was_written(tmp_path, rows):
    path = tmp_path / "a.csv"
    write_csv(path, rows, quoting=csv.QUOTE_ALL)
    assert [tuple(row.values()) for _, row in read_rows(path)] == rows
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in rows), encoding="utf-8")
    assert [tuple(row.values()) for _, row in read_rows(path)] == rows


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".csv", ".tsv", ".jsonl"]))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"text,label\n" + content)
    try:
        list(read_rows(path))
    except UserError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


def with_labels(path, labels):
    return write_csv(path, [(f"text number {n}", label) for n, label in enumerate(labels)])


NUMBERS = [f"{n / 7:.3f}" for n in range(199)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([*NUMBERS, "NA"], "line 201: label 'NA' is not a finite number, as 199 of 200 are"),
        ([*NUMBERS, "-1"], "line 201: label '-1' looks like a missing one"),
        ([*NUMBERS, "high"], "line 201: label 'high' is not a finite number"),
        ([*NUMBERS, "inf"], "line 201: label 'inf' is not a finite number"),
        ([*NUMBERS, ""], "line 201: the label 'label' is empty"),
        (["0", "1"] * 50 + ["NA"] * 3, "line 102: label 'NA' looks like a missing one .3 of 103.* others are '0', '1'.*"
         "and 2 more rows do not fit: lines 103, 104.*unfit_rows=leave_out .*labels=0,1,NA makes it a class"),
        (["yes", "no"] * 50 + ["nan"] * 60, "label 'nan' looks like a missing one"),
        (["0", "1", "2", "-1"] * 30, "label '-1' looks like a missing one"),
        (["yes", "no"] * 50 + ["-1"], "label '-1' looks like a missing one"),
        (["0", "1"] * 50 + ["-1"], "label '-1' looks like a missing one"),
        (["yes", "no", "-"] * 50, "label '-' looks like a missing one"),
        (["yes", "no"] * 50 + ["None"], "label 'None' looks like a missing one"),
        (["yes", "no"] * 50 + ["['yes', 'no']"], r"line 102: the label 'label' is several labels \(yes, no\)"),
        ([str(n) for n in range(100)], "label_column: .*100 different labels in 100 rows"),
    ],
)  # fmt: skip
def test_an_odd_cell_does_not_change_the_task(tmp_path, labels, message):
    data = with_labels(tmp_path / "a.csv", labels)
    with pytest.raises(UserError, match=message) as caught:
        load(data)
    assert "\n" not in str(caught.value)
    if "different labels" not in message:
        task = load(data, unfit_rows="leave_out")
        left = len(labels) - sum(map(len, task.splits.values()))
        assert 0 < left <= 60 and any(f"{left:,} rows left out" in note for note in task.notes)
        assert (task.labels is None) == (labels[0] == NUMBERS[0])


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["-1", "0", "1"] * 20, ("-1", "0", "1")),
        (["-1", "1"] * 20, ("-1", "1")),
        (["none", "racism", "sexism"] * 20, ("none", "racism", "sexism")),
        (["+", "-"] * 20, ("+", "-")),
        (["Yes", "yes"] * 20, ("Yes", "yes")),
        (["no-show", "no show"] * 20, ("no show", "no-show")),
        (['a, "b"', "c"] * 20, ('a, "b"', "c")),
        (["LABEL_0", "LABEL_1"] * 20, ("LABEL_0", "LABEL_1")),
        (["[1, 2", "(3)"] * 20, ("(3)", "[1, 2")),
        (["1.0", "0.0"] * 20, ("0.0", "1.0")),
        (["1.0", "0.0", "1", "0"] * 20, ("0", "1")),
        (["00", "0", "0.0"] * 20, ("0", "0.0", "00")),
        (["1.0", "1", "beta"] * 20, ("1", "1.0", "beta")),
    ],
)
def test_classes_that_look_odd_are_classes(tmp_path, labels, classes):
    assert load(with_labels(tmp_path / "a.csv", labels)).labels == classes


def test_a_declared_class_is_a_class_and_others_are_left_out(tmp_path):
    data = with_labels(tmp_path / "a.csv", ["NA", "x", "y"] * 30)
    assert load(data, labels=("y", "NA", "x")).labels == ("y", "NA", "x")
    with pytest.raises(UserError, match="label 'NA' is not one of labels, which are x, y"):
        load(data, labels=("x", "y"))
    task = load(data, labels=("x", "y"), unfit_rows="leave_out")
    assert task.labels == ("x", "y") and sum(map(len, task.splits.values())) == 60


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["train", "val", "test"], {"dev": "val", "test": "test"}),
        (["train", "valid"], {"dev": "valid"}),
        (["Train", "DEV", "Test"], {"dev": "DEV", "test": "Test"}),
        (["training", "development", "testing"], {"dev": "development", "test": "testing"}),
        (["train", "eval"], {"dev": "eval"}),
        (["train", "dev", "evaluation"], {"dev": "dev", "test": "evaluation"}),
        (["sst_train", "sst_dev", "sst_test"], {"dev": "sst_dev", "test": "sst_test"}),
        (["labeledTrainData", "unlabeledTrainData", "testData"], {"test": "testData"}),
        (["train", "valid_test", "contest", "latest"], {}),
    ],
)
def test_the_usual_names_of_splits(tmp_path, names, roles):
    for i, name in enumerate(names):
        write_csv(tmp_path / f"{name}.csv", [(f"{name} {n}", ["bad", "good"][n % 2]) for n in range(300 + i)])
    task = load(tmp_path)
    for role, name in roles.items():
        assert task.splits[role].text_a[0] == f"{name} 0"
        assert any(note.startswith(f"{role}: {name}.csv, 30") for note in task.notes)
    assert {"train", "dev"} | set(roles) == set(task.splits)
    if "dev" not in roles:
        assert any("held out, as there is no dev file" in note for note in task.notes)
    for name in set(names[1:]) - set(roles.values()):
        assert any(note.startswith("not read: ") and f"{name}.csv" in note for note in task.notes)


@pytest.mark.parametrize("rows, held_out", [(4, 1), (50, 12), (120, 30), (1000, 95)])
def test_without_dev_a_tenth_is_held_out_and_of_small_files_enough_to_choose_by(tmp_path, rows, held_out):
    write_csv(tmp_path / "all.csv", [(f"text {n}", ["bad", "good"][n // 2 % 2]) for n in range(rows)])
    task = load(tmp_path / "all.csv")
    dev, train = (set(task.splits[role].text_a) for role in ("dev", "train"))
    assert len(dev) == held_out and len(train) == rows - held_out and not dev & train
    by_hash = {
        f"text {n}" for n in range(rows)
        if int(hashlib.sha256(f"devtext {n}".encode()).hexdigest(), 16) % 10 == 0
    }  # fmt: skip
    assert by_hash <= dev and (by_hash == dev) == (rows in (4, 1000))
    (note,) = (note for note in task.notes if note.startswith("dev: "))
    assert f"{held_out:,} of {rows:,} rows of train, held out" in note
    assert ("a tenth is too few to choose a model by" in note) == (by_hash != dev)


def test_siblings_of_a_train_file_are_named(tmp_path):
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "val.csv")
    notes = load(tmp_path / "train.csv").notes
    assert (
        "not read: val.csv (a directory is read by the usual names of its files: train, dev or validation, test)"
        in notes
    )
    write_csv(tmp_path / "reviews.csv")
    assert not any("not read" in note for note in load(tmp_path / "reviews.csv").notes)


def test_which_class_f1_is_of_is_said_and_chosen(tmp_path):
    data = write_csv(tmp_path / "a.csv")
    task = load(data)
    assert task.labels == ("bad", "good")
    assert "F1 is that of the class 'good' (positive_label= chooses)" in task.notes
    task = load(data, positive_label="bad")
    assert task.labels == ("good", "bad")
    assert "F1 is that of the class 'bad' (positive_label= chooses)" in task.notes
    with pytest.raises(UserError, match="positive_label: 'worst' is not one of two classes .bad, good."):
        load(data, positive_label="worst")
    with pytest.raises(UserError, match="positive_label: 'sst-2' is not read as a table of texts"):
        find_task("sst-2", positive_label="positive")
    scores = write_csv(tmp_path / "b.csv", [(text, n / 7) for n, (text, _) in enumerate(ROWS)])
    with pytest.raises(UserError, match="positive_label: '1': scores have no positive class"):
        load(scores, positive_label="1")


def test_a_class_that_only_dev_has_is_said(tmp_path):
    held = load(write_csv(tmp_path / "b.csv")).splits["dev"].text_a
    rows = [(text, "rare" if text == held[0] else label) for text, label in ROWS]
    notes = load(write_csv(tmp_path / "a.csv", rows)).notes
    assert any(note.startswith("warning: train has no row of 'rare'") for note in notes)
    write_csv(tmp_path / "train.csv")
    write_csv(tmp_path / "dev.csv", [("x", "good"), ("y", "awful")])
    with pytest.raises(UserError, match="name all: labels=bad,good,awful"):
        load(tmp_path)
    notes = load(tmp_path, labels=("bad", "good", "awful")).notes
    assert any(note.startswith("warning: train has no row of 'awful'") for note in notes)


def test_a_test_file_without_gold_labels_is_not_used(tmp_path):
    write_csv(tmp_path / "train.csv", [(f"text number {n}", n % 2) for n in range(200)])
    for label in ("-1", "", "NA", "?"):
        write_csv(tmp_path / "test.csv", [(f"other {n}", label) for n in range(20)])
        task = load(tmp_path)
        assert set(task.splits) == {"train", "dev"}
        assert any("the test file is not used: its rows have no labels" in note for note in task.notes)
    write_csv(tmp_path / "test.csv", [(f"other {n}", "-1" if n == 3 else n % 2) for n in range(20)])
    with pytest.raises(UserError, match="test.csv, line 5: label '-1' looks like a missing one"):
        load(tmp_path)


def test_an_empty_text_is_refused_or_left_out(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [None, "", float("nan"), *(f"text {n}" for n in range(60))]
    path.write_text("".join(json.dumps({"text": t, "label": n % 2}) + "\n" for n, t in enumerate(texts)))
    with pytest.raises(UserError, match="line 1: 'text' is empty .and 2 more rows do not fit: lines 2, 3"):
        load(path)
    task = load(path, unfit_rows="leave_out")
    assert sum(map(len, task.splits.values())) == 60


def test_nothing_to_hold_out_is_told_in_a_line(tmp_path):
    with pytest.raises(UserError, match="a.csv: no rows; give a file with some"):
        parted({"train": []}, tmp_path / "a.csv", "rows", [])
