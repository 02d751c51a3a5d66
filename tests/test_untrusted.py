"""What others wrote is read or refused in one line, never run, and leads nowhere else: fuzzed."""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from checkpoints import store
from checkpoints.errors import UserError
from checkpoints.fingerprint import FileHashes
from data_aug.variants import read_shard
from data_aug.word_vectors import WordVectors
from pipeline.cli.commands import main
from pipeline.config import run_options
from pipeline.config.two_stage import StageSpec
from pipeline.plan import plan, write_stage_spec
from stages.distillation.models import ModelSource, load_classifier, load_config, load_encoder, load_tokenizer
from stages.tasks.corpus import find_corpus
from stages.tasks.kinds import Classes
from stages.tasks.readers import glue
from stages.tasks.task import find_task, load_task
from tests.conftest import make_encoder
from tests.corpora import documents

ROOT = Path(__file__).parents[1]
quick = settings(
    max_examples=100, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
LINES = st.lists(
    st.lists(st.one_of(st.binary(max_size=8), st.sampled_from([b"0", b"1", b"-", b"", b'"', b"\xef\xbb\xbf", b"\0", b"5.0"])),
             max_size=7).map(b"\t".join), max_size=6).map(b"\n".join)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)  # fmt: skip


def one_line(read, *errors):
    """Run `read`; what it raises is one of `errors`, in one line. Any other exception fails the test."""
    try:
        return read()
    except (UserError, *errors) as error:
        assert str(error) and "\n" not in str(error)


@quick
@given(st.sampled_from(sorted(glue.TASKS)), st.booleans(), LINES)
def test_glues_files(tmp_path, name, headed, content):
    task = glue.TASKS[name]
    header = "\t".join(task.header or (*task.text, task.label)).encode() + b"\n"
    for file in ("train", "dev", "dev_matched", "dev_mismatched"):
        (tmp_path / f"{file}.tsv").write_bytes((header if headed and not task.header else b"") + content)
    one_line(lambda: load_task(find_task(name, str(tmp_path))))


