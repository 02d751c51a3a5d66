"""What must fit before any work."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
)

from checkpoints.errors import UserError
from stages.distillation.compatibility import (
    check_length,
    check_padding,
    check_tokenizers,
    forward_flops,
    longest_row,
)
from stages.distillation.outputs import CaptureSpec, capture
from stages.distillation.students.architecture import random_student, student_config
from tests.conftest import make_tokenizer, tiny_config


@pytest.mark.parametrize(
    "kind, positions, limit",
    [
        *((kind, 514, 512) for kind in ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text")),
        ("longformer", 514, 512), ("mpnet", 514, 512), ("bert", 512, 512), ("nystromformer", 512, 512),
        ("modernbert", 512, 512),
    ],
)  # fmt: skip
def test_a_row_is_as_long_as_the_models_positions_allow(kind, positions, limit):
    config = AutoConfig.for_model(
        kind, max_position_embeddings=positions, pad_token_id=1, num_hidden_layers=1
    )
    check_length(config, limit)
    with pytest.raises(
        UserError, match=f"max_length: {limit + 1} tokens are above the model's limit of {limit}"
    ):
        check_length(config, limit + 1)


def test_the_longest_row_is_one_that_the_model_reads():
    model = AutoModel.from_config(tiny_config("roberta")).eval()  # its padding token is 0
    limit = longest_row(model)
    assert limit == 63
    model(torch.full((1, limit), 7))
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(torch.full((1, limit + 1), 7))


@pytest.mark.parametrize("teachers, heads, expected", [(4, 2, 2), (2, 2, 1), (2, 3, 3), (4, 0, 4), (1, 2, 2)])
def test_a_students_key_value_heads_follow_its_heads(teachers, heads, expected):
    """EuroBERT's: of a teacher with four heads, and `teachers` key-value heads."""
    sizes = SIZES | {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": teachers}
    teacher = AutoConfig.for_model("eurobert", **sizes, pad_token_id=0)
    config = student_config(teacher, 2, 24, heads=heads)
    assert (config.num_key_value_heads, teacher.num_key_value_heads) == (expected, teachers)
    student = random_student(config, seed=0)
    with capture(student, CaptureSpec(queries_keys=frozenset({1}))) as outputs:
        student(torch.ones(1, 5, dtype=torch.long))
    heads = heads or 4
    assert outputs.queries_BHLD[1].shape == outputs.keys_BHLD[1].shape == (1, heads, 5, 24 // heads)


def test_tokenizers_of_equal_size_are_compared_by_what_they_do(tmp_path):
    teacher, same = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b")
    check_tokenizers(teacher, same)
    state = teacher.backend_tokenizer.to_str()
    swapped = state.replace('"film"', '"?"').replace('"movie"', '"film"').replace('"?"', '"movie"')
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(swapped))
    with pytest.raises(UserError, match="2 of 28 tokens are not the same .*such as '(film|movie)'"):
        check_tokenizers(teacher, other)
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state))
    other.backend_tokenizer.pre_tokenizer = WhitespaceSplit()
    with pytest.raises(UserError, match="the teacher's tokenizer makes .*, the student's .*same tokenizer"):
        check_tokenizers(teacher, other)


@pytest.mark.parametrize(
    "head", [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification]
)
def test_padding_that_changes_predictions_is_refused(tmp_path, head):
    torch.manual_seed(0)
    tokenizer, model = make_tokenizer(tmp_path), head.from_config(tiny_config())
    check_padding(model, tokenizer)
    tokenizer.padding_side = "left"
    with pytest.raises(
        UserError, match='changes by .* when it is padded: its tokenizer pads on the left; set "padding_side"'
    ):
        check_padding(model, tokenizer)
    tokenizer.padding_side, tokenizer.model_input_names = "right", ["input_ids"]
    with pytest.raises(UserError, match="gives no attention_mask; add it"):
        check_padding(model, tokenizer)


def test_a_model_that_always_says_the_same_does_not_change_with_padding_and_one_of_nan_is_damaged(tmp_path):
    tokenizer, model = (
        make_tokenizer(tmp_path),
        AutoModelForSequenceClassification.from_config(tiny_config()),
    )
    torch.nn.init.zeros_(model.classifier.weight)
    check_padding(model, tokenizer)
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    with pytest.raises(UserError, match="no finite numbers: its weights are damaged"):
        check_padding(model, tokenizer)


def test_padding_on_the_left_is_fine_for_a_model_that_reads_it_so(tmp_path):
    config = AutoConfig.for_model("modernbert", **SIZES, classifier_pooling="mean", pad_token_id=0, cls_token_id=2, sep_token_id=3)  # fmt: skip
    tokenizer = make_tokenizer(tmp_path)
    tokenizer.padding_side = "left"
    check_padding(AutoModelForSequenceClassification.from_config(config), tokenizer)


def test_a_tokenizer_whose_ids_the_model_does_not_know_is_refused(tmp_path):
    config = tiny_config()
    config.vocab_size = 3
    with pytest.raises(UserError, match=r"cannot read its tokenizer's input_ids, .*give the model its own"):
        check_padding(AutoModel.from_config(config), make_tokenizer(tmp_path))


SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 50,
}
OPERATIONS = [
    BertConfig(**SIZES),
    DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=24, vocab_size=50),
    ElectraConfig(**SIZES, embedding_size=8),
    AlbertConfig(**SIZES, embedding_size=8),
    MobileBertConfig(**SIZES, embedding_size=8, true_hidden_size=8, intra_bottleneck_size=8),
    ModernBertConfig(**SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    DebertaV2Config(**SIZES),
]


@pytest.mark.parametrize("config", OPERATIONS, ids=lambda config: config.model_type)
def test_operations_are_those_of_the_linear_layers_and_of_attention(config):
    """Whatever stands between the layers: gated feed-forwards (ModernBERT), bottlenecks (MobileBERT), shared layers (ALBERT)."""
    length, products = 9, 0

    def count(module, inputs, output):
        nonlocal products
        products += 2 * module.weight.numel() * (output.numel() // output.shape[-1])

    model = AutoModel.from_config(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(input_ids=torch.ones(1, length, dtype=torch.long))
    width = getattr(config, "true_hidden_size", config.hidden_size)
    attention = 4 * length**2 * width * config.num_hidden_layers
    if config.model_type.startswith("deberta"):  # scores of relative positions, too
        assert products + attention <= forward_flops(config, length, length) < 2 * (products + attention)
    else:
        assert forward_flops(config, length, length) == products + attention
    assert forward_flops(config, 10 * length, length) == 10 * forward_flops(config, length, length)


def test_sizes_that_do_not_go_together_are_refused_in_a_line():
    config = MobileBertConfig(hidden_size=24, num_attention_heads=3, true_hidden_size=16, num_hidden_layers=1)
    with pytest.raises(UserError, match="a mobilebert of these sizes cannot compute a row of 4 tokens .mat1"):
        forward_flops(config, 4, 4)
