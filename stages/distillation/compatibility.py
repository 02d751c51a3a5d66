"""What must fit between tokenizer, teacher and student before any work is done."""

import json
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, PretrainedConfig

from checkpoints.errors import UserError


def check_vocabularies(teacher: PretrainedConfig, student: PretrainedConfig, tokens: int) -> None:
    """Teacher, student and tokenizer must have the same vocabulary.

    Raises:
        ValueError: they do not.
    """
    if teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"the teacher's vocabulary has {teacher.vocab_size} tokens, the student's {student.vocab_size}: "
            "give a student made from a teacher of the same vocabulary"
        )
    if tokens > teacher.vocab_size:
        raise UserError(
            f"the tokenizer has {tokens} tokens, the models {teacher.vocab_size}: it is the tokenizer of another model; "
            "give the teacher its own"
        )


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """Rows must fit the model's positions (RoBERTa and its kind keep those up to the padding token for themselves).

    Raises:
        ValueError: they do not.
    """
    if not hasattr(config, "max_position_embeddings"):
        return  # it has no position embeddings
    kept = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    limit = config.max_position_embeddings - kept
    if max_length > limit:
        raise UserError(
            f"{max_length} tokens are above the model's limit of {limit}; lower it", argument="max_length"
        )


def forward_flops(config: PretrainedConfig, tokens: float, length: float) -> float:
    """Floating-point operations of an encoder's forward pass over `tokens` tokens in rows of about `length`.

    Those of its matrix products, as torch counts them; a student that is not a transformer knows its own.
    """
    if hasattr(config, "forward_flops"):
        return config.forward_flops(tokens)
    row = max(1, round(length))
    return _counted(config.to_json_string(use_diff=False), row) * tokens / row


@cache
def _counted(settings: str, length: int) -> int:
    """Operations of one row. They are counted on torch's meta device, which computes and stores nothing."""
    values = json.loads(settings)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    try:
        return _count(config, length, "meta")
    except RuntimeError:  # DeBERTa reads values of a tensor, which has none there
        return _count(config, length, "cpu")


def _count(config: PretrainedConfig, length: int, device: str) -> int:
    with torch.device(device):
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
        ids_1L = torch.ones(1, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids_1L)
    return counter.get_total_flops()
