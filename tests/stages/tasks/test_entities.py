"""Entities: their labels are read and checked, counted as seqeval counts them, and learned by all tokens of a word."""

import json

import numpy as np
import pytest
import torch
from seqeval.metrics import classification_report, f1_score

from checkpoints.errors import UserError
from stages.evaluation import statistics
from stages.evaluation.predict import predict
from stages.tasks.kinds import Entities, Words
from stages.tasks.kinds.base import Said
from stages.tasks.task import find_task, load_task
from stages.tasks.token_rows import write_task_rows
from stages.tasks.types import CONTINUED, IGNORE_INDEX, Split
from stages.teaching.recorded_logits import TeacherLogits
from tests.conftest import make_tokenizer

KIND = Entities.of(["B-per", "I-loc", "O"])
RANDOM = np.random.default_rng(0)
LENGTHS = RANDOM.integers(1, 9, 50).tolist()
GOLD = RANDOM.choice(5, sum(LENGTHS), p=[0.15, 0.15, 0.1, 0.1, 0.5])
LOGITS = RANDOM.normal(size=(len(GOLD), 5)) + 2 * np.eye(5)[GOLD]


def tags(ids) -> list[list[str]]:
    """Labels by row, as seqeval takes them."""
    return [[KIND.labels[i] for i in row] for row in np.split(ids, np.cumsum(LENGTHS)[:-1])]


def test_counts_are_those_of_seqeval():
    assert KIND.labels == ("B-loc", "B-per", "I-loc", "I-per", "O") and KIND.class_names == ("loc", "per")
    said, true = tags(LOGITS.argmax(-1)), tags(GOLD)
    found = KIND.measure(KIND.reported, Said(LOGITS, GOLD, LENGTHS))
    assert found["entity_f1"] == pytest.approx(f1_score(true, said)) and 0 < found["entity_f1"] < 1
    report = classification_report(true, said, output_dict=True)
    for name, scores in zip(KIND.class_names, KIND.class_scores(Said(LOGITS, GOLD, LENGTHS)), strict=True):
        assert scores == pytest.approx(tuple(report[name].values()))
    same = [KIND.entities(map(KIND.labels.index, a)) == KIND.entities(map(KIND.labels.index, b))
            for a, b in zip(said, true, strict=True)]  # fmt: skip
    assert found["exact_match"] == np.mean(same)
    assert found["accuracy"] == np.mean(LOGITS.argmax(-1) == GOLD)
    assert KIND.constant("entity_f1", GOLD, LENGTHS) == 0
    nothing = [all(tag == "O" for tag in row) for row in true]
    assert KIND.constant("exact_match", GOLD, LENGTHS) == np.mean(nothing)


