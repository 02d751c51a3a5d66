"""Students that read images: transformers' own ViT, and DeiT with its distillation token."""

from collections.abc import Mapping
from typing import Any

from transformers import DeiTConfig, PretrainedConfig, ViTConfig

from checkpoints.errors import UserError

VISION: dict[str, type[ViTConfig] | type[DeiTConfig]] = {"vit": ViTConfig, "deit": DeiTConfig}
"""Kinds of students that read images, and their configs."""

WITH_TOKEN = "DeiTForImageClassificationWithTeacher"
"""The DeiT whose distillation token has a head of its own; transformers chooses it by the config's `architectures`."""


def vision_config(
    kind: str, sizes: dict[str, int], settings: Mapping[str, Any], teacher: PretrainedConfig, dropout: float
) -> PretrainedConfig:
    """The config of a student that reads the teacher's images in patches.

    Args:
        kind: of `VISION`.
        sizes: layers, width, feed_forward, heads.
        settings: `patch`, the pixels of a patch's side.
        teacher: its config; `image_size` says which images it reads.
        dropout: of hidden states and attention.

    Raises:
        UserError: a size is missing, a setting is unknown, or the patches do not fill the image.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{size} for a {kind}; give one above 0", argument=name)
    image = getattr(teacher, "image_size", 0)
    if not image:
        raise UserError(f"a {kind} reads images, and the teacher does not; leave it out", argument="kind")
    if others := settings.keys() - {"patch"}:
        raise UserError(f"{min(others)!r} is not a setting of a {kind}; it has patch", argument="settings")
    patch = settings.get("patch", 0)
    if not isinstance(patch, int) or patch < 1 or image % patch:
        raise UserError(
            f"{patch!r} must be a whole number that divides the side of the images, {image} pixels; give one that does",
            argument="settings.patch",
        )
    return VISION[kind](
        num_hidden_layers=sizes["layers"], hidden_size=sizes["width"], intermediate_size=sizes["feed_forward"],
        num_attention_heads=sizes["heads"], image_size=image, patch_size=patch, num_channels=teacher.num_channels,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        architectures=[WITH_TOKEN] if kind == "deit" else None,
    )  # fmt: skip