@quick
@given(st.sampled_from([".csv", ".tsv", ".jsonl"]), st.binary(max_size=200) | LINES)
@example(".csv", b'"a\nb","a\nb"\nx,y\n')
@example(".jsonl", b'{"text": "a", "label": "\\ud800"}\n{"text": "b", "label": "c"}\n')
def test_the_users_tables_from_find_to_load(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    one_line(lambda: load_task(find_task("mine", str(path), ("text",), "label")))


@quick
@given(st.binary(max_size=200) | LINES)
def test_the_users_labels_of_words(tmp_path, content):
    path = tmp_path / "a.conll"
    path.write_bytes(content)
    one_line(lambda: load_task(find_task("mine", str(path))))


@quick
@given(st.lists(st.fixed_dictionaries({"text": JSON, "label": JSON, "other": JSON}), max_size=5))
@example([{"text": "a b", "label": [[0, 1, "x"]], "other": 1}, {"text": "c", "label": [], "other": 0}])
@example([{"text": "a b", "label": [[False, True, "x"]], "other": True}])
def test_several_labels_and_spans(tmp_path, rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for how_asked in (
        {"label_column": "label", "metric": "micro_f1"},
        {"label_column": "label", "label_separator": ","},
        {"label_columns": ("label", "other")},
        {"spans_column": "label"},
    ):
        one_line(lambda how=how_asked: load_task(find_task("mine", str(path), ("text",), **how)))


@quick
@given(st.sampled_from([("qas", "question"), ("question", "answers"), ("answers", "text"), ("answers", "answer_start")]),
       JSON, st.booleans())  # fmt: skip
@example(("answers", "text"), "a", False)
@example(("answers", "answer_start"), True, False)
def test_questions(tmp_path, change, value, of_table):
    about, what = change
    answers = [{"text": "a", "answer_start": 0, "answers": 0} | ({what: value} if about == "answers" else {})]
    asked = {"id": 1, "question": "b", "answers": answers} | ({what: value} if about == "question" else {})
    paragraphs = [
        {"context": f"a {n}", "qas": [asked | ({what: value} if about == "qas" else {})]} for n in range(9)
    ]
    path = tmp_path / ("a.jsonl" if of_table else "a.json")
    if of_table:
        cells = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
        path.write_text(
            json.dumps({"question": "b", "context": "a", "answers": cells if about == "answers" else value})
        )
    else:
        path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    one_line(lambda: load_task(find_task("mine", str(path))))


@quick
@given(st.binary(max_size=200))
def test_files_of_questions(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"data": [{"paragraphs": [' + content)
    one_line(lambda: load_task(find_task("mine", str(path))))


@quick
@given(
    st.sampled_from(["labels.csv", "train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz", "a.parquet"]),
    st.binary(max_size=60) | LINES,
)
@example("labels.csv", b"file,label\n\xc2\x80,a\n.,b\n")
@example("labels.csv", b"a\t\nb\t")
@example("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x01\x07")
def test_images_beside_their_labels(tmp_path, name, content):
    for path in tmp_path.iterdir():
        path.unlink()
    for beside in (
        ("train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz") if name.startswith("train") else ()
    ):
        (tmp_path / beside).write_bytes(b"\0\0\x08\x03\0\0\0\x01\0\0\0\x01\0\0\0\x01\xff")
    (tmp_path / "a.png").write_bytes(content)
    (tmp_path / name).write_bytes(content)
    one_line(lambda: load_task(find_task("mine", str(tmp_path))))


@quick
@given(st.sampled_from([".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet"]), st.binary(max_size=300))
@example(".jsonl", b'{"a\\nb": 1}')
@example(".txt", b"a\0b\n")
def test_corpora(tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    one_line(lambda: list(documents(find_corpus(str(path)))))


@quick
@given(st.integers(0, 2000), st.integers(0, 255))
def test_parquet_with_a_byte_changed(tmp_path, place, byte):
    import pyarrow.parquet

    path = tmp_path / "c.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["a text", None, "another"], "n": [1, 2, 3]}), path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(content)
    one_line(lambda: list(documents(find_corpus(str(path)))))


TAGS = st.sampled_from(
    ["", "!!int ", "!!float ", "!!bool ", "!!timestamp ", "!!binary ", "!!set ", "!!python/name:os.system "]
)
KEYS = st.sampled_from(["task", "job", "general.epochs", "__class__", "__class__.seed", "tasks", "layer_map",
                        "general", "grid", "prediction", "epochs", "run", "text_columns"])  # fmt: skip


@quick
@given(st.one_of(
    st.binary(max_size=60), st.text(max_size=60).map(str.encode),
    st.dictionaries(KEYS, st.recursive(JSON, lambda v: st.dictionaries(KEYS, v, max_size=3)), max_size=3)
    .map(lambda value: json.dumps(value).encode()),
    st.tuples(KEYS, TAGS, st.text(max_size=12)).map(lambda t: f"{t[0]}: {t[1]}{t[2]}".encode()),
))  # fmt: skip
@example(b"[" * 400 + b"]" * 400)
@example(b"run: 2024-99-99")
@example(b"a: &a [1]\nb: *a")
@example(b"general: {layer_map: [2024-01-01]}")
def test_presets_and_options(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    one_line(lambda: run_options.load(str(path), ["task=mrpc"]))
    (tmp_path / "empty.yaml").write_text("{}")
    one_line(
        lambda: run_options.load(
            str(tmp_path / "empty.yaml"), [content.decode(errors="replace").replace(": ", "=", 1)]
        )
    )
    assert run_options.Options().seed == 1 and run_options.Options.__name__ == "Options"


@quick
@given(st.binary(max_size=60) | st.fixed_dictionaries(
    {"train": st.just("a.csv"), "text": st.just("text") | JSON, "label": st.just("label") | JSON},
    optional={key: JSON for key in ("dev", "type", "labels", "metric", "odd")},
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
@example(b"{train: a.csv, text: text, label: label, type: {a: b}}")
def test_task_files(tmp_path, content):
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    (tmp_path / "t.yaml").write_bytes(content)
    source = one_line(lambda: find_task(str(tmp_path / "t.yaml")))
    if source:
        json.dumps(source.entry)
        one_line(lambda: load_task(source))


FILES = st.dictionaries(
    st.sampled_from(["weights", "../weights", "/etc/passwd", "", ".", "a\0b", "\ud800"]) | st.text(max_size=8),
    st.fixed_dictionaries({"size": st.just(3) | JSON, "sha256": JSON}) | JSON, max_size=3,
)  # fmt: skip
MANIFESTS = st.binary(max_size=60) | st.one_of(JSON, st.fixed_dictionaries({"files": FILES | JSON})).map(
    lambda value: json.dumps(value).encode()
)


@quick
@given(MANIFESTS)
@example(b"[" * 100_000)
def test_manifests(tmp_path, content):
    directory = tmp_path / "step-00000001"
    directory.mkdir(exist_ok=True)
    (directory / "weights").write_text("abc")
    (directory / store.MANIFEST).write_bytes(content)
    one_line(lambda: store.verify(directory), store.Damaged)
    store.newest(tmp_path, lambda said: None)


SPECS = st.binary(max_size=40) | st.one_of(JSON, st.fixed_dictionaries({}, optional={
    "fingerprint": st.just("KEY") | JSON, "from": st.sampled_from(["../../b/one", "../../../..", "/etc"]) | JSON,
    "options": JSON, "identities": JSON, "job": JSON | st.just({"precision": "fp8"}),
})).map(lambda value: json.dumps(value).encode())  # fmt: skip


@settings(quick, max_examples=30)
@given(st.lists(SPECS, min_size=4, max_size=4), MANIFESTS, st.booleans())
def test_planning_over_a_damaged_tree(tmp_path, specs, manifest, half_done):
    runs = tmp_path / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    stages = [StageSpec("one", "general", {"seed": 1}, {"teacher": {"path": "x", "content": "y"}}),
              StageSpec("two", "prediction", {"seed": 1}, {"student": "one"})]  # fmt: skip
    o = run_options.Options()
    keys = {step.stage.name: step.fingerprint for step in plan(stages, runs / "a", o)}
    for spec, (run, stage) in zip(
        specs, [("a", "one"), ("a", "two"), ("b", "one"), ("b", "two")], strict=True
    ):
        directory = runs / run / stage
        (directory / "model").mkdir(parents=True)
        for name in ("stage.json", "finished.json"):
            (directory / name).write_bytes(spec.replace(b"KEY", keys[stage].encode()))
        (directory / "model" / store.MANIFEST).write_bytes(manifest)
        if half_done:
            (directory / "finished.json").unlink()
            (directory / "checkpoints" / "step-00000001").mkdir(parents=True)
    planned = one_line(lambda: plan(stages, runs / "a", o))
    for step in planned or ():
        assert step.artefact.resolve().is_relative_to(runs.resolve())
        write_stage_spec(step, {"one": step.artefact}, o)


@pytest.mark.parametrize(
    "finished",
    [
        {"fingerprint": "KEY", "from": "../../../outside"},
        {"fingerprint": "KEY", "from": "/OUTSIDE"},
        {"fingerprint": "KEY", "from": 3},
        {"fingerprint": ["KEY"]},
    ],
)
def test_a_finished_stage_cannot_be_claimed_from_outside(tmp_path, finished):
    stage = StageSpec("one", "general", {"seed": 1})
    runs, outside, o = tmp_path / "runs", tmp_path / "outside", run_options.Options()
    key = plan([stage], runs / "a", o)[0].fingerprint
    told = json.dumps(finished).replace("KEY", key).replace("/OUTSIDE", str(outside))
    for directory in (outside, runs / "a" / "one", runs / "b" / "one"):
        directory.mkdir(parents=True)
        with store.sealed(directory / "model") as staging:
            (staging / "weights").write_text("weights")
        (directory / "finished.json").write_text(told)
        (directory / "stage.json").write_text('{"job": ["fp8"]}')
    (step,) = plan([stage], runs / "a", o)
    assert step.action == "run"
    write_stage_spec(step, {}, o)


@quick
@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"a", b"1", b" ", b"nan", b"1e99", b"\n", b"\xff", b"\xc2\xa0"]))
       .map(b"".join))  # fmt: skip
def test_word_vectors(tmp_path, content):
    path = tmp_path / "vectors.txt"
    path.write_bytes(content)
    vectors = one_line(lambda: WordVectors.from_text(path))
    if vectors:
        assert np.isfinite(vectors.vectors).all()


@quick
@given(st.binary(max_size=300))
def test_a_damaged_cache_of_hashes_is_begun_anew(tmp_path, content):
    cache, file = tmp_path / "hashes", tmp_path / "file"
    file.touch()
    cache.write_bytes(content)
    assert FileHashes(cache).of(file) == hashlib.sha256().hexdigest()


@quick
@given(st.binary(max_size=100), st.integers(0, 2000))
def test_shards(tmp_path, content, cut):
    table = pa.table(
        {"text_a": ["a", "b"], "text_b": [None, None], "label": [0, 1], "row": [0, 1], "variant": [0, 0]}
    )
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert read_shard(path)[0] == ["a", "b"]
    for damaged in (content, path.read_bytes()[:cut]):
        path.write_bytes(damaged)
        one_line(lambda: read_shard(path))


@pytest.mark.parametrize("name", ["../x", "..", "/etc", ".hidden", "a/b", "a\\b"])
def test_run_names_stay_under_runs(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "options.json").write_text("{}")
    (tmp_path / "options.json").write_text("{}")
    for command in ("task-distill", "doctor", "evaluate", "export"):
        assert main([command, f"run={name}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: run=") and "stays under runs/" in error and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_task_names_stay_under_runs(tmp_path):
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,b\n")
    for name in ("../x", "/etc/passwd", "..", "a/../../b"):
        assert re.fullmatch("[a-z0-9-]+", find_task(name, str(data), ("text",), "label").name)


def test_yaml_is_loaded_safely_and_no_foreign_code_is_trusted():
    for path in (
        path
        for package in ("pipeline", "stages", "data_aug", "checkpoints")
        for path in (ROOT / package).rglob("*.py")
    ):
        text = path.read_text()
        if path.name == "row_processes.py":  # between a process and those that it started, through pipes
            text = re.sub(r"\bpickle\b", "", text)
        assert not re.search(r"yaml\.(unsafe_|full_)?load(_all)?\(", text), path
        assert not re.search(
            r"trust_remote_code=(?!False)|\bpickle\b|torch\.load|allow_pickle|\b(eval|exec)\(",
            text.replace(".eval(", ""),
        ), path
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load("!!python/object/apply:os.system [true]")


CODE = "from pathlib import Path\nPath({marker!r}).touch()\nclass Mine:\n    pass\n"


@pytest.mark.parametrize("kind", ["mine", "bert", None])
def test_code_beside_a_model_is_never_run(tmp_path, monkeypatch, kind):
    """`kind`: of a model that transformers does not know, one it does, and none named."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    marker, directory = tmp_path / "run", make_encoder(tmp_path / "model")
    (directory / "mine.py").write_text(CODE.format(marker=str(marker)))
    names = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer")
    for file in ("config.json", "tokenizer_config.json"):
        settings_of = json.loads((directory / file).read_text()) | {
            "auto_map": {name: "mine.Mine" for name in names}
        }
        settings_of |= {"model_type": kind} if file == "config.json" and kind else {}
        if kind is None:
            settings_of.pop("model_type", None)
        if kind == "mine":
            settings_of["tokenizer_class"] = "Mine"
        (directory / file).write_text(json.dumps(settings_of))
    source = ModelSource(str(directory))
    read = [lambda: load_config(source), lambda: load_encoder(source), lambda: load_classifier(source, Classes(("a", "b"))),
            lambda: load_tokenizer(source)]  # fmt: skip
    results = [one_line(one) for one in read]
    assert not marker.exists()
    assert [result is None for result in results[:3]] == [kind == "mine"] * 3


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_pickled_weights_are_refused_and_run_nothing_even_where_they_are_allowed(tmp_path):
    directory = make_encoder(tmp_path / "model")
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "run")}))
    with pytest.raises(UserError, match="allow_bin: .*set it to true"):
        load_encoder(ModelSource(str(directory)))
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        load_encoder(ModelSource(str(directory), allow_bin=True))
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "file, content",
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 100),
        ("config.json", b"[]"),
        ("config.json", b"{"),
        ("config.json", b'{"model_type": "bert", "hidden_size": "wide"}'),
        ("config.json", b'{"model_type": ["bert"]}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b"[1]"),
    ],
)
def test_damaged_models_are_one_line(tmp_path, file, content):
    directory = make_encoder(tmp_path / "model")
    (directory / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_tokenizer(ModelSource(str(directory)))
        load_encoder(ModelSource(str(directory)))
    assert "\n" not in str(caught.value)
