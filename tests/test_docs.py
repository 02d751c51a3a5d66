"""The documents say what is so: their commands are accepted, the tutorial's are run, their links lead somewhere."""

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import BertForMaskedLM, BertModel

import pipeline
from pipeline.cli import commands as cli
from pipeline.cli.options_page import PAGE, page
from pipeline.config.recipe import read_recipe
from pipeline.config.run_options import load
from pipeline.config.schema import arguments
from stages.tasks.packages import packaged_teacher
from stages.tasks.readers import graphs
from stages.tasks.types import TaskRequest
from tests.conftest import make_corpus, make_encoder, make_tokenizer, sentences, tiny_config

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKING = ("demo", "general-distill", "task-distill", "glue", "augment", "doctor")
STAGES = ("tuning", "general", "intermediate", "prediction")
READ_BY_MAKE = set(re.findall(r"\$\(([A-Z]+)\)", (ROOT / "Makefile").read_text()))
"""Make ignores every other variable of its command line."""
EXPORTED = '"my-student'
"""What lines of Python that take an exported student have in common."""
TINY = [
    "teacher=teacher", "corpus=corpus.txt", "job.precision=fp32", "architecture.layers=2", "architecture.width=8",
    "architecture.feed_forward=16", "architecture.heads=2", "job.cache_gb=0",
    "student=", "general.layer_map=uniform", "intermediate.layer_map=uniform",  # not those of the preset compact
    *(f"{stage}.{option}" for stage in STAGES for option in ("epochs=1", "batch_size=128", "max_length=32")),
]  # fmt: skip


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


def python(path: Path) -> list[str]:
    """The fenced blocks of Python."""
    return [text for language, text in blocks(path) if language == "python"]


def commands(path: Path) -> list[str]:
    """Lines that run make or the pipeline, in fenced blocks and in the text's own code."""
    found = []
    for _, block in blocks(path):
        lines = block.replace("\\\n", " ").splitlines()
        found += [line for line in lines if re.match(r"(exec )?(make |\.venv/bin/python -m pipeline)", line)]
    prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return found + [code for code in re.findall(r"`([^`\n]+)`", prose) if code.startswith("make ")]


