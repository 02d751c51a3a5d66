"""Files as people publish them, and what the reader makes of each: the tables in docs/files.md.

`python -m tests.stages.tasks.published_files` writes the page.
"""

import gzip
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from checkpoints.errors import UserError
from stages.tasks.kinds import LabelSets
from stages.tasks.task import Task, find_task, load_task

PAGE = Path(__file__).parents[3] / "docs" / "files.md"
HEAD = """\
# Files that were tried

Files in the forms in which people publish them: from spreadsheets, Kaggle, the hub, annotation tools and databases.
Each is read to the texts and labels that its author means, or refused in one line. The line that is shown is that of
the first file beside it; the other files give the same with their own names and values. The test
`tests/stages/tasks/test_published_files.py` compares these tables, and every value, with what happens.
"""
N = 40
TEXTS = [f"text number {n}" for n in range(N)]
NAMES = ["bad", "good"]


@dataclass
class Case:
    """A file or directory, how it is asked for, and what must come out.

    Attributes:
        what: for the tables.
        files: name -> bytes.
        rows: the (texts, label or score) of all splits together, in any order; None where it is refused.
        refused: a pattern of the message.
        said: a pattern of one of the notes.
        data: the path given, below the directory; none: its only file.
    """

    what: str
    files: dict[str, Any]
    rows: list[tuple] | None = None
    refused: str = ""
    said: str = ""
    data: str = ""
    text: tuple[str, ...] = ("text",)
    label: str = "label"
    options: dict[str, Any] = field(default_factory=dict)


def csv_of(header: str, rows: list[str], end: str = "\n", encoding: str = "utf-8") -> bytes:
    return (end.join([header, *rows]) + end).encode(encoding)


def labelled(texts: list[str] = TEXTS, names: list[str] = NAMES) -> list[tuple]:
    return [(text, names[n % len(names)]) for n, text in enumerate(texts)]


PLAIN = [f"{text},{name}" for text, name in labelled()]
POUNDS = [f"Win £{n} now – it’s free" for n in range(N)]
COMMAS = [f"so, number {n}" for n in range(N)]
QUOTED = [f'he said "{n}"' for n in range(N)]
FRAME = pd.DataFrame(labelled(), columns=["text", "label"])
SCORES = [n / 8 for n in range(N)]


def quoted(text: str, mark: str = '""') -> str:
    return '"' + text.replace('"', mark) + '"'


def parquet(frame: pd.DataFrame, path: Path, **options: Any) -> None:
    frame.to_parquet(path, **options)


def class_labels(path: Path, gap: bool = False) -> None:
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=NAMES))
    values = [-1 if gap and n == 3 else n % 2 for n in range(N)]
    datasets.Dataset.from_dict({"text": TEXTS, "label": values}, features).to_parquet(path)


def saved(path: Path, splits: bool) -> None:
    import datasets

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=NAMES))
    rows = {"text": TEXTS, "label": [n % 2 for n in range(N)]}
    whole = datasets.Dataset.from_dict(rows, features)
    if splits:
        whole = datasets.DatasetDict(train=whole.select(range(30)), validation=whole.select(range(30, N)))
    whole.save_to_disk(path)


