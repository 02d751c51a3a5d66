"""Students that read images: transformers' own ViT, DeiT with its distillation token, and ResNet."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import DeiTConfig, PretrainedConfig, PreTrainedModel, ResNetConfig, ViTConfig

from checkpoints.errors import UserError

PATCHES: dict[str, type[ViTConfig] | type[DeiTConfig]] = {"vit": ViTConfig, "deit": DeiTConfig}
VISION = (*PATCHES, "resnet")
"""Kinds of students that read images."""

WITH_TOKEN = "DeiTForImageClassificationWithTeacher"
"""The DeiT whose distillation token has a head of its own; transformers chooses it by the config's `architectures`."""


def vision_config(
    kind: str, sizes: dict[str, int], settings: Mapping[str, Any], teacher: PretrainedConfig, dropout: float
) -> PretrainedConfig:
    """The config of a student that reads the teacher's images.

    Args:
        kind: one of `VISION`.
        sizes: layers, width, feed_forward, heads. A ResNet has the first two: blocks of each of its two stages, and
            channels of the first stage; the second has twice as many.
        settings: `patch`, the pixels of a patch's side; a ResNet has none.
        teacher: its config; `image_size` says which images it reads.
        dropout: dropout of hidden states and attention; a ResNet has none.

    Raises:
        UserError: a size is missing, a size or setting is not the kind's, or the patches do not fill the image.
    """
    own = sizes if kind in PATCHES else ("layers", "width")
    for name, size in sizes.items():
        if size < 1 and name in own:
            raise UserError(f"{size} for a {kind}; give one above 0", argument=name)
        if size and name not in own:
            raise UserError(
                f"{size} for a {kind}, whose sizes are layers, width; leave it out", argument=name
            )
    image = getattr(teacher, "image_size", 0)
    if not image:
        raise UserError(f"a {kind} reads images, and the teacher does not; leave it out", argument="kind")
    if kind == "resnet":
        if settings:
            raise UserError(f"{dict(settings)}: a resnet has none; leave them out", argument="settings")
        width = sizes["width"]
        config: Any = ResNetConfig(
            embedding_size=width, hidden_sizes=[width, 2 * width], depths=[sizes["layers"]] * 2,
            layer_type="basic", num_channels=teacher.num_channels,
        )  # fmt: skip
        config.image_size = image
        return config
    if others := settings.keys() - {"patch"}:
        raise UserError(f"{min(others)!r} is not a setting of a {kind}; it has patch", argument="settings")
    patch = settings.get("patch", 0)
    if not isinstance(patch, int) or patch < 1 or image % patch:
        raise UserError(
            f"{patch!r} must be a whole number that divides the side of the images, {image} pixels; give one that does",
            argument="settings.patch",
        )
    return PATCHES[kind](
        num_hidden_layers=sizes["layers"], hidden_size=sizes["width"], intermediate_size=sizes["feed_forward"],
        num_attention_heads=sizes["heads"], image_size=image, patch_size=patch, num_channels=teacher.num_channels,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        architectures=[WITH_TOKEN] if kind == "deit" else None,
    )  # fmt: skip


def draw_tokens(model: PreTrainedModel) -> None:
    """Draw the two tokens of a new DeiT and its positions from torch's generator, as its published code does.

    transformers begins them all at 0: then the two tokens are one and the same, and stay much alike.
    """
    if model.config.model_type == "deit":
        embeddings: Any = model.base_model.embeddings
        for drawn in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
            nn.init.trunc_normal_(drawn, std=model.config.initializer_range)
