"""BERT with a distillation token against stock BERT that reads the token elsewhere; what it refuses; its files."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertModel

from checkpoints.errors import UserError
from pipeline.deploy.onnx_model import OnnxClassifier, write_onnx
from stages.distillation.models import ModelSource, load_classifier, new_classifier
from stages.distillation.students.architecture import student_config
from stages.tasks.kinds import Classes, LabelSets, Scores
from stages.teaching.given_models import Models, check_plan
from stages.training.options import StageToCheck
from tests.conftest import make_tokenizer, tiny_config

SIZES = {"kind": "bert_with_token", "layers": 2, "width": 8, "feed_forward": 16, "heads": 2}
LENGTHS = (3, 9, 5)


@pytest.fixture
def student():
    torch.manual_seed(1)
    config = student_config(tiny_config(), **SIZES)
    config.initializer_range = 0.5
    return new_classifier(config, Classes(("a", "b", "c"))).eval()


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    mask = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.randint(5, 20, (3, 9))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(9) > 4).long() * mask}


@torch.no_grad()
def test_its_heads_read_what_stock_bert_makes_of_the_token_behind_the_row(student):
    encoder, batch = student.bert, inputs()
    settings = student.config.to_dict() | {"model_type": "bert"}
    stock = BertModel(BertConfig.from_dict(settings), add_pooling_layer=False).eval()
    stock.load_state_dict(encoder.state_dict(), strict=False)
    found = student(**batch, output_hidden_states=True)
    for row, n in enumerate(LENGTHS):
        own = {name: x[row : row + 1, :n] for name, x in batch.items()}
        words = stock.embeddings.word_embeddings(own["input_ids"])
        states = stock(
            inputs_embeds=torch.cat([words, encoder.distillation_token.weight[None]], 1),
            token_type_ids=torch.cat([own["token_type_ids"], own["token_type_ids"][:, :1]], 1),
            position_ids=torch.tensor([[*range(n), 0]]),
        ).last_hidden_state[0]
        of_class, of_token = student.classifier(states[0]), student.distillation_classifier(states[-1])
        torch.testing.assert_close(found.hidden_states[-1][row, 1], states[-1], rtol=1e-4, atol=1e-5)
        for name, value in (
            ("cls_logits", of_class),
            ("distillation_logits", of_token),
            ("logits", (of_class + of_token) / 2),
        ):
            torch.testing.assert_close(found[name][row], value, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found.cls_logits, found.distillation_logits)


@torch.no_grad()
def test_its_files_and_onnx_answer_as_it_does(student, tmp_path):
    batch = inputs()
    student.save_pretrained(tmp_path / "m")
    make_tokenizer(tmp_path / "m")
    loaded = load_classifier(ModelSource(str(tmp_path / "m")), capturing=False).eval()
    expected = student(**batch).logits
    torch.testing.assert_close(loaded(**batch).logits, expected)
    write_onnx(loaded, list(batch), tmp_path / "m.onnx")
    onnx = OnnxClassifier(tmp_path / "m.onnx", loaded.config)
    torch.testing.assert_close(onnx(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    one = {name: x[:1, :3] for name, x in batch.items()}
    torch.testing.assert_close(onnx(**one).logits, expected[:1], rtol=1e-4, atol=1e-5)


def test_what_its_loss_cannot_learn_and_losses_on_its_layers_are_refused(tmp_path):
    models = Models(make_tokenizer(tmp_path), tiny_config(), tiny_config())
    plan = StageToCheck(
        "student", "task", 32, 1, 8, layer_map="uniform", losses=["distillation_token"], student=SIZES
    )
    check_plan(plan, models, SimpleNamespace(kind=Classes(("a", "b"))))
    with pytest.raises(UserError, match="distillation_token needs one class a row, and the task has"):
        check_plan(plan, models, SimpleNamespace(kind=LabelSets(("a", "b"))))
    with pytest.raises(UserError, match="a bert_with_token answers with classes, and the task has"):
        check_plan(replace(plan, losses=["soft_labels"]), models, SimpleNamespace(kind=Scores()))
    with pytest.raises(
        UserError, match="losses on layers .* a bert_with_token has one more; take losses on logits"
    ):
        check_plan(replace(plan, losses=["distillation_token", "hidden_states"]), models, None)
    models.preprocessor.padding_side = "left"
    with pytest.raises(UserError, match="'bert_with_token' reads a row from its first column on"):
        check_plan(plan, models, None)
