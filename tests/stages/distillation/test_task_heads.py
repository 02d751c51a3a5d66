import numpy as np
import pytest
import torch
from transformers import BertConfig

from stages.distillation.models import new_classifier
from stages.distillation.task_heads import last_linear, set_first_bias
from stages.tasks.kinds import Classes, LabelSets, Words

SIZES = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
ROWS = [(1.0, 0.0, 0.0)] * 6 + [(0.0, 1.0, 0.0)] * 2


def test_a_new_head_of_label_sets_begins_with_how_often_each_label_holds():
    kind = LabelSets(("a", "b", "c"))
    model = new_classifier(BertConfig(**SIZES), kind)
    set_first_bias(model, kind, ROWS)
    _, head = last_linear(model)
    assert torch.sigmoid(head.bias).tolist() == pytest.approx([0.7, 0.3, 0.1])

    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))  # a head that has learned stays as it is
    set_first_bias(model, kind, ROWS)
    assert head.bias.tolist() == [0.0, 1.0, 2.0]


def test_a_new_head_of_words_begins_with_how_frequent_each_label_is():
    kind = Words(("O", "B-place", "I-place"))
    model = new_classifier(BertConfig(**SIZES), kind)
    set_first_bias(model, kind, [[0, 0, 0, 1], [0, 0, 0]])
    assert torch.softmax(last_linear(model)[1].bias, 0).tolist() == pytest.approx([0.7, 0.2, 0.1])


def test_other_heads_begin_as_they_are_drawn():
    kind = Classes(("a", "b", "c"))
    model = new_classifier(BertConfig(**SIZES), kind)
    set_first_bias(model, kind, np.array([0, 0, 1]))
    assert not last_linear(model)[1].bias.any()
