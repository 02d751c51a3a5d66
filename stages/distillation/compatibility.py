"""What must fit between tokenizer, teacher and student before any work is done."""

import json
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from checkpoints.errors import UserError
from stages.distillation.outputs import inputs_of, logits_of

PROBES = (
    "Don't re-use   two  spaces\tand\nlines",
    "Straße, CAFÉ, naïve, ǅ, Ω",
    "3.14 1,000 ½ x² №5",
    "电影很好看! ﬁlm ＡＢＣ 日本語",
    "👩\u200d👩\u200d👧 :-) #tag @user https://a.b/c_d",
)
"""Texts that tokenizers of one vocabulary may write differently: by case, accents, spaces, signs, scripts."""

PADDED_DIFFERENCE = 1e-3
"""Allowed between a text's outputs alone and padded, relative to the largest. Rounding makes a thousandth of it."""


def check_vocabularies(teacher: PretrainedConfig, student: PretrainedConfig, tokens: int) -> None:
    """Check that teacher, student and tokenizer have vocabularies of one size."""
    if teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"the teacher's vocabulary has {teacher.vocab_size} tokens, the student's {student.vocab_size}: "
            "give a student of a teacher with the same vocabulary, or none (student=), so that one is made"
        )
    if tokens > teacher.vocab_size:
        raise UserError(
            f"the tokenizer has {tokens} tokens, the models {teacher.vocab_size}: it is the tokenizer of another model; "
            "give the teacher its own"
        )


def check_tokenizers(teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Check that both tokenizers make the same token ids of a text, because the student reads the teacher's.

    Raises:
        ValueError: a token has another id, or a text is written otherwise.
    """
    ours, theirs = teacher.get_vocab(), student.get_vocab()
    others = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if others:
        raise UserError(
            f"{len(others):,} of {len(ours):,} tokens are not the same in the vocabularies of teacher and student "
            f"(such as {others[len(others) // 2]!r}): give a student of a teacher with the same vocabulary, or none (student=), so that one is made"
        )
    for text in PROBES:
        made, others = teacher.tokenize(text), student.tokenize(text)
        if made != others:
            raise UserError(
                f"of {text!r} the teacher's tokenizer makes {made}, the student's {others}: give a student made from a "
                "teacher with the same tokenizer"
            )


def check_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a model's outputs do not depend on the padding that its tokenizer adds.

    Raises:
        ValueError: they do, or the model cannot read what the tokenizer gives.
    """
    pairs = [["a b", " ".join("abcdefgh")], ["c", "d e"]]

    def shown(rows: int) -> torch.Tensor:
        inputs = tokenizer(*(texts[:rows] for texts in pairs), padding=True, return_tensors="pt")
        with torch.no_grad():
            output = model.eval()(**inputs_of(model, inputs))
        return (logits_of(output) if hasattr(output, "start_logits") else output[0])[0]

    try:
        alone, padded = shown(1), shown(2)
    except Exception as error:  # of indices beyond a table, of inputs that it needs
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the model cannot read its tokenizer's {', '.join(tokenizer.model_input_names)} of a pair ({reason}); give "
            "the model its own tokenizer"
        ) from error
    left = tokenizer.padding_side == "left"
    if alone.ndim == 2:  # of each token
        padded = padded[-len(alone) :] if left else padded[: len(alone)]
    if not (alone.isfinite().all() and padded.isfinite().all()):
        raise UserError(
            "what the model makes of a text are no finite numbers: its weights are damaged; give others"
        )
    difference, size = float((alone - padded).abs().max()), float(alone.abs().max())
    if difference <= PADDED_DIFFERENCE * size:
        return
    reason = "its layers mix tokens with padding; give another model"
    if left:
        reason = 'its tokenizer pads on the left; set "padding_side": "right" in tokenizer_config.json'
    if "attention_mask" not in tokenizer.model_input_names:
        reason = (
            'its tokenizer gives no attention_mask; add it to "model_input_names" in tokenizer_config.json'
        )
    raise UserError(
        f"what the model makes of a text changes by {difference:.2g} (of {size:.2g}) when it is padded: {reason}"
    )


def longest_row(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens that a model reads; None if there is no limit.

    RoBERTa and its kind count positions from their padding token, so the first ones are not used. The padding index of
    their table of positions tells how many.
    """
    limit = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit or module.num_embeddings, module.num_embeddings - unused)
    return limit


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """Check that rows of a length fit the model's positions."""
    if not hasattr(config, "max_position_embeddings"):
        return  # it has no position embeddings
    limit = _longest_row_of(config.to_json_string(use_diff=False))
    if limit is not None and max_length > limit:
        raise UserError(
            f"{max_length} tokens are above the model's limit of {limit}; lower it", argument="max_length"
        )


@cache
def _longest_row_of(settings: str) -> int | None:
    with torch.device("meta"):
        return longest_row(AutoModel.from_config(_config(settings)))


def forward_flops(config: PretrainedConfig, tokens: float, length: float) -> float:
    """Count the floating-point operations of an encoder's forward pass over `tokens` tokens in rows of about `length`.

    An image counts as one token. torch counts those of the matrix products. The config of a student that is not a transformer
    counts its own, of one row.
    """
    row = max(1, round(length))
    if hasattr(config, "forward_flops"):
        return config.forward_flops(row) * tokens / row
    return _counted(config.to_json_string(use_diff=False), row) * tokens / row


@cache
def _counted(settings: str, length: int) -> int:
    """Operations of one row. They are counted on torch's meta device, which computes and stores nothing."""
    config, error = _config(settings), None
    for device in ("meta", "cpu"):  # DeBERTa reads values of a tensor, which has none on the first
        try:
            return _count(config, length, device)
        except RuntimeError as reason:
            error = reason
    raise UserError(
        f"a {config.model_type} of these sizes cannot compute a row of {length} tokens ({' '.join(str(error).split()):.100}); "
        "give sizes that fit its kind"
    )


def _config(settings: str) -> PretrainedConfig:
    values = json.loads(settings)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _count(config: PretrainedConfig, length: int, device: str) -> int:
    with torch.device(device):
        model = AutoModel.from_config(config, attn_implementation="eager").eval()
        ids_1L = torch.ones(1, length, dtype=torch.long)
        pixels = torch.zeros(1, 3, *[getattr(config, "image_size", 1)] * 2)
    inputs = inputs_of(model, {"input_ids": ids_1L, "pixel_values": pixels})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    return counter.get_total_flops()
