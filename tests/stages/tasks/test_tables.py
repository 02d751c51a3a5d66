"""Tables of random dialects, encodings and cells are read to exactly what was written, or refused in one line."""

import csv
import io
import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.errors import UserError
from stages.tasks.tables import open_table, read_rows
from stages.tasks.task import find_task, load_task
from stages.tasks.text import recognised

ODD = st.sampled_from(
    ["", " ", "NA", "nan", "-1", "3,5", '"', '""', "a\tb", "a,b", "a;b", "a|b", "a\nb", "a\r\nb", "\\", '\\"', "é", "’", "日本",
     "\ufeff", "\u2028", "x" * 200_000, "['a', 'b']", "=1+1", "'", "#", "sep=;"]
)  # fmt: skip
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
CELL = ODD | WORDS | st.sampled_from(["plain", "two words", "0", "1", "0.5"])
ENCODINGS = [
    "utf-8",
    "utf-8-sig",
    "utf-16",
    "utf-16-le",
    "utf-32",
    "cp1252",
    "latin-1",
    "cp1251",
    "gb18030",
    "shift_jis",
]
COLUMNS = st.lists(
    st.sampled_from(["", "id", "note", "", "x y", "größe"]), max_size=3
).map(lambda others: ["text", *others, "label"])  # fmt: skip