def in_place(directory: Path, python: str) -> Path:
    """A directory in which the documents' commands run, `.venv/bin/python` being a script."""
    (directory / ".venv" / "bin").mkdir(parents=True)
    for name in (
        "Makefile",
        "setup.cfg",
        "pyproject.toml",
        "constraints.txt",
        "pipeline",
    ):
        (directory / name).symlink_to(ROOT / name)
    for name in ("python", "ruff"):
        script = directory / ".venv" / "bin" / name
        script.write_text(f"#!/bin/bash\n{python}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    for stamp in (".ready", ".recipes", ".docs"):
        (directory / ".venv" / stamp).touch()
    return directory


def shell(command: str, place: Path) -> str:
    """Run a command in bash; returns its output."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-ec", command], cwd=place, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def recorder(tmp_path_factory) -> Path:
    """A place where `.venv/bin/python` notes its arguments and does nothing."""
    return in_place(tmp_path_factory.mktemp("recorder"), 'printf "%s\\0" "$@" > arguments')


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_are_accepted(path, recorder, monkeypatch, capsys):
    monkeypatch.setattr("pipeline.config.run_options._is_installed", lambda package: True)
    monkeypatch.chdir(recorder)
    for command in commands(path):
        if command.startswith("make lint"):
            continue  # runs ruff and mypy, not Python
        if unknown := set(re.findall(r" ([A-Z_]+)=", command)) - READ_BY_MAKE:
            raise AssertionError(f"{command}: make does not read {', '.join(unknown)}")
        (recorder / "arguments").unlink(missing_ok=True)
        shell(command, recorder)
        if not (recorder / "arguments").exists():
            assert command.startswith("make setup"), f"{command} runs nothing"
            continue
        python, module, *rest = (recorder / "arguments").read_text().split("\0")[:-1]
        if (python, module) != ("-m", "pipeline"):
            continue  # tests, lint, bench: not the pipeline's
        name, *options = rest
        if name == "doctor":
            cli.to_make(arguments(options))
        elif name in MAKING:
            load("small", options)
        elif name == "recipe":
            given = arguments(options)
            if given.get("name", ".yaml").endswith(
                ".yaml"
            ):  # the command as such, or the reader's: any will do
                given["name"] = "continuation-kd"
            read_recipe(given)
        elif name == "recipes":
            assert cli.main(rest) == 0
        elif name != "--help":  # refused for want of the run alone
            status, said = cli.main(rest), capsys.readouterr().err
            assert status == 2 and re.search(
                "there is no run|no finished run|csv: no such file|my-student has no config.json", said
            ), said


def test_a_misspelt_option_would_be_found(recorder, monkeypatch, tmp_path):
    wrong = tmp_path / "wrong.md"
    wrong.write_text('```\nmake demo ARGS="general.epoch=3"  # three passes\n```\n')
    with pytest.raises(Exception, match="general.epochs"):
        test_commands_are_accepted(wrong, recorder, monkeypatch, None)


def test_a_variable_that_make_ignores_would_be_found(recorder, monkeypatch, tmp_path):
    wrong = tmp_path / "wrong.md"
    wrong.write_text("`make predict RUN=demo FILE=in.csv`\n")
    with pytest.raises(AssertionError, match="make does not read FILE"):
        test_commands_are_accepted(wrong, recorder, monkeypatch, None)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), link
        heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M) if anchor else []
        assert not anchor or anchor in [
            re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in heads
        ], link


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_files_that_are_named_exist(path):
    """In the text's own code, with a folder, so that it can only be a file of the project."""
    for file in re.findall(r"`((?:\w+/)+[\w.]+\.(?:py|yaml))`", path.read_text(encoding="utf-8")):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_lines_of_prose_are_short(path):
    prose = re.sub(r"^```.*?^```|^\|.*?$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert path == PAGE or not [line for line in prose.splitlines() if len(line) > 120]


def test_the_page_of_options_is_what_the_options_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "`make docs` writes it anew"


@pytest.mark.parametrize(
    ("status", "end", "requeued"),
    [(143, "+2 minutes", True), (143, "+3 hours", False), (0, "+2 minutes", False), (143, "N/A", True)],
)
def test_slurms_script_requeues_what_its_time_limit_stopped_alone(status, end, requeued, tmp_path):
    """With stand-ins for Slurm's commands. A signal by scancel, long before the end, ends the run for good."""
    script = next(text for _, text in blocks(ROOT / "docs" / "slurm.md") if text.startswith("#!"))
    end = shell(f"date -d '{end}' +%FT%T", tmp_path).strip() if end[0] == "+" else end
    for name, does in (
        ("srun", f"exit {status}"),
        ("squeue", f"echo {end}"),
        ("scontrol", "echo $* > queued"),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == status
    assert (tmp_path / "queued").exists() == requeued


def test_the_recipe_that_is_shown_can_be_read(tmp_path):
    (shown,) = (text for _, text in blocks(ROOT / "docs" / "recipes.md") if text.startswith("# make recipe"))
    (tmp_path / "mine.yaml").write_text(shown)
    recipe, _ = read_recipe({"name": str(tmp_path / "mine.yaml")})
    assert recipe.shown == ["kd", "kd-hidden"]


@pytest.mark.slow
def test_the_tutorial_from_a_csv_to_a_shipped_model(tmp_path):
    """Its commands in order, with a tiny teacher; then the lines of Python of all documents on what it exports."""
    from transformers import BertConfig

    making = "|".join(MAKING)
    tiny = f'case "$3" in {making}) set -- "$@" {" ".join(TINY)};; esac\nexec "{sys.executable}" "$@"'
    place = in_place(tmp_path / "place", tiny)
    make_corpus(place / "corpus.txt", 12)
    (place / "teacher").mkdir()
    for file in packaged_teacher().glob("*token*"):
        shutil.copy(file, place / "teacher")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes)).save_pretrained(place / "teacher")

    said = {}
    for language, block in blocks(ROOT / "docs" / "tutorial.md"):
        if language == "sh":
            said[block] = shell(block, place)
    told = "\n".join(said.values())
    for words in (
        "nothing is wrong",
        "distilled student",
        "reused from another run",
        "report.html",
        "student, ONNX int8",
    ):
        assert words in told
    shown = [text for language, text in blocks(ROOT / "docs" / "tutorial.md") if language == ""]
    assert (place / "reviews.csv").read_text().startswith(next(t for t in shown if t.startswith("review,")))

    deployed = {text for path in DOCUMENTS for text in python(path) if EXPORTED in text}
    assert sum("onnxruntime" in snippet for snippet in deployed) == 1
    for snippet in deployed:
        answer = shell(f"'{sys.executable}' - <<'EOF'\n{snippet}\nEOF", place)
        assert "'fresh'" in answer or "'rotten'" in answer
        if "transformers import pipeline" in snippet:
            assert len(snippet.strip().splitlines()) == 4  # "three lines", and a blank


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict:
    """What the snippets take for granted: a directory with their files, and the names that they do not define."""
    place = tmp_path_factory.mktemp("snippets")
    make_corpus(place / "corpus.txt", 12)
    lines = [f"{text},{label}" for text, label in sentences(60)]
    (place / "reviews.csv").write_text("\n".join(["review,stars", *lines]))
    make_encoder(place / "teacher", layers=2)
    make_tokenizer(place / "google-bert/bert-base-uncased")
    BertForMaskedLM(tiny_config()).save_pretrained(place / "google-bert/bert-base-uncased")
    return {"place": place, "data": Hetero()}


class Hetero(dict):
    """The attributes of a HeteroData of PyTorch Geometric that a snippet reads: three papers, who wrote and who cites them."""

    node_types, edge_types = ["author", "paper"], [("author", "writes", "paper"), ("paper", "cites", "paper")]

    class Storage(dict):
        __getattr__ = dict.__getitem__

    def __init__(self):
        masks = {f"{role}_mask": torch.arange(4) == i for i, role in enumerate(("train", "val", "test"))}
        self["author"] = self.Storage(num_nodes=2)
        self["paper"] = self.Storage(num_nodes=4, y=torch.tensor([1, 0, 1, 0]), **masks)
        self["author", "writes", "paper"] = self.Storage(edge_index=torch.tensor([[0, 1, 1], [0, 1, 3]]))
        self["paper", "cites", "paper"] = self.Storage(edge_index=torch.tensor([[0, 3], [1, 2]]))


def snippets(path: Path) -> list[str]:
    """What a reader pastes at a time, and no exported student is needed for: of docs/python.md the page."""
    found = [text for text in python(path) if EXPORTED not in text]
    return ["\n".join(found)] if path.name == "python.md" else found


SNIPPETS = {text: path.stem for path in DOCUMENTS for text in snippets(path)}


@pytest.mark.parametrize(
    "snippet",
    [
        pytest.param(text, marks=pytest.mark.slow if "distill(" in text else (), id=stem)
        for text, stem in SNIPPETS.items()
    ],
)
def test_python_snippets_run(snippet, names, monkeypatch):
    """On tiny models; `distill` also gets tiny options, which the snippet's own go over."""
    monkeypatch.chdir(names["place"])
    if "distill(" in snippet:
        whole = pipeline.distill
        given = dict(option.split("=") for option in TINY)
        monkeypatch.setattr(
            pipeline, "distill", lambda options, **rest: whole(options=given | options, **rest)
        )
    exec(snippet, defined := dict(names))
    if "capture(" in snippet:
        assert defined["value"].ndim == 0 and defined["value"] > 0
    if "data.node_types" in snippet:
        task = graphs.load(graphs.find(TaskRequest("cited", "graph")), None)
        read = {role: (of.text_a, of.labels) for role, of in task.splits.items() if role != "unlabelled"}
        assert read == {"train": (["0"], [1]), "dev": (["1"], [0]), "test": (["2"], [1])}
        assert task.splits["unlabelled"].text_a == ["3"] and list(task.kind.graph.nodes) == [
            "paper",
            "author",
        ]
        assert task.kind.graph.edges == {
            ("author", "author-writes-paper", "paper"): [(0, 0), (1, 1), (1, 3)],
            ("paper", "paper-cites-paper", "paper"): [(0, 1), (3, 2)],
        }
    if "augment(" in snippet:
        assert [row[0] for row in defined["rows"]] == ["a fine film", "a dull one"]


def test_the_sinusoid(tmp_path):
    toy = SimpleNamespace(**runpy.run_path(str(ROOT / "docs/recipes/sinusoid.py")))
    errors, points, made = toy.measure([1], epochs=2)
    assert list(errors) == ["teacher", "fine-tuned", "kd", "annealing-kd", "no-margin", "continuation-kd"]
    assert errors["teacher"][0] < toy.error(0 * toy.CLEAN)
    assert len(made["continuation-kd"]) == len(toy.PHASES)
    toy.draw(points, made, tmp_path / "sinusoid.png")
    assert (tmp_path / "sinusoid.png").stat().st_size > 10_000
