"""Soft prompts: what attention computes with them, and what is saved, loaded and counted."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from stages.distillation.compatibility import forward_flops
from stages.distillation.models import ModelSource, load_classifier
from stages.distillation.outputs import ATTENTION, CaptureSpec, capture
from stages.distillation.students.prompted import PromptedForSequenceClassification
from stages.tasks.kinds import Classes
from tests.conftest import make_tokenizer, tiny_config

IDS = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])
MASK = (IDS > 0).long()


def classifier(kind="bert", labels=3):
    torch.manual_seed(0)
    config = tiny_config(kind)
    config.num_labels = labels
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION).eval()


def prompted(kind="bert", tokens=5):
    model = PromptedForSequenceClassification.of(classifier(kind), tokens, dropout=0.1).eval()
    with torch.no_grad():
        model.prompt.table.weight.mul_(50)  # as far from 0 as other keys and values
    return model


def test_attention_reads_the_prompt_before_the_row_as_a_plain_loop_does():
    model, seen = prompted(), {}
    attention = model.encoder.encoder.layer[1].attention.self
    attention.register_forward_hook(lambda module, given, made: seen.update(states=given[0], context=made[0]))
    with torch.no_grad():
        model(IDS, MASK)
    table = model.prompt.table.weight.view(5, 4, 2, 4, 4)  # tokens, layers, key or value, heads, width
    for row in range(2):
        length = int(MASK[row].sum())
        q, k, v = (
            linear(seen["states"][row]).view(-1, 4, 4)
            for linear in (attention.query, attention.key, attention.value)
        )
        for head in range(4):
            keys = [table[p, 1, 0, head] for p in range(5)] + [k[j, head] for j in range(length)]
            values = [table[p, 1, 1, head] for p in range(5)] + [v[j, head] for j in range(length)]
            for i in range(length):
                weights = torch.stack([q[i, head] @ key / 4**0.5 for key in keys]).softmax(0)
                plain = sum(w * value for w, value in zip(weights, values, strict=True))
                torch.testing.assert_close(seen["context"][row, i].view(4, 4)[head], plain)


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
def test_only_the_prompt_tells_it_from_the_encoder(kind):
    model, plain = prompted(kind), classifier(kind).base_model
    with torch.no_grad():
        last = model(IDS, MASK, output_hidden_states=True).hidden_states[-1]
        with model.without_prompt():
            without = model(IDS, MASK, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(without, plain(input_ids=IDS, attention_mask=MASK).last_hidden_state)
        assert (last - without).abs().max() > 0.01
        alone = model(IDS[1:, :3], MASK[1:, :3]).logits  # padding changes nothing
        torch.testing.assert_close(model(IDS, MASK).logits[1:], alone)
        copied = copy.deepcopy(model)
        copied.prompt.table.weight.zero_()  # the copy reads its own prompt
        assert not torch.equal(copied(IDS, MASK).logits, model(IDS, MASK).logits)


def test_it_is_loaded_as_it_was_saved_and_a_head_for_other_labels_is_new(tmp_path):
    model = prompted()
    model.save_pretrained(tmp_path)
    make_tokenizer(tmp_path)
    source = ModelSource(str(tmp_path))
    for capturing in (True, False):
        loaded = load_classifier(source, capturing=capturing).eval()
        assert torch.equal(loaded(IDS, MASK).logits, model(IDS, MASK).logits)
    torch.manual_seed(1)
    other = load_classifier(source, Classes(("x", "y", "z")))
    assert torch.equal(other.prompt.table.weight, model.prompt.table.weight)
    assert not torch.equal(other.classifier.weight, model.classifier.weight)


def test_layers_are_shown_and_the_prompt_stays_after_that():
    model = prompted()
    before = model(IDS, MASK).logits
    model.config._attn_implementation = "sdpa"  # as it is without capturing
    with capture(model, CaptureSpec(logits=True, queries_keys=frozenset([1]))) as outputs:
        model(IDS, MASK)
    assert outputs.keys_BHLD[1].shape == (2, 4, 5 + 5, 4)  # the prompt's keys, too
    assert torch.equal(model(IDS, MASK).logits, before)


def test_operations_are_those_of_the_encoder_and_of_its_attention_to_the_prompt():
    model = prompted()
    products = 2 * 2 * 5 * 16 * 4  # scores and context, a product and a sum each; tokens, width, layers
    encoder = forward_flops(model.config.encoder_config(), 9, 9)
    assert forward_flops(model.config, 9, 9) == encoder + 9 * products