@st.composite
def files(draw):
    """(bytes, columns, rows, options, suffix) of a table as some program would write it."""
    columns = draw(COLUMNS)
    first = st.tuples(WORDS, *[CELL] * (len(columns) - 1)) | st.tuples(*[CELL] * len(columns))
    rows = draw(st.lists(first, min_size=1, max_size=6))
    suffix = draw(st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
    encoding = draw(st.sampled_from(ENCODINGS)) if suffix in (".csv", ".tsv") else "utf-8"
    delimiter = draw(st.sampled_from([",", ";", "\t", "|"])) if suffix == ".csv" else "\t"
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    buffer = io.StringIO()
    if suffix == ".jsonl":
        buffer.write("".join(json.dumps({str(i): c for i, c in enumerate(row)}) + "\n" for row in rows))
    elif suffix == ".json":
        json.dump([{str(i): c for i, c in enumerate(row)} for row in rows], buffer)
    else:
        end = draw(st.sampled_from(["\n", "\r\n"]))
        csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(
            [columns, *rows]
        )
    content = buffer.getvalue().encode(encoding, "replace")
    how = {}
    try:  # what is UTF-8 by chance is read as UTF-8
        chance = encoding[:3] != "utf" and not content.isascii() and bool(content.decode("utf-8"))
    except UnicodeDecodeError:
        chance = False
    if chance or draw(st.booleans()) or encoding in ("cp1251", "gb18030", "shift_jis"):
        how["encoding"] = encoding
    rows = [tuple(cell.encode(encoding, "replace").decode(encoding) for cell in row) for row in rows]
    return content, columns, rows, how, suffix


def check_table(directory, table):
    """A table is read to what was written, without rows of empty cells, or refused in one line."""
    content, columns, rows, how, suffix = table
    path = directory / f"a{suffix}"
    path.write_bytes(content)
    wanted = ("text", "label") if suffix in (".csv", ".tsv") else ()
    try:
        read = [tuple(row.values()) for _, row in open_table(path, wanted=wanted, **how).rows]
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    kept = [row for row in rows if any(row)] if suffix in (".csv", ".tsv") else rows
    assert read == kept


quick = settings(max_examples=300, deadline=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip


@quick
@given(files())
def test_random_tables(tmp_path, table):
    check_table(tmp_path, table)


@pytest.mark.slow
@settings(quick, max_examples=5_000)
@given(files())
def test_five_thousand_random_tables(tmp_path, table):
    check_table(tmp_path, table)


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8)


def check_names(directory, names):
    """Label names are read as written but for white space around them, from CSV and from JSON lines."""
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if all(re.fullmatch(r"-?(0|[1-9]\d*)(\.0+)?", name) for name in names):  # "1" and "1.0" are one class
        names = list({name.partition(".")[0]: name for name in names}.values())
    rows = [(f"text {n}", names[n % len(names)]) for n in range(10 * len(names))] if names else []
    with open(directory / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    (directory / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in rows))
    for suffix in (".csv", ".jsonl"):
        try:
            task = load_task(find_task("mine", str(directory / f"a{suffix}"), ("text",), "label"))
        except UserError as error:
            assert "\n" not in str(error)
            continue
        found = [(t, task.labels[y] if task.labels else y) for s in task.splits.values() for t, y in
                 zip(s.text_a, s.labels, strict=True)]  # fmt: skip
        expected = rows if task.labels else [(t, float(y.replace(",", "."))) for t, y in rows]
        assert sorted(found) == sorted(expected)


@quick
@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_random_label_names(tmp_path, names):
    check_names(tmp_path, names)


@pytest.mark.slow
@settings(quick, max_examples=5_000)
@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_five_thousand_random_sets_of_label_names(tmp_path, names):
    check_names(tmp_path, names)


def test_a_column_that_nobody_wants_does_not_matter(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("v1,x,x,,\nham,1,2,,\nspam,3,4,5,\n")
    assert open_table(path).columns == ["v1", "x", "x", "", ""]
    rows = [row for _, row in read_rows(path)]
    assert rows[1] == {"v1": "spam", "x": "3", "x (2)": "4", "column 4": "5", "column 5": ""}


@pytest.mark.parametrize("delimiter", ["semicolon", ";"])
def test_a_delimiter_can_be_given(tmp_path, delimiter):
    path = tmp_path / "a.csv"
    path.write_text("a,b;c,d\n1,2;3,4\n")
    assert next(read_rows(path, delimiter=delimiter))[1] == {"a,b": "1,2", "c,d": "3,4"}
    with pytest.raises(UserError, match="delimiter: 'colon' is not a separator; give comma, semicolon"):
        list(read_rows(path, delimiter="colon"))
    with pytest.raises(UserError, match="encoding: 'latin-99' is unknown"):
        list(read_rows(path, encoding="latin-99"))


@pytest.mark.parametrize(
    ("text", "encoding", "found"),
    [
        ("un très beau film d’été – déjà vu à 5 €", "cp1252", "windows-1252"),
        ("Größe für schöne Äpfel – „gut“", "cp1252", "windows-1252"),
        ("¿Qué? ¡El niño está aquí!", "latin-1", "windows-1252"),
        ("Zażółć gęślą jaźń", "cp1250", ""),
        ("Это очень хорошо", "cp1251", ""),
        ("Это очень хорошо", "koi8-r", ""),
        ("Πολύ καλή ταινία", "cp1253", ""),
        ("这部电影非常好看", "gb18030", ""),
        ("この映画はとても良かった", "shift_jis", ""),
        ("이 영화는 정말 좋았어요", "euc-kr", ""),
        ("un très beau film", "mac-roman", ""),
        ("texte déjà", "utf-16-be", "utf-16-be"),
    ],
)
def test_encodings_are_recognised_where_that_is_certain(tmp_path, text, encoding, found):
    path = tmp_path / "a.csv"
    path.write_bytes(f"text,label\n{text},1\n".encode(encoding))
    if found:
        assert recognised(path) == found
        assert next(read_rows(path))[1]["text"] == text
    else:
        with pytest.raises(UserError, match="encoding: .*line 2: not UTF-8, and its encoding is not certain"):
            recognised(path)
    assert next(read_rows(path, encoding))[1]["text"] == text


def test_what_cannot_be_opened_is_one_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a\n1\n")
    os.chmod(path, 0)
    for there in (path, tmp_path / "gone.csv", tmp_path):
        if there != path or os.geteuid():
            with pytest.raises(UserError, match="cannot be read"):
                open_table(there)
