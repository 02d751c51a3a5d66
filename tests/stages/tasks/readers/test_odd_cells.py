"""Cells as other programs write them: read as they are meant, or refused in one line."""

import json
from datetime import date
from decimal import Decimal

import pyarrow
import pyarrow.parquet
import pytest

from checkpoints.errors import UserError
from stages.tasks.kinds import LabelSets, Scores
from stages.tasks.task import find_task, load_task
from stages.tasks.text import recognised
from tests.stages.tasks.readers.test_files import ROWS, load, write_csv

TEXTS = [text for text, _ in ROWS]


def of_labels(path, cells, **options):
    """A task whose rows have these labels, again and again."""
    rows = [{"text": text, "label": cells[i % len(cells)]} for i, text in enumerate(TEXTS)]
    file = path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load(file, **options)


@pytest.mark.parametrize("one", [1, 1.0])
def test_vectors_of_0_and_1_are_several_labels_by_place(tmp_path, one):
    vectors = [[one, 0, 0], [0, one, one], [0, 0, 0]]
    task = of_labels(tmp_path, vectors)
    assert isinstance(task.kind, LabelSets) and task.labels == ("0", "1", "2")
    assert any("labels=" in note for note in task.notes)
    assert of_labels(tmp_path, vectors, labels=["joy", "anger", "fear"]).labels == ("joy", "anger", "fear")
    with pytest.raises(UserError, match="2 names for rows of 3 zeros and ones"):
        of_labels(tmp_path, vectors, labels=["joy", "anger"])


@pytest.mark.parametrize(
    "cells",
    [
        ("['joy']", "['joy' 'fear']"),
        ('["joy"]', '["joy", "fear"]'),
        ("('joy',)", "('joy', 'fear')"),
        ("array(['joy'], dtype=object)", "array(['joy', 'fear'], dtype=object)"),
        ("[joy]", "[joy, fear]"),
    ],
)
def test_lists_as_pandas_numpy_and_people_write_them(tmp_path, cells):
    rows = [(text, cells[i % 2]) for i, text in enumerate(TEXTS)]
    task = load(write_csv(tmp_path / "a.csv", rows), metric="micro_f1")
    assert task.labels == ("fear", "joy")


def test_a_text_in_brackets_stays_a_class(tmp_path):
    assert of_labels(tmp_path, ["[unsure]", "(see note)"]).labels == ("(see note)", "[unsure]")


def test_a_separator_at_the_end_is_no_label_and_a_missing_one_is_named(tmp_path):
    assert of_labels(tmp_path, ["joy|fear|", "joy"], label_separator="|").labels == ("fear", "joy")
    with pytest.raises(UserError, match="line 2: label 'NA' looks like a missing one.*unfit_rows=leave_out"):
        of_labels(tmp_path, ["joy|fear", "NA", "fear"], label_separator="|")


def parquet(path, labels, type=None):
    values = [labels[i % len(labels)] for i in range(len(TEXTS))]
    table = pyarrow.table({"text": TEXTS, "label": pyarrow.array(values, type)})
    pyarrow.parquet.write_table(table, path / "a.parquet")
    return path / "a.parquet"


def test_cells_of_parquet(tmp_path):
    decimals = [Decimal("0.25"), Decimal("0.50"), Decimal("0.75")]
    assert isinstance(load(parquet(tmp_path, decimals, pyarrow.decimal128(5, 2))).kind, Scores)
    assert load(parquet(tmp_path, [date(2020, 1, 1), date(2021, 1, 1)])).labels == (
        "2020-01-01",
        "2021-01-01",
    )
    with pytest.raises(UserError, match="is bytes"):
        load(parquet(tmp_path, [b"bad", b"good"]))


def test_lists_of_classes_have_their_names(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.Sequence(datasets.ClassLabel(names=["joy", "anger", "fear"])),
        }
    )
    rows = {"text": TEXTS, "label": [[0], [1, 2]] * (len(TEXTS) // 2)}
    data = datasets.Dataset.from_dict(rows, features)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "a.parquet")
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert load(path).labels == ("anger", "fear", "joy")


@pytest.mark.parametrize(
    ("cells", "first"),
    [
        (("1.200,50", "1.300,25", "12"), 1200.5),
        (("1,200.50", "1,300.25", "12"), 1200.5),
        (("1,200", "1,300", "1,250.5"), 1200.0),
        (("1200,5", "1,25", "2"), 1200.5),
    ],
)
def test_numbers_with_thousands_and_decimal_commas(tmp_path, cells, first):
    rows = [(text, cells[i % 3]) for i, text in enumerate(TEXTS)]
    task = load(write_csv(tmp_path / "a.csv", rows))
    assert first in task.splits["train"].labels
    assert any("is read as" in note for note in task.notes)


@pytest.mark.parametrize("cell", ["\\N", "#REF!", "#DIV/0!", "nil", ".", "missing"])
def test_more_ways_to_say_that_there_is_none(tmp_path, cell):
    with pytest.raises(UserError, match="looks like a missing one"):
        load(write_csv(tmp_path / "a.csv", [*ROWS, ("one more", cell)]))


def test_a_header_among_the_rows_is_refused(tmp_path):
    path = write_csv(tmp_path / "a.csv", [*ROWS, ("text", "label"), ("one more", "good")])
    with pytest.raises(UserError, match="line 62: this row is the header; remove it"):
        load(path)
    with pytest.raises(UserError, match="line 1: this row is the header"):
        load(write_csv(tmp_path / "b.csv"), columns=["text", "label"])


def test_quoted_rows_under_a_plain_header_of_tabs(tmp_path):
    lines = [f'"{text}"\t"{label}"' for text, label in ROWS]
    for some in (lines, [*lines[:-1], "\t".join(ROWS[-1])]):
        (tmp_path / "a.tsv").write_text("text\tlabel\n" + "\n".join(some) + "\n")
        assert load(tmp_path / "a.tsv").labels == ("bad", "good")


def test_rows_of_json_may_lack_what_is_null(tmp_path):
    rows = [{"text": text, "label": label} for text, label in ROWS] + [{"text": "one more"}]
    for order in (rows, rows[::-1]):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, order)))
        with pytest.raises(UserError, match="'label' is empty; .*unfit_rows=leave_out"):
            load(tmp_path / "a.jsonl")
        assert load(tmp_path / "a.jsonl", unfit_rows="leave_out").labels == ("bad", "good")
    with pytest.raises(UserError, match="no other row fits either; fix the file"):
        load(write_csv(tmp_path / "b.csv", [(text, "") for text, _ in ROWS]), unfit_rows="leave_out")


