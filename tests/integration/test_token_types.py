"""A BERT whose tokenizer gives a second text no type of its own, as XLM-R's does: measured and answered as stock does.

The labels are the teacher's own answers in stock transformers, so whoever reads it rightly measures 1.000.
"""

import csv
import json

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.conftest import make_tokenizer, sentences, tiny_config

GIVEN = ("task=types", "data=types", "teacher=types-teacher", "text_columns=first,second",
         "student=teacher-layers")  # fmt: skip


def answers(model, tokenizer, rows: list[tuple[str, str]], second_type: int | None = None) -> list[int]:
    """Of stock transformers; `second_type` is written as the type of the second texts, if given."""
    inputs = tokenizer(*map(list, zip(*rows, strict=True)), padding=True, return_tensors="pt")
    if second_type is not None:
        of_second = [[part == 1 for part in encoding.sequence_ids] for encoding in inputs.encodings]
        inputs["token_type_ids"][torch.tensor(of_second)] = second_type
    with torch.no_grad():
        return model.eval()(**inputs).logits.argmax(-1).tolist()


@pytest.fixture(scope="module")
def types(place):
    directory = place.path / "types-teacher"
    tokenizer = make_tokenizer(directory)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:0 [SEP]:0",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save_pretrained(directory)
    config = tiny_config()
    config.initializer_range, config.id2label = 0.5, {0: "no", 1: "yes"}
    config.label2id = {"no": 0, "yes": 1}
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(directory)
    assert model.config.type_vocab_size == 2
    texts = [text for text, _ in sentences(160)]
    rows = list(dict.fromkeys(zip(texts[::2], texts[1::2], strict=True)))
    labels = answers(model, tokenizer, rows)
    assert 0.2 < sum(labels) / len(labels) < 0.8
    invented = answers(model, tokenizer, rows, second_type=1)
    assert sum(a != b for a, b in zip(labels, invented, strict=True)) > len(rows) / 10
    (place.path / "types").mkdir()
    for name, part in (("train", slice(40)), ("dev", slice(40, 52)), ("test", slice(52, None))):
        with open(place.path / "types" / f"{name}.csv", "w", newline="") as file:
            named = [
                (*row, ["no", "yes"][label]) for row, label in zip(rows[part], labels[part], strict=True)
            ]
            csv.writer(file).writerows([("first", "second", "label"), *named])
    status, output = place.run("task-distill", *GIVEN, "run=types", "reuse=false")
    assert status == 0, output
    return place.path / "runs" / "types"


def test_a_given_teacher_is_measured_as_stock_measures_it(types):
    assert json.loads((types / "results.json").read_text())["teacher"]["metric"] == 1.0


def test_predict_and_the_stock_pipeline_give_the_answers_that_were_measured(place, types):
    with open(types / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    measured = [row["distilled"] for row in rows]
    status, output = place.run(
        "predict", "run=types", f"file={types / 'test_predictions.csv'}", "to=types.jsonl", tiny=False
    )
    assert status == 0, output
    predicted = [json.loads(line) for line in (place.path / "types.jsonl").read_text().splitlines()]
    assert [row["predicted_label"] for row in predicted] == measured
    student = types / "prediction" / "model"
    texts = [(row["text"], row["text_b"]) for row in rows]
    stock = pipeline("text-classification", model=str(student))(
        [{"text": first, "text_pair": second} for first, second in texts]
    )
    assert [answer["label"] for answer in stock] == measured
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    assert answers(model, tokenizer, texts, second_type=1) != answers(model, tokenizer, texts)
