"""What must fit between tokenizer, teacher and student before any work is done."""

from transformers import PretrainedConfig

from checkpoints.errors import UserError


def check_vocabularies(teacher: PretrainedConfig, student: PretrainedConfig, tokens: int) -> None:
    """Teacher, student and tokenizer must agree on the tokens.

    Raises:
        UserError: they do not.
    """
    if teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"the teacher's vocabulary has {teacher.vocab_size} tokens, the student's {student.vocab_size}: "
            "give a student made from a teacher of the same vocabulary"
        )
    if tokens > teacher.vocab_size:
        raise UserError(
            f"the tokenizer knows {tokens} tokens, the models {teacher.vocab_size}: "
            "the directory holds a tokenizer of another model"
        )


def check_length(config: PretrainedConfig, max_length: int, name: str) -> None:
    """Rows must fit the model's positions (RoBERTa's kind keeps those up to its padding token for itself).

    Raises:
        UserError: they do not.
    """
    if not hasattr(config, "max_position_embeddings"):
        return  # it counts no positions
    kept = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert") else 0
    limit = config.max_position_embeddings - kept
    if max_length > limit:
        raise UserError(f"{name}.max_length={max_length} is above the model's limit of {limit} tokens")


def forward_flops(config: PretrainedConfig, tokens: float, length: float) -> float:
    """Floating-point operations of a forward pass over `tokens` tokens in rows of about `length`."""
    if hasattr(config, "forward_flops"):  # a kind of student that is no transformer
        return config.forward_flops(tokens)
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", getattr(config, "hidden_dim", 4 * width))
    per_token = 8 * width * width + 4 * width * inner + 4 * width * length
    return config.num_hidden_layers * per_token * tokens
