"""What the stage `check` makes of the ranks of the run; it runs on one rank itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from checkpoints.errors import UserError
from stages import check
from stages.tasks.packages import packaged_teacher
from stages.training.options import StageToCheck
from stages.training.step import StepKind
from tests.conftest import write_corpus_rows
from tests.stages.foreign import make_stage


class Fits(Exception):
    """Raised where nothing was refused."""


def test_a_batch_that_the_ranks_of_the_run_hold_whole_is_not_refused(tmp_path, monkeypatch):
    def rows(*given):
        raise Fits

    asked = []

    def check_plan(plan, models, task):
        asked.append(plan.ranks)
        return None, False, StepKind(whole_batch=True)

    monkeypatch.setattr(check, "check_plan", check_plan)
    monkeypatch.setattr(check, "_rows", rows)
    plan, models = StageToCheck("student", "task", 32, 1, 16), SimpleNamespace(preprocessor=None, own=None)
    for settings in ({"nproc": 2}, {"hostfile": "hosts"}):
        with pytest.raises(Fits):
            check._check_stage(make_stage(tmp_path, micro_batch=8, **settings), "a", plan, models, None)
    with pytest.raises(UserError, match="micro_batch: 8 rows at once split the batch into 2 parts"):
        check._check_stage(make_stage(tmp_path, micro_batch=8), "a", plan, models, None)
    assert asked == [2, 1, 1]


@pytest.mark.parametrize(
    ("kind", "job", "words"),
    [
        (
            StepKind(passes=True),
            {"nproc": 2},
            "nproc: a step of several backward passes runs on 1 rank, not on 2",
        ),
        (
            StepKind(passes=True),
            {"micro_batch": 4},
            "micro_batch: 4 rows .* several backward passes takes it in one",
        ),
        (StepKind(optimizers=True), {"zero": 1}, "zero: a step of the stage's own"),
        (StepKind(optimizers=True), {"precision": "fp16"}, "precision: fp16 scales"),
    ],
)
def test_options_that_do_not_go_with_a_step_are_refused_before_any_work(
    tmp_path, monkeypatch, kind, job, words
):
    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, kind))
    plan, models = StageToCheck("student", "task", 32, 1, 16), SimpleNamespace(preprocessor=None, own=None)
    with pytest.raises(UserError, match=words):
        check._check_stage(make_stage(tmp_path, **job), "a", plan, models, None)


def test_ranks_that_do_not_go_with_the_rows_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, StepKind()))
    monkeypatch.setattr(check, "_rows", lambda *given: SimpleNamespace(max_ranks=1))
    plan, models = StageToCheck("teacher", "task", 32, 1, 16), SimpleNamespace(preprocessor=None, own=None)
    with pytest.raises(UserError, match="nproc: the rows .* at most 1 rank, not on 2; set it to 1"):
        check._check_stage(make_stage(tmp_path, nproc=2), "a", plan, models, None)


def test_rows_are_counted_as_their_model_reads_them(tmp_path, monkeypatch):
    read = []

    def rows(stage, plan, tokenizer, task):
        read.append(tokenizer)
        raise Fits

    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, StepKind()))
    monkeypatch.setattr(check, "_rows", rows)
    models = SimpleNamespace(preprocessor="the teacher's", own="the student's")
    for plan in (
        StageToCheck("teacher", "task", 32, 1, 16),
        StageToCheck("student", "task", 32, 1, 16),
        StageToCheck("student", "task", 32, 1, 16, losses=["gold_labels"]),  # of a recipe
    ):
        with pytest.raises(Fits):
            check._check_stage(make_stage(tmp_path), "a", plan, models, None)
    assert read == ["the teacher's", "the student's", "the teacher's"]


@pytest.mark.parametrize(("layers", "logged"), [(6, False), (12, True)])
def test_a_layer_map_that_leaves_out_the_upper_layers_is_logged(
    tmp_path, monkeypatch, capsys, layers, logged
):
    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, StepKind()))
    monkeypatch.setattr(check, "_rows", lambda *given: (_ for _ in ()).throw(Fits))
    models = SimpleNamespace(preprocessor=None, own=None, teacher=SimpleNamespace(num_hidden_layers=layers))
    plan = StageToCheck("student", "task", 32, 1, 16, reads_teacher=True, layer_map=[1, 3, 4, 6])
    with pytest.raises(Fits):
        check._check_stage(make_stage(tmp_path), "general", plan, models, None)
    assert (
        "leaves out the upper layers of the teacher's 12; give uniform" in capsys.readouterr().out
    ) is logged


@pytest.mark.parametrize(
    ("name", "there", "limit", "logged"),
    [
        ("general", 1_040_000, 0, "1.04 M"),
        ("general", 1_040_000, 20_000_000, "1.04 M"),
        ("general", 4_321, 0, "4,321"),
        ("general", 200_010, 200_000, ""),  # as asked for: there is more
        ("general", 15_000_000, 0, ""),
        ("intermediate", 1_040_000, 0, ""),
    ],
)
def test_a_short_text_of_the_general_stage_is_logged(
    tmp_path, monkeypatch, capsys, name, there, limit, logged
):
    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, StepKind()))
    monkeypatch.setattr(check, "_rows", lambda *given: SimpleNamespace(lengths=np.array([there])))
    monkeypatch.setattr(check, "training_cost", lambda *given: ("its cost", "what it costs"))
    models = SimpleNamespace(preprocessor=None, own=None, knows=lambda task: False)
    plan = StageToCheck("student", "corpus", 32, 1, 16, tokens=limit)
    assert check._check_stage(make_stage(tmp_path), name, plan, models, None) == "its cost"
    said = capsys.readouterr().out
    assert (f"general: the text has {logged} tokens; on STS-B" in said) == bool(logged)
    assert ("give more text" in said) == bool(logged)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        (
            "The film is slow, but its last half hour is worth the wait for anybody who likes the sea.",
            1.0,
            1.35,
        ),
        (
            "Der Film ist langsam, aber die letzte halbe Stunde lohnt das Warten für alle, die das Meer mögen.",
            1.8,
            3,
        ),
        ("thefilmisslowbutitslasthalfhourisworththewait", 0, 0),
    ],
)
def test_tokens_a_word_tell_another_language(tmp_path, text, least, most):
    tokenizer = AutoTokenizer.from_pretrained(packaged_teacher())
    rows = write_corpus_rows([text] * 3, tokenizer, 64, tmp_path / "rows")
    assert least <= check.tokens_a_word(rows, tokenizer) <= most


@pytest.mark.parametrize(("truncated", "logs"), [(0, False), (0.1, False), (0.5, True)])
def test_many_truncated_rows_are_logged(tmp_path, monkeypatch, truncated, logs):
    tokenizer, logged = AutoTokenizer.from_pretrained(packaged_teacher()), []
    rows = write_corpus_rows(
        ["The film is slow, but it is worth the wait."] * 10, tokenizer, 16, tmp_path / "rows"
    )
    rows.counts["truncated"] = int(truncated * len(rows))
    monkeypatch.setattr(check, "check_plan", lambda *given: (None, False, StepKind()))
    monkeypatch.setattr(check, "_rows", lambda *given: rows)
    monkeypatch.setattr(check, "training_cost", lambda *given: (None, "cost"))
    plan = StageToCheck("teacher", "task", 32, 1, 16)
    models = SimpleNamespace(preprocessor=tokenizer, own=None, knows=lambda task: False)
    stage = make_stage(tmp_path)
    monkeypatch.setattr(type(stage), "log", lambda self, line: logged.append(line))
    check._check_stage(stage, "tuning", plan, models, None)
    assert any("more than 32 tokens and are truncated; raise max_length" in line for line in logged) == logs
