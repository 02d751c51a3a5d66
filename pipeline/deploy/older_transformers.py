"""Exported settings under names that both transformers 4 (tried with 4.57) and 5 read."""

from typing import Any


def tokenizer_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a tokenizer_config.json for transformers 4 and 5."""
    settings = dict(settings)
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    return settings


def model_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return a config.json for transformers 4 and 5.

    ModernBERT's layers that attend to all tokens are every n-th in transformers 4. Where a student's are not, n is 0:
    there transformers 4 ends with an error, where it would answer wrongly.
    """
    rope, kinds = settings.get("rope_parameters") or {}, settings.get("layer_types") or []
    if not {"full_attention", "sliding_attention"} <= rope.keys():
        return settings
    every = [
        n
        for n in range(1, len(kinds) + 1)
        if kinds == ["sliding_attention" if i % n else "full_attention" for i in range(len(kinds))]
    ]
    return settings | {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        "global_attn_every_n_layers": every[0] if every else 0,
    }