def jsonl(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


DICTS = [{"text": text, "label": name} for text, name in labelled()]
SETS = [
    Case("Kaggle's SMS spam: Latin-1, columns `v1,v2,,,`", {"spam.csv": csv_of("v1,v2,,,", [f"{NAMES[n % 2]},{quoted(t)},,," for n, t in enumerate(POUNDS)], "\r\n", "cp1252")}, labelled(POUNDS), said="read as windows-1252", text=("v2",), label="v1"),
    Case("UCI's SMSSpamCollection: no suffix, no header", {"SMSSpamCollection": b"ham\thi\nspam\twin\n"}, refused="a table's name ends in .csv"),
    Case("UCI's SMSSpamCollection, renamed to .tsv", {"sms.tsv": b"ham\thi\nspam\twin\n"}, refused="no column 'text'.*if its first line is a row already, add a header line"),
    Case("GLUE's SST-2: tabs, literal quotes", {"train.tsv": csv_of("sentence\tlabel", [f'"{t}\t{n % 2}' for n, t in enumerate(TEXTS)])}, [('"' + t, str(n % 2)) for n, t in enumerate(TEXTS)], text=("sentence",), data="train.tsv"),
    Case("Kaggle's IMDB: quoted reviews with `<br />` and doubled quotes", {"imdb.csv": csv_of("review,sentiment", [f'{quoted(f"<br />A {q}, yes")},{NAMES[n % 2]}' for n, q in enumerate(QUOTED)])}, labelled([f"<br />A {q}, yes" for q in QUOTED]), text=("review",), label="sentiment"),
    Case("Sentiment140: six columns without a header", {"s.csv": csv_of('"0","1","Mon","NO_QUERY","me","a text"', ['"4","2","Mon","NO_QUERY","me","b"'])}, refused="no column 'text'.*add a header line"),
    Case("Kaggle's toxic comments: test.csv without labels, sample_submission.csv", {"train.csv": csv_of("id,text,label", [f"{n},{row}" for n, row in enumerate(PLAIN)]), "test.csv": b"id,text\n1,another\n", "sample_submission.csv": b"id,label\n1,good\n"}, labelled(), said="the test file is not used", data="."),
    Case("Quora's question pairs", {"q.csv": csv_of("id,qid1,qid2,question1,question2,is_duplicate", [f'{n},1,2,"{t}?","And {t}, or?",{n % 2}' for n, t in enumerate(TEXTS)])}, [(t + "?", f"And {t}, or?", str(n % 2)) for n, t in enumerate(TEXTS)], text=("question1", "question2"), label="is_duplicate"),
    Case("SNLI's JSON lines: `-` where annotators disagree", {"snli.jsonl": jsonl([{"sentence1": t, "gold_label": "-" if n == 7 else NAMES[n % 2]} for n, t in enumerate(TEXTS)])}, refused="line 8: label '-' looks like a missing one .*unfit_rows=leave_out", text=("sentence1",), label="gold_label"),
    Case("SNLI's `-` with `unfit_rows=leave_out`", {"snli.jsonl": jsonl([{"sentence1": t, "gold_label": "-" if n == 7 else NAMES[n % 2]} for n, t in enumerate(TEXTS)])}, [row for n, row in enumerate(labelled()) if n != 7], said="1 rows left out .*lines 8", text=("sentence1",), label="gold_label", options={"unfit_rows": "leave_out"}),
    Case("SNLI from the hub as CSV: -1 beside 0, 1, 2", {"snli.csv": csv_of("text,label", [f"{t},{-1 if n == 4 else n % 3}" for n, t in enumerate(TEXTS)])}, refused="line 6: label '-1' looks like a missing one"),
    Case("SNLI from the hub as Parquet with class names, -1 left out", {"snli.parquet": lambda path: class_labels(path, gap=True)}, [row for n, row in enumerate(labelled()) if n != 3], options={"unfit_rows": "leave_out"}),
    Case("sentiment as -1, 0, 1", {"s.csv": csv_of("text,label", [f"{t},{n % 3 - 1}" for n, t in enumerate(TEXTS)])}, [(t, str(n % 3 - 1)) for n, t in enumerate(TEXTS)]),
    Case("AG News: every field quoted, no header", {"train.csv": csv_of('"3","Wall St.","Short-sellers"', ['"4","Title","Text"'])}, refused="no column 'text'.*add a header line", data="train.csv"),
    Case("Parquet of the hub, classes by their names in the schema", {"yelp.parquet": class_labels}, labelled()),
    Case("the hub's layout: data/train-00000-of-00002.parquet and its like", {"data/train-00000-of-00002.parquet": lambda path: parquet(FRAME[:15], path), "data/train-00001-of-00002.parquet": lambda path: parquet(FRAME[15:30], path), "data/validation-00000-of-00001.parquet": lambda path: parquet(FRAME[30:], path)}, labelled(), said="dev: validation-00000-of-00001.parquet", data="."),
    Case("the hub's layout with a part missing", {"data/train-00000-of-00002.parquet": lambda path: parquet(FRAME, path)}, refused="1 parts of train, not 2", data="."),
    Case("GoEmotions: lists of labels, one has two", {"go.jsonl": jsonl([{"text": t, "label": ["joy", "anger"] if n == 2 else [NAMES[n % 2]]} for n, t in enumerate(TEXTS)])}, [(t, "anger, joy" if n == 2 else NAMES[n % 2]) for n, t in enumerate(TEXTS)], said="several labels a row: 4 labels"),
    Case("GoEmotions as published: no header, numbers of several labels between commas", {"train.tsv": csv_of(f"{TEXTS[0]}\t0\tid0", [f"{t}\t{'0,1' if n == 1 else n % 2}\tid{n}" for n, t in enumerate(TEXTS) if n])}, [(t, "bad, good" if n == 1 else ("bad", "good")[n % 2]) for n, t in enumerate(TEXTS)], options={"columns": ("text", "label", "id"), "label_separator": ",", "labels": ("bad", "good")}),
    Case("toxic comments: a column of 0 and 1 for each label", {"toxic.csv": csv_of("id,text,toxic,threat", [f'{n},"{t}",{n % 2},{int(n % 3 == 0)}' for n, t in enumerate(TEXTS)])}, [(t, ", ".join(name for name, holds in (("toxic", n % 2), ("threat", n % 3 == 0)) if holds)) for n, t in enumerate(TEXTS)], label="", options={"label_columns": ("toxic", "threat")}),
    Case("toxic comments, where one cell is -1", {"toxic.csv": csv_of("text,toxic,threat", [f'"{t}",{-1 if n == 4 else n % 2},{int(n % 3 == 0)}' for n, t in enumerate(TEXTS)])}, refused="line 6: label 'toxic' is '-1', not 1 or 0", label="", options={"label_columns": ("toxic", "threat")}),
    Case("lists as texts in a CSV, one label wanted (`metric=accuracy`), others left out", {"go.csv": csv_of("text,label", [f'''{t},"['joy', 'anger']"''' if n == 2 else f'''{t},['{NAMES[n % 2]}']''' for n, t in enumerate(TEXTS)])}, [row for n, row in enumerate(labelled()) if n != 2], options={"unfit_rows": "leave_out", "metric": "accuracy"}),
    Case("STS scores with one NA", {"sts.csv": csv_of("text,label", [f"{t},{'NA' if n == 9 else s}" for n, (t, s) in enumerate(zip(TEXTS, SCORES, strict=True))])}, refused="line 11: label 'NA' is not a finite number, as 39 of 40 are"),
]  # fmt: skip
SPREADSHEETS = [
    Case("Excel, German: semicolons, Windows-1252, decimal commas", {"noten.csv": csv_of("text;label", [f"schön, für {n};{str(s).replace('.', ',')}" for n, s in enumerate(SCORES)], "\r\n", "cp1252")}, [(f"schön, für {n}", s) for n, s in enumerate(SCORES)], said="windows-1252.*semicolon"),
    Case("Excel's Unicode text: UTF-16, tabs, .txt", {"book.txt": csv_of("text\tlabel", [f"{t} 日本\t{name}" for t, name in labelled()], "\r\n", "utf-16")}, [(f"{t} 日本", name) for t, name in labelled()], said="utf-16.*tab"),
    Case("Excel's CSV UTF-8 with a byte order mark", {"book.csv": csv_of("text,label", PLAIN, "\r\n", "utf-8-sig")}, labelled()),
    Case("Excel's first line `sep=;`", {"book.csv": csv_of("sep=;\r\ntext;label", [f"{t};{name}" for t, name in labelled(COMMAS)], "\r\n")}, labelled(COMMAS)),
    Case("Excel's tab-delimited text: quotes around commas", {"book.tsv": csv_of("text\tlabel", [f"{quoted(t)}\t{name}" for t, name in labelled(COMMAS)], "\r\n")}, labelled(COMMAS)),
    Case("Excel for Mac: lines end in CR", {"book.csv": csv_of("text,label", PLAIN, "\r")}, labelled()),
    Case("Excel's empty rows and columns (`,,,`) at the end", {"book.csv": csv_of("text,label,,", [row + ",," for row in PLAIN] + [",,,"] * 5, "\r\n")}, labelled()),
    Case("an Excel workbook", {"book.xlsx": b"PK\3\4"}, refused="from Excel: save as CSV UTF-8"),
    Case("Google Sheets' TSV", {"sheet.tsv": csv_of("text\tlabel", [f"{t}\t{name}" for t, name in labelled(QUOTED)], "\r\n")}, labelled(QUOTED)),
    Case("LibreOffice with all text cells quoted, semicolons", {"calc.csv": csv_of('"text";"label"', [f"{quoted(t)};{quoted(name)}" for t, name in labelled(QUOTED)])}, labelled(QUOTED), said="semicolon"),
]  # fmt: skip
LIBRARIES = [
    Case("pandas to_csv with its index", {"df.csv": lambda path: FRAME.to_csv(path)}, labelled()),
    Case("pandas to_csv(sep='\\t'): quotes doubled", {"df.tsv": lambda path: pd.DataFrame(labelled(QUOTED), columns=["text", "label"]).to_csv(path, sep="\t", index=False)}, labelled(QUOTED)),
    Case("pandas to_json: columns", {"df.json": lambda path: FRAME.to_json(path)}, labelled()),
    Case("pandas to_json(orient='records')", {"df.json": lambda path: FRAME.to_json(path, orient="records")}, labelled()),
    Case("pandas to_json(orient='records', lines=True) as .json", {"df.json": lambda path: FRAME.to_json(path, orient="records", lines=True)}, labelled()),
    Case("pandas to_json(orient='split')", {"df.json": lambda path: FRAME.to_json(path, orient="split")}, refused="neither a list of JSON objects nor one on each line"),
    Case("pandas to_parquet with its index", {"df.parquet": lambda path: parquet(FRAME, path, index=True)}, labelled()),
    Case("pandas' whole numbers beside a gap: 1.0 and 1 are one class", {"train.csv": csv_of("text,label", [f"{t},{n % 2}.0" for n, t in enumerate(TEXTS[:30])]), "val.csv": csv_of("text,label", [f"{t},{n % 2}" for n, t in enumerate(TEXTS[30:])])}, [(t, str(n % 2)) for n, t in enumerate(TEXTS)], data="."),
    Case("R's write.csv: row names, strings quoted", {"r.csv": csv_of('"","text","label"', [f'"{n}",{quoted(t)},"{name}"' for n, (t, name) in enumerate(labelled(QUOTED))])}, labelled(QUOTED)),
    Case("R's write.table: the header lacks the row names", {"r.tsv": csv_of('"text"\t"label"', ['"1"\t"a"\t"good"', '"2"\t"b"\t"bad"'])}, refused="3 fields, the header has 2"),
    Case("Spark's CSV: quotes escaped by a backslash", {"part.csv": csv_of("text,label", [f"{quoted(t, chr(92) + chr(34))},{name}" for t, name in labelled(QUOTED)])}, labelled(QUOTED)),
    Case("Postgres' COPY with pipes", {"pg.csv": csv_of("id|text|label", [f"{n}|{t}|{name}" for n, (t, name) in enumerate(labelled(COMMAS))])}, labelled(COMMAS), said="pipe"),
    Case("a space after each comma", {"s.csv": csv_of("text, label", [f"{quoted(t)}, {name}" for t, name in labelled(COMMAS)])}, labelled(COMMAS)),
    Case("`DatasetDict.save_to_disk`", {"saved": lambda path: saved(path, True)}, labelled(), said="dev: validation", data="saved"),
    Case("`Dataset.save_to_disk`", {"saved": lambda path: saved(path, False)}, labelled(), data="saved"),
]  # fmt: skip
TOOLS = [
    Case("Label Studio's CSV: one choice", {"ls.csv": csv_of("annotation_id,annotator,label,text", [f"{n},1,{name},{t}" for n, (t, name) in enumerate(labelled())])}, labelled()),
    Case("Label Studio's JSON-MIN", {"ls.json": json.dumps([{"id": n, **row} for n, row in enumerate(DICTS)]).encode()}, labelled()),
    Case("Label Studio's JSON: nested", {"ls.json": json.dumps([{"id": 1, "data": {"text": "a"}, "annotations": []}]).encode()}, refused="no column 'text'; the columns of .* are 'id', 'data', 'annotations'"),
    Case("Label Studio, several choices in a cell", {"ls.csv": csv_of("text,label", [f'{t},"{{""choices"":[""bad"",""good""]}}"' if n == 1 else f"{t},{NAMES[n % 2]}" for n, t in enumerate(TEXTS)])}, refused="line 3: the label 'label' is several labels"),
    Case("Doccano's JSON lines: a list of one label", {"d.jsonl": jsonl([{"id": n, "text": t, "label": [name]} for n, (t, name) in enumerate(labelled())])}, labelled()),
    Case("Prodigy's JSON lines: accepted choices", {"p.jsonl": jsonl([{"text": t, "accept": [name], "answer": "accept"} for t, name in labelled()])}, labelled(), label="accept"),
    Case("Prodigy's JSON lines: a label that the annotator rejected", {"p.jsonl": jsonl([{"text": t, "label": name, "answer": "reject" if n == 4 else "accept"} for n, (t, name) in enumerate(labelled())])}, [row for n, row in enumerate(labelled()) if n != 4], said="left out .1: its 'answer' is 'reject'", options={"unfit_rows": "leave_out"}),
    Case("JSON lines with an answer of their own: approve or reject", {"p.jsonl": jsonl([{"text": t, "label": name, "answer": "reject" if n == 4 else "approve"} for n, (t, name) in enumerate(labelled())])}, labelled()),
    Case("OpenAI's fine-tuning JSON lines", {"chat.jsonl": jsonl([{"messages": [{"role": "user", "content": "a"}]}])}, refused="no column 'text'; the columns of .* are 'messages'"),
    Case("fastText's `__label__`", {"ft.txt": b"__label__good a fine film\n__label__bad dull\n"}, refused="no column 'text'"),
]  # fmt: skip
ENCODINGS = [
    Case("JSON lines, gzipped", {"rows.jsonl.gz": gzip.compress(jsonl(DICTS))}, labelled()),
    Case("a CSV, gzipped", {"rows.csv.gz": gzip.compress(csv_of("text,label", PLAIN))}, labelled()),
    Case("a zip file", {"rows.csv.zip": b"PK\3\4"}, refused="a table's name ends in"),
    Case("Russian in Windows-1251", {"ru.csv": csv_of("text,label", [f"Очень хорошо {n},{NAMES[n % 2]}" for n in range(N)], encoding="cp1251")}, refused="encoding: .*line 2: not UTF-8.*windows-1251 .Cyrillic"),
    Case("Russian, with `encoding=windows-1251`", {"ru.csv": csv_of("text,label", [f"Очень хорошо {n},{NAMES[n % 2]}" for n in range(N)], encoding="cp1251")}, labelled([f"Очень хорошо {n}" for n in range(N)]), options={"encoding": "windows-1251"}),
    Case("Chinese in GB18030, with `encoding=gb18030`", {"zh.csv": csv_of("text,label", [f"电影，很好看 {n},{NAMES[n % 2]}" for n in range(N)], encoding="gb18030")}, labelled([f"电影，很好看 {n}" for n in range(N)]), options={"encoding": "gb18030"}),
    Case("two files in two encodings, joined", {"mix.csv": csv_of("text,label", ["é,good"]) + "é,bad\n".encode("latin-1")}, refused="line 3: not UTF-8, and other lines are"),
    Case("emoji, zero-width joiners, line separators in quotes", {"tweets.csv": csv_of("text,label", [f'"👩‍👩‍👧 {n}\u2028a\nb",{NAMES[n % 2]}' for n in range(N)])}, labelled([f"👩‍👩‍👧 {n}\u2028a\nb" for n in range(N)])),
    Case("a text of 200,000 characters", {"long.csv": csv_of("text,label", [f"{'word ' * 40_000}{n},{NAMES[n % 2]}" if n == 5 else row for n, row in enumerate(PLAIN)])}, [("word " * 40_000 + "5", "good") if n == 5 else row for n, row in enumerate(labelled())]),
]  # fmt: skip
DIRECTORIES = [
    Case("train.csv and valid.csv", {"train.csv": csv_of("text,label", PLAIN[:30]), "valid.csv": csv_of("text,label", PLAIN[30:]), "notes.csv": b"a\n"}, labelled(), said="not read: notes.csv", data="."),
    Case("Kaggle's twitter_training.csv and twitter_validation.csv, with headers", {"twitter_training.csv": csv_of("text,label", PLAIN[:30]), "twitter_validation.csv": csv_of("text,label", PLAIN[30:])}, labelled(), said="dev: twitter_validation.csv", data="."),
    Case("the hub's converted layout: train/0000.parquet, train/0001.parquet, validation/0000.parquet", {"train/0000.parquet": lambda path: parquet(FRAME[:15], path), "train/0001.parquet": lambda path: parquet(FRAME[15:30], path), "validation/0000.parquet": lambda path: parquet(FRAME[30:], path), "notes.csv": b"a\n"}, labelled(), said="not read: notes.csv", data="."),
    Case("the hub's converted layout with a part missing: 0000 and 0002", {f"train/000{n}.parquet": lambda path, n=n: parquet(FRAME[n * 10 : n * 10 + 20], path) for n in (0, 2)}, refused="holds both 0000.parquet and 0002.parquet; keep one", data="."),
    Case("the same rows twice: train/0000.parquet, train/0000.csv", {"train/0000.parquet": lambda path: parquet(FRAME, path), "train/0000.csv": csv_of("text,label", PLAIN)}, refused="holds both 0000.csv and 0000.parquet; keep one", data="."),
    Case("the hub's older layout: train-00000-of-00002-5fd7cfb2a1b1f1e5.parquet", {f"data/train-0000{n}-of-00002-5fd7cfb2a1b1f1e{n}.parquet": lambda path, n=n: parquet(FRAME[n * 20 : n * 20 + 20], path) for n in range(2)}, labelled(), data="."),
    Case("folders train and dev, and what macOS and Excel leave in them", {"train/reviews.csv": csv_of("text,label", PLAIN[:30]), "dev/reviews.csv": csv_of("text,label", PLAIN[30:]), "train/._reviews.csv": b"\0\5\x16\7", "dev/~$reviews.csv": b"\5me"}, labelled(), said="dev: dev/reviews.csv, 10 rows", data="."),
    Case("a folder with train/0000.csv, train/0001.csv and train/notes.csv", {"train/0000.csv": csv_of("text,label", PLAIN), "train/0001.csv": csv_of("text,label", PLAIN), "train/notes.csv": b"a\n"}, refused="holds both 0000.csv and notes.csv; keep one", data="."),
    Case("train.csv beside a folder splits", {"splits/train.csv": csv_of("text,label", PLAIN)}, refused=r"holds no train file \(it has splits\); give a directory that holds train", data="."),
    Case("a workbook renamed to .csv", {"book.csv": b"PK\3\4 ..."}, refused="this is a zip archive or an Excel workbook"),
    Case("Parquet renamed to .csv", {"df.csv": lambda path: parquet(FRAME, path)}, refused="this is Parquet; let its name end in .parquet"),
    Case("a gzipped CSV without .gz", {"df.csv": gzip.compress(csv_of("text,label", PLAIN))}, refused="this is compressed by gzip; let its name end in .gz"),
    Case("a pointer of git-lfs", {"train.parquet": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"}, refused="a pointer of git-lfs"),
    Case("a web page saved as CSV", {"reviews.csv": b"<!DOCTYPE html>\n<html>"}, refused="this is a web page"),
]  # fmt: skip
LABELS = [
    Case("one word among 0 and 1", {"a.csv": csv_of("text,label", [*[f"{t},{n % 2}" for n, t in enumerate(TEXTS)], "one more,maybe"])}, refused="line 42: label 'maybe' looks like a slip: not a number, as nearly all of the others are; .*labels=0,1,maybe makes it a class"),
    Case("one 999 among names, left out", {"a.csv": csv_of("text,label", [*PLAIN, "one more,999"])}, labelled(), said="left out .1: label '999' looks like a slip: a number", options={"unfit_rows": "leave_out"}),
    Case("grades from -2 to 2", {"a.csv": csv_of("text,label", [f"{t},{n % 5 - 2}" for n, t in enumerate(TEXTS)])}, [(t, str(n % 5 - 2)) for n, t in enumerate(TEXTS)]),
    Case("a dash of the typesetter for a missing label", {"a.csv": csv_of("text,label", [*PLAIN, "one more,—"])}, refused="label '—' looks like a missing one"),
    Case("labels 0.0 and 1.0, given as `labels=0,1`", {"a.csv": csv_of("text,label", [f"{t},{n % 2}.0" for n, t in enumerate(TEXTS)])}, [(t, str(n % 2)) for n, t in enumerate(TEXTS)], options={"labels": ("0", "1")}),
    Case("TRUE and true", {"a.csv": csv_of("text,label", [f"{t},{('TRUE', 'true', 'false')[n % 3]}" for n, t in enumerate(TEXTS)])}, [(t, ("TRUE", "true", "false")[n % 3]) for n, t in enumerate(TEXTS)], said="warning: 'TRUE', 'true' are different classes"),
    Case("scores that are 1.125 or 1125: `1,125`", {"a.csv": csv_of("text;label", [f"{t};{1 + s:.3f}".replace(".", ",") for t, s in zip(TEXTS, SCORES, strict=True)])}, refused="a.csv, line 2: the label '1,000', and all others like it, may be 1.000 or 1000"),
    Case("one 999 among scores from 0 to 5", {"a.csv": csv_of("text,label", [*[f"{t},{s}" for t, s in zip(TEXTS, SCORES, strict=True)], "one more,999"])}, [*zip(TEXTS, SCORES, strict=True), ("one more", 999.0)], said="warning: 1 scores of (train|dev) are far from nearly all of train's .*, such as 999 in a.csv, line 42"),
    Case("scores from 0 to 5 in train, in percent in dev", {"train.csv": csv_of("text,label", [f"{t},{s}" for t, s in zip(TEXTS[:30], SCORES[:30], strict=True)]), "dev.csv": csv_of("text,label", [f"{t},{20 * s}" for t, s in zip(TEXTS[30:], SCORES[30:], strict=True)])}, [*zip(TEXTS[:30], SCORES[:30], strict=True), *((t, 20 * s) for t, s in zip(TEXTS[30:], SCORES[30:], strict=True))], said="warning: 10 scores of dev are far .*, such as 75 in dev.csv, line 2", data="."),
    Case("prices: a long tail", {"a.csv": csv_of("text,label", [f"{t},{1.1**n:.2f}" for n, t in enumerate(TEXTS)])}, [(t, float(f"{1.1**n:.2f}")) for n, t in enumerate(TEXTS)]),
    Case("`1.5;2.0` with `label_separator=;`", {"a.csv": csv_of("text,label", [f"{t},{n}.5;{n}.0" for n, t in enumerate(TEXTS)])}, refused="a.csv, line 2: label is a list of numbers that are not whole .if they are names, labels= lists them", options={"label_separator": ";"}),
    Case("probabilities of the classes as a list", {"a.jsonl": jsonl([{"text": t, "label": [n / 40, 1 - n / 40]} for n, t in enumerate(TEXTS)])}, refused="label is a list of numbers that are not whole"),
    Case("votes of three annotators as a list", {"a.jsonl": jsonl([{"text": t, "label": ["bad", "good", NAMES[n % 2]]} for n, t in enumerate(TEXTS)])}, refused="label is a list with a name twice .bad, good, bad"),
    Case("lists of 0 and 1, a fifth of them with -1", {"a.jsonl": jsonl([{"text": t, "label": [n % 2, -1 if n % 5 == 0 else 0, 1, 0]} for n, t in enumerate(TEXTS)])}, refused="label is a list with a name twice"),
    Case("texts `nan` from pandas' str()", {"a.csv": csv_of("text,label", ["nan,good", *PLAIN])}, [("nan", "good"), *labelled()], said="warning: 1 texts of a.csv look like missing ones"),
    Case("ids in the label column", {"x.csv": csv_of("text,label", [f"{t},id-{n}" for n, t in enumerate(TEXTS)])}, refused="label_column: .*40 different labels in 40 rows"),
    Case("an unclosed quote", {"x.csv": csv_of("text,label", [PLAIN[0], '"open,bad', *PLAIN[1:]])}, refused="line 3: not CSV .*fix its quotes"),
    Case("a comma in an unquoted text", {"x.csv": csv_of("text,label", ["a, b,good", *PLAIN])}, refused="line 2: 3 fields, the header has 2"),
]  # fmt: skip
GROUPS = {
    "data sets": SETS,
    "spreadsheets": SPREADSHEETS,
    "libraries and databases": LIBRARIES,
    "annotation tools": TOOLS,
    "encodings, compression, long texts": ENCODINGS,
    "directories": DIRECTORIES,
    "labels": LABELS,
}
"""What the files have in common -> them, in the order of the first table."""
CASES = [case for cases in GROUPS.values() for case in cases]


def make(case: Case, directory: Path) -> Path:
    """Write the files of a case; returns the path to give."""
    for name, content in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)
    return directory / (case.data or next(iter(case.files)))


def read(case: Case, directory: Path) -> tuple[list[tuple], tuple[str, ...]]:
    """The rows and notes of a case."""
    task = load_task(find_task("mine", str(make(case, directory)), case.text, case.label, **case.options))
    rows = []
    for split in task.splits.values():
        labels = [named(task, label) for label in split.labels]
        columns = [split.text_a, *([split.text_b] if split.text_b else []), labels]
        rows += list(zip(*columns, strict=True))
    return rows, task.notes


def named(task: Task, label: Any) -> Any:
    if isinstance(task.kind, LabelSets):
        return task.kind.shown_gold(label).replace("none", "")
    return task.labels[label] if task.labels else label


def said_of(case: Case) -> tuple[bool, str]:
    """Whether the files are read, and what is said of them; empty: nothing that matters."""
    with tempfile.TemporaryDirectory() as directory:
        try:
            _, notes = read(case, Path(directory))
        except UserError as error:
            return False, str(error).replace(f"{directory}/", "").replace(directory, "the directory")
    matters = "warning: .*classes|far from|look like|read as|not read|not used|left out"
    said = "; ".join(note for note in notes if re.search(matters, note))
    return True, re.sub(r"^train: \S+, \d+ rows, ", "", said)


def without_values(line: str) -> str:
    """What lines about files with the same fault have in common: no names and no numbers."""
    line = re.sub(r"'[^']*'|[\w-]*\.\w+|\d+", "", re.sub(r"^\S+(, line \d+)?: ", "", line))
    return re.split(r"; | \(", line)[0]


def page() -> str:
    """The page as Markdown: what is read, what is read with a line in the log, and what is refused."""
    plain: dict[str, list[str]] = {group: [] for group in GROUPS}
    lines: dict[bool, dict[str, tuple[str, list[str]]]] = {True: {}, False: {}}
    for group, cases in GROUPS.items():
        for case in cases:
            is_read, line = said_of(case)
            if line:
                shown = line if len(line) < 200 else line[:197].rsplit(" ", 1)[0] + " ..."
                lines[is_read].setdefault(without_values(line), (shown.replace("|", "\\|"), []))[1].append(
                    case.what
                )
            else:
                plain[group].append(case.what)
    return HEAD + "".join(
        f"\n## {title}\n\n| {first} | files |\n|---|---|\n"
        + "".join(f"| {name} | {'<br>'.join(files)} |\n" for name, files in rows)
        for title, first, rows in (
            ("Read", "from", plain.items()),
            ("Read, with a line in the log", "line", lines[True].values()),
            ("Refused", "line", lines[False].values()),
        )
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
