"""What must fit before any work."""

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoConfig,
    AutoModel,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
)

from checkpoints.errors import UserError
from stages.distillation.compatibility import check_length, forward_flops


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_of_514_positions_robertas_kind_has_512_for_word_pieces(kind):
    config = AutoConfig.for_model(kind, max_position_embeddings=514, pad_token_id=1)
    check_length(config, 512)
    with pytest.raises(UserError, match="max_length: 513 tokens are above the model's limit of 512"):
        check_length(config, 513)


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
