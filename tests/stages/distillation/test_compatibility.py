"""What must fit before any work."""

import pytest
from transformers import AutoConfig

from checkpoints.errors import UserError
from stages.distillation.compatibility import check_length


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_of_514_positions_robertas_kind_has_512_for_word_pieces(kind):
    config = AutoConfig.for_model(kind, max_position_embeddings=514, pad_token_id=1)
    check_length(config, 512)
    with pytest.raises(UserError, match="max_length: 513 tokens are above the model's limit of 512"):
        check_length(config, 513)