def test_hints_can_be_pasted_or_are_not_given(tmp_path):
    many = [(text, f"class name number {i}") for i, (text, _) in enumerate(ROWS * 2)]
    write_csv(tmp_path / "train.csv", [*many, *(("again " + text, label) for text, label in many)])
    write_csv(tmp_path / "dev.csv", [("other", "another")])
    with pytest.raises(UserError, match="name all 121 with labels=$"):
        load(tmp_path)
    write_csv(tmp_path / "train.csv", [(text, ["True", "False"][i % 2]) for i, text in enumerate(TEXTS)])
    write_csv(tmp_path / "dev.csv", [("other", "TRUE")])
    with pytest.raises(UserError, match="train writes 'True'; write it so"):
        load(tmp_path)


def test_hungarian_is_not_taken_for_western(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nnagyon jó fiú, őr,1\n".encode("windows-1250"))
    with pytest.raises(UserError, match="its encoding is not certain"):
        recognised(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes("text,label\nÀ la forêt, où le goût est né,1\n".encode("windows-1252"))
    assert recognised(tmp_path / "b.csv") == "windows-1252"


def sentences(path, tags):
    """A word of each tag to a sentence, forty times, and one sentence of dev."""
    text = "\n\n".join("\n".join(f"w{i}{place} {tag}" for place, tag in enumerate(tags)) for i in range(40))
    (path / "train.conll").write_text(text + "\n")
    return path


def test_one_odd_tag_does_not_change_the_task(tmp_path):
    path = sentences(tmp_path, ["B-per", "I-per", "O"]) / "train.conll"
    with path.open("a") as file:
        file.write("\nx i-per\ny O\n")
    with pytest.raises(UserError, match="line 161: label 'i-per' is neither O nor B- or I-"):
        load_task(find_task("names", str(path)))


@pytest.mark.parametrize("tags", [("B-per", "E-per", "S-loc", "O"), ("B-per", "L-per", "U-loc", "O")])
def test_ends_and_whole_entities_are_read_as_iob2(tmp_path, tags):
    task = load_task(find_task("names", str(sentences(tmp_path, tags) / "train.conll")))
    assert task.labels == ("B-loc", "B-per", "I-loc", "I-per", "O")
    first = [task.labels[i] for i in task.splits["train"].labels[0]]
    assert first == ["B-per", "I-per", "B-loc", "O"]
    assert any(note.startswith("entities: ") for note in task.notes)


def test_one_cell_that_looks_like_another_form_changes_no_task(tmp_path):
    with pytest.raises(UserError, match="line 61: the label 'label' is several labels"):
        load(write_csv(tmp_path / "a.csv", [*[(t, i % 2) for i, t in enumerate(TEXTS[1:])], ("x", "[0, 1]")]))
    for odd in ("a, b", "1,5"):
        with pytest.raises(UserError, match=f"label {odd!r} is not a finite number"):
            load(write_csv(tmp_path / "b.csv", [*[(t, i / 8) for i, t in enumerate(TEXTS)], ("x", odd)]))
    odd = [*[(t, "[0, 1]" if i % 2 else "[1, 1]") for i, t in enumerate(TEXTS)], ("x", "[1, 0, 1]")]
    with pytest.raises(UserError, match="line 62: label is no list of 2 numbers"):
        load(write_csv(tmp_path / "c.csv", odd))
    assert load(write_csv(tmp_path / "c.csv", odd), unfit_rows="leave_out").labels == ("0", "1")
    joined = [(t, r"['\x' 'b']" if i % 2 else "c") for i, t in enumerate(TEXTS)]
    assert len(load(write_csv(tmp_path / "d.csv", joined)).labels) == 2


def test_tags_of_words_that_look_like_ends_stay_as_they_are(tmp_path):
    task = load_task(find_task("words", str(sentences(tmp_path, ["S-VV", "B-NN", "E-NN"]) / "train.conll")))
    assert task.labels == ("B-NN", "E-NN", "S-VV")


def test_an_odd_tag_among_ends_is_refused(tmp_path):
    path = sentences(tmp_path, ["B-per", "E-per", "S-loc", "O"]) / "train.conll"
    with path.open("a") as file:
        file.write("\nx X\ny O\n")
    with pytest.raises(UserError, match="label 'X' is neither O nor B- or I-"):
        load_task(find_task("names", str(path)))


def test_a_class_of_train_that_is_rare_in_dev_is_no_slip(tmp_path):
    for name, rare in (("train", 6), ("dev", 2)):
        labels = ["5+"] * rare + [str(n % 5) for n in range(100 - rare)]
        rows = [{"text": f"{name} text {n}", "label": label} for n, label in enumerate(labels)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load(tmp_path)
    assert "5+" in task.labels and task.splits["dev"].labels.count(task.labels.index("5+")) == 2
