"""Soft prompts and PANDA as methods. Whole runs are in integration/test_prompts.py."""

import pytest
import torch
from transformers import AlbertConfig, AutoModelForSequenceClassification

from checkpoints.errors import UserError
from stages.distillation.outputs import ATTENTION, CaptureSpec
from stages.distillation.students.architecture import student_config
from stages.distillation.students.prompted import PromptedForSequenceClassification
from stages.methods import Panda, SoftPrompt, build_method
from stages.methods.prompts import embedding
from stages.tasks.kinds import Classes, Words
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import Split, Task
from tests.conftest import make_tokenizer, tiny_config

LOGITS = CaptureSpec(logits=True)


def task(kind=None) -> Task:
    rows = {"train": Split(["x"], None, [0]), "dev": Split(["x"], None, [0])}
    return Task("t", kind or Classes(("a", "b")), rows, ("accuracy",), "accuracy")


@pytest.mark.parametrize(
    "line, reads, words",
    [
        ({"soft_prompt": {"tokens": 0}}, [], "soft_prompt.tokens: 0 must be a whole number from 1 to 512"),
        ({"soft_prompt": {"dropout": 1}}, [], "soft_prompt.dropout: 1 must be a number from 0 to below 1"),
        ("panda", ["a"], r"panda.reads: \['a'\] must be three earlier students: the teacher, the source"),
    ],
)
def test_a_wrong_line_is_told(line, reads, words):
    with pytest.raises(UserError, match=words):
        build_method(line, reads)


def test_what_takes_no_prompt_is_refused():
    bert, panda = tiny_config(), Panda(["a", "b", "c"])
    SoftPrompt().check(task(), bert, CaptureSpec())
    panda.check(task(), bert, LOGITS)
    for method, given, student, spec, words in (
        (SoftPrompt(), task(), AlbertConfig(), LOGITS, "method: a soft prompt needs layers that each have attention of their own, and those of albert"),
        (SoftPrompt(), task(), student_config(bert, 1, 8, kind="bilstm"), LOGITS, "method: a soft prompt needs .* those of bilstm have not"),
        (SoftPrompt(), task(Words(("x", "y"))), bert, LOGITS, "method: .* are not for a soft prompt"),
        (SoftPrompt(), task(), bert, CaptureSpec(queries_keys=frozenset([1])), "losses: attention to a prompt"),
        (panda, task(), bert, CaptureSpec(), "losses: a transferred prompt teaches by its logits"),
        (panda, task(), bert, CaptureSpec(hidden=frozenset([1])), "losses: a transferred prompt teaches"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            method.check(given, student, spec)


def test_the_similarity_stands_for_itself_as_a_weight_alone():
    panda = Panda(["a", "b", "c"])
    panda.similarity = 0.25
    lines = [
        "gold_labels",
        {"matched_logits": {"weight": "similarity"}},
        {"soft_labels": {"weight": 2, "temperature": 3}},
    ]
    assert panda.losses(lines) == [lines[0], {"matched_logits": {"weight": 0.25}}, lines[2]]
    assert lines[1] == {"matched_logits": {"weight": "similarity"}}  # the recipe's own line is as it was


def test_an_embedding_is_the_mean_over_tokens_of_what_the_prompt_adds(tmp_path):
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    texts = ["a good film", "bad", "the plot of it was dull and the actor poor"]
    rows = write_task_rows([Split(texts, None, [0, 0, 1])], tokenizer, 16, tmp_path / "rows")
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(tiny_config(), attn_implementation=ATTENTION)
    model = PromptedForSequenceClassification.of(plain.eval(), 5, dropout=0.5)
    with torch.no_grad():
        model.prompt.table.weight.mul_(50)
    found = embedding(model, rows)
    added = []
    for text in texts:
        one = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            with_prompt = model(**one, output_hidden_states=True).hidden_states[-1]
            without = plain.base_model(**one).last_hidden_state
        added += list((with_prompt - without)[0])
    torch.testing.assert_close(found, torch.stack(added).mean(0))