def test_whole_rows_are_resampled(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    measure = KIND.resampler(KIND.reported, Said(LOGITS, GOLD, LENGTHS))
    values = statistics.bootstrap({"a": measure}, len(LENGTHS))["a"]
    begins = np.cumsum(LENGTHS) - LENGTHS
    for i, rows in enumerate(np.concatenate(list(statistics._resamples(len(LENGTHS), 0, 0)))):
        places = np.concatenate([np.arange(begins[row], begins[row] + LENGTHS[row]) for row in rows])
        plain = KIND.measure(
            KIND.reported, Said(LOGITS[places], GOLD[places], [LENGTHS[row] for row in rows])
        )
        assert {m: v[i] for m, v in values.items()} == pytest.approx(plain)


def test_further_tokens_of_a_word_go_on_with_its_entity_and_are_not_scored(tmp_path):
    split = Split(["good.film the", "the warm.story"], None, [[1, 4], [4, 0]], KIND.continued)
    rows = write_task_rows([split], make_tokenizer(tmp_path / "t"), 16, tmp_path / "rows")
    batch = rows.collate(np.arange(2), np.ones(2, np.float32))
    none = IGNORE_INDEX
    assert batch.labels.tolist() == [[none, 1, 3, 3, 4, none], [none, 4, 0, 2, 2, none]]
    assert rows.targets.tolist() == rows.labelled.tolist() == [4, 4]
    assert rows.scored.tolist() == [True, False, False, True, True, True, False, False]
    plain = Split(split.text_a, None, split.labels)
    old = write_task_rows([plain], make_tokenizer(tmp_path / "t"), 16, tmp_path / "plain")
    assert old.targets.tolist() == [2, 2] and old.scored is None
    assert max(old.labels) < CONTINUED - 1 <= max(rows.labels)

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            logits = torch.nn.functional.one_hot(batch.labels.clamp(min=0), 5).float()
            return type("Output", (), {"logits": logits[: len(input_ids)]})

    model = Model()
    model.config = type("Config", (), {"num_labels": 5})
    assert predict(model, rows, torch.device("cpu")).argmax(-1).tolist() == [1, 4, 4, 0]  # of words alone


def test_recorded_logits_of_words_are_those_of_each_target(tmp_path):
    from stages.distillation.outputs import ModelOutputs
    from stages.teaching.recorded_logits import logits_as_outputs

    split = Split(["good.film the", "the", "warm a"], None, [[1, 4], [4], [0, 4]], KIND.continued)
    rows = write_task_rows([split], make_tokenizer(tmp_path / "t"), 16, tmp_path / "rows")
    recorded = TeacherLogits(rows, 5, torch.device("cpu"))
    logits = torch.randn(3, 6, 5)
    for indices, weights in (([1, 0], [1, 1]), ([2, 1], [1, 0])):
        batch = rows.collate(np.array(indices), np.array(weights, np.float32))
        recorded.note(batch, ModelOutputs(logits[indices, : batch.input_ids.shape[1]]))
    assert not recorded.table_NC.isnan().any() and len(recorded.table_NC) == 7
    batch = rows.collate(np.arange(3), np.ones(3, np.float32))
    again = logits_as_outputs(recorded.table_NC.numpy(), rows, torch.device("cpu"))(batch).logits_BC
    assert torch.equal(again[batch.label_mask], logits[batch.label_mask])


def conll(directory, train: str, dev: str = "z O\n"):
    (directory / "train.conll").write_text(train)
    (directory / "dev.conll").write_text(dev)
    return directory


def test_iob1_is_read_as_iob2(tmp_path):
    data = conll(tmp_path, "a I-per\nb I-per\nc B-per\nd I-loc\ne O\nf I-loc\n")
    task = load_task(find_task("mine", str(data), tag_scheme="iob1"))
    found = [task.labels[i] for i in task.splits["train"].labels[0]]
    assert found == ["B-per", "I-per", "B-per", "B-loc", "O", "B-loc"]
    assert isinstance(task.kind, Entities) and task.selection == "entity_f1"
    with pytest.raises(UserError, match="train.conll, line 1: 'I-per' begins an entity.*tag_scheme=iob1"):
        load_task(find_task("mine", str(data)))


def test_labels_that_mark_no_entities_are_those_of_words(tmp_path):
    task = load_task(find_task("mine", str(conll(tmp_path, "a O\nb X\n"))))
    assert type(task.kind) is Words and task.selection == "accuracy"
    with pytest.raises(UserError, match="metric: 'entity_f1' does not fit"):
        load_task(find_task("mine", str(tmp_path), metric="entity_f1"))


def spans(path, rows: list[dict]):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return find_task("mine", str(path), ("text",), spans_column="spans")


def test_spans_become_labels_of_words(tmp_path):
    rows = [
        {"text": "Ada Lovelace's note, in U.S. time", "spans": [[24, 28, "loc"], [0, 12, "per"]]},
        {"text": "notes", "spans": []},
        *({"text": f"note {n}", "spans": [{"start": 0, "end": 4, "label": "big thing"}]} for n in range(40)),
    ]
    task = load_task(spans(tmp_path / "a.jsonl", rows))
    read = {
        text: [task.labels[i] for i in labels]
        for split in task.splits.values()
        for text, labels in zip(split.text_a, split.labels, strict=True)
    }
    assert read["Ada Lovelace ' s note , in U . S . time"] == (
        ["B-per", "I-per"] + ["O"] * 5 + ["B-loc", "I-loc", "I-loc", "I-loc", "O"]
    )
    assert read["notes"] == ["O"] and read["note 0"] == ["B-big_thing", "O"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b"}, "line 1: no 'spans'; write \\[\\]"),
        ({"text": "a b", "spans": [[0, 2, "x"], [1, 3, "y"]]}, r"line 1: the spans 0 to 2 \(x\) and 1 to 3 \(y\) overlap"),
        ({"text": "a b", "spans": [[0, 4, "x"]]}, "is not a span of the text's 3 characters"),
        ({"text": "a b", "spans": [[0, 1]]}, "is not a span"),
        ({"text": "a b", "spans": "x"}, "is not a list of spans"),
        ({"text": "a b", "spans": [[1, 2, "x"]]}, "holds only white space"),
        ({"text": " ", "spans": []}, "is empty"),
    ],
)  # fmt: skip
def test_a_span_that_cannot_be_used_is_told_in_a_line(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        load_task(spans(tmp_path / "a.jsonl", [row, {"text": "c", "spans": [[0, 1, "x"]]}]))
    assert "\n" not in str(caught.value)


def test_options_that_do_not_go_with_spans(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "spans": []}\n')
    for options, message in (
        ({"label_column": "x"}, "spans_column: 'spans' has the entities of one text"),
        ({"labels": ("a", "b")}, "labels: 'mine' is not read as a table of texts"),
        ({"tag_scheme": "iob1"}, "tag_scheme: 'mine' is not in CoNLL files"),
    ):
        with pytest.raises(UserError, match=message):
            find_task("mine", str(tmp_path / "a.jsonl"), ("text",), spans_column="spans", **options)
    with pytest.raises(
        UserError, match="spans_column: no column 'other'; the columns of .* are 'text', 'spans'"
    ):
        find_task("mine", str(tmp_path / "a.jsonl"), ("text",), spans_column="other")
