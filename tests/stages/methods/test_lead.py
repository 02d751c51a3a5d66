"""LEAD's plans that cannot work; a cross-encoder as teacher of a dual encoder."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoints.errors import UserError
from stages.distillation.models import ModelSource, load_classifier
from stages.distillation.outputs import CaptureSpec
from stages.distillation.teachers import FrozenTeacher
from stages.methods import build_method
from stages.methods.lead import by_pairs
from stages.tasks.batches import Batch
from stages.tasks.kinds import Ranking
from stages.teaching.given_models import Models, check_plan
from stages.training.options import StageToCheck
from stages.training.step import StepKind
from tests.conftest import make_encoder, make_tokenizer, tiny_config


@pytest.mark.parametrize(
    "settings, methods, losses, words",
    [
        ({}, {"a": "plain", "b": "plain"}, [], r"reads: \[a, b\] must name one teacher, or none; a second name"),
        ({"mined": -1}, {}, [], "mined: -1 must be a whole number from 0 to 1000"),
        ({"mined": 5}, {"a": "plain"}, [], "mined: 5 candidates are mined by a dual encoder, .* as the last of reads"),
        ({"mined": 5}, {}, [], "mined: 5 candidates are mined by a dual encoder, .* as the last of reads"),
        ({}, {"a": {"grain": {}}}, [], "reads: 'a' has the method grain; name the tuned teacher, or a student of the method"),
        ({"train_teacher": True}, {"a": "plain"}, [], "train_teacher: true is for a teacher of the method lead"),
        ({}, {"a": "lead"}, [{"in_batch_negatives": {"of": "teacher"}}],
         "losses.in_batch_negatives.of: a frozen teacher learns nothing .* give train_teacher: true, or leave the line out"),
        ({}, {"a": "lead"}, [{"score_distributions": {"pairs": 3}}],
         "losses.score_distributions.pairs: 3 is more than the 2 layers of the teacher a; lower it"),
        ({}, {"begins_as": {"many_heads": {"heads": 2}}}, [],
         "student.init: it begins as a student of the method many_heads, .* take one of the method plain or lead"),
        ({}, {"a": "lead"}, ["gold_labels"], "losses: 'gold_labels' does not work on a dual encoder; take one of candidate_scores"),
    ],
)  # fmt: skip
def test_plans_that_cannot_work_are_refused(settings, methods, losses, words):
    begins = methods.pop("begins_as", "plain")
    read = {"reads": list(methods), "methods_read": methods, "layers_read": dict.fromkeys(methods, 2)}
    plan = StageToCheck("student", "task", 32, 1, 8, losses=losses, begins_as=begins, **read)
    with pytest.raises(UserError, match=words):
        build_method({"lead": settings}, list(methods)).check_plan(plan)


def test_late_interaction_is_refused_on_several_ranks_unless_it_begins_as_another_form():
    tokens, plan = {"lead": {"vectors": "tokens"}}, StageToCheck("student", "task", 32, 1, 8, ranks=2)
    build_method(tokens).check_plan(replace(plan, begins_as="lead"))
    read = replace(plan, reads=["a"], methods_read={"a": tokens}, layers_read={"a": 2})
    for method, given in ((tokens, plan), ("lead", replace(plan, begins_as=tokens)), ("lead", read)):
        with pytest.raises(
            UserError, match="nproc: late interaction .* trains on 1 rank, not on 2; set it to 1"
        ):
            build_method(method, given.reads).check_plan(given)


def test_a_tokenizer_that_does_not_part_pairs_is_refused_before_any_work(tmp_path):
    tokenizer, config = make_tokenizer(tmp_path), tiny_config()
    sizes = {"layers": 2, "width": 8, "heads": 2}
    plan = StageToCheck(
        "student", "task", 32, 1, 8, losses=["in_batch_negatives"], student=sizes, method="lead"
    )
    assert check_plan(plan, Models(tokenizer, config, config), None)[1:] == (
        False,
        StepKind(whole_batch=True),
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    with pytest.raises(UserError, match="does not tell the two texts of a pair apart"):
        check_plan(plan, Models(tokenizer, config, config), None)


def test_a_cross_encoder_reads_the_candidates_of_a_question_as_pairs(tmp_path):
    torch.manual_seed(0)
    kind, source = Ranking(("wrong", "right")), ModelSource(str(make_encoder(tmp_path)))
    model = load_classifier(source, kind).eval()
    ids = torch.randint(5, 20, (2, 3, 7))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": (ids > 9).long()}
    wanted = model(**{name: x[1] for name, x in inputs.items()}).logits[:, [1, 0]].detach()
    teacher = FrozenTeacher(model, CaptureSpec(logits=True), torch.device("cpu"), class_order=[1, 0])
    theirs = {f"teacher_{name}": x for name, x in inputs.items()} | {"student_input_ids": ids[:1]}
    found = by_pairs(teacher)(Batch(theirs, None, torch.ones(2), torch.from_numpy(np.arange(2))))
    assert found.logits_BC.shape == (2, 3, 2)
    torch.testing.assert_close(found.logits_BC[1], wanted)


def test_a_teacher_that_would_train_along_for_nothing_is_refused():
    method = build_method({"lead": {"train_teacher": True}}, ["a"])
    task = SimpleNamespace(kind=Ranking(("wrong", "right")))
    with pytest.raises(UserError, match="train_teacher: true needs a loss that reads the teacher"):
        method.check(task, tiny_config(), CaptureSpec())
