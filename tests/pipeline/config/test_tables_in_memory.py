"""Rows in memory as files."""

import datasets
import pandas
import pytest

from checkpoints.errors import UserError
from pipeline.config.tables_in_memory import as_files
from stages.tasks.task import find_task, load_task

ROWS = [{"text": f"row {i}", "label": i % 2} for i in range(40)]


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def splits(data):
    """(text, label name) of the rows of each split, as a stage reads them."""
    task = load_task(find_task("mine", as_files(data), ("text",), "label"))
    return {
        name: [(text, task.labels[label]) for text, label in zip(split.text_a, split.labels, strict=True)]
        for name, split in task.splits.items()
    }


def test_a_path_is_itself(tmp_path):
    assert as_files("rows.csv") == "rows.csv" and as_files(tmp_path) == str(tmp_path) and as_files("") == ""


def test_tables_of_any_kind_are_the_same_rows():
    frame = pandas.DataFrame(ROWS)
    shuffled = frame.sample(frac=1, random_state=1).sort_index()  # an index of its own is no column
    expected = splits(ROWS)
    assert len(expected["train"]) + len(expected["dev"]) == 40
    for table in (frame, shuffled, datasets.Dataset.from_list(ROWS), frame[frame.label >= 0]):
        assert splits(table) == expected
    # A second call finds the file of the first one, so that its run resumes.
    assert as_files(frame) == as_files(pandas.DataFrame(ROWS)) != as_files(frame[:39])


def test_a_column_that_the_first_row_lacks_is_there():
    rows = [{key: value for key, value in row.items() if i or key == "text"} for i, row in enumerate(ROWS)]
    assert pandas.read_parquet(f"{as_files(rows)}/train.parquet").label.notna().sum() == len(ROWS) - 1


def test_splits_and_names_of_classes_are_kept():
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["dull", "fine"])}
    )
    train = datasets.Dataset.from_list(ROWS, features=features)
    given = datasets.DatasetDict(
        train=train, validation=train.select([1, 4]).map(lambda row: {"text": "new " + row["text"]})
    )
    assert splits(given)["dev"] == [("new row 1", "fine"), ("new row 4", "dull")]
    assert as_files(given) == as_files(dict(given))


@pytest.mark.parametrize(
    "data, words",
    [
        (["a text", "another"], "the train rows are of type list, no table"),
        ({"text": ["a"], "label": [1]}, "the text rows are of type list, no table"),
        ({"train": ROWS, "dev": pandas.DataFrame()}, "the dev table has no rows; leave it out"),
        (pandas.DataFrame({"text": ["a", 1]}), "column that cannot be written .*column text.* of one type"),
        (pandas.DataFrame([["a", 1]], columns=["x", "x"]), "cannot be written .Duplicate .*its own name"),
        (pandas.DataFrame(ROWS).set_index(["text", "label"]), "train table has no columns .*reset_index"),
        ([{"text": "a", "more": {}}], "the train table has a column that cannot be written"),
        (5, "the train rows are of type int"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(data, words):
    with pytest.raises(UserError, match=words):
        as_files(data)
