"""What must fit between tokenizer, teacher and student before any work is done."""

from transformers import PretrainedConfig

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
    """Floating-point operations of a forward pass over `tokens` tokens in rows of about `length`."""
    if hasattr(config, "forward_flops"):  # a student that is not a transformer
        return config.forward_flops(tokens)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", getattr(config, "hidden_dim", 4 * width))
    per_token = 8 * width * width + 4 * width * inner + 4 * width * length
    return config.num_hidden_layers * per_token * tokens
