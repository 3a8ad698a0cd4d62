"""The networks by name: raw [0, 255] pictures in, float32 logits out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import keras

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.cnn import plain_cnn
from bloodcell_dist.models.dropout import StatelessDropout
from bloodcell_dist.models.rebuild import rebuild

HEAD = "logits"
"""Name of the classification layer; all other weights are the backbone's."""


@dataclass(frozen=True)
class Backbone:
    """What we know of a network.

    Attributes:
        constructor: of the network; for those of keras.applications theirs.
        options: its further arguments.
        blocks: regular expression found in the name of every backbone layer with weights; its groups, joined, name the
            block the layer belongs to.
        smallest: side of the smallest pictures it takes, pixels.
        has_branches: whether it has residual branches, which stochastic depth can leave out.
    """

    constructor: Callable[..., keras.Model]
    blocks: str
    options: Mapping[str, Any] = field(default_factory=lambda: {"include_top": False, "weights": None})
    smallest: int = 32
    has_branches: bool = True

    def stock(self, pictures: keras.KerasTensor) -> keras.Model:
        """The network on an input tensor, without a head and with its weights drawn anew."""
        return self.constructor(input_tensor=pictures, **self.options)


_EFFICIENTNET_BLOCKS = r"^(stem|block\d+[a-z]|top)_"

BACKBONES: dict[str, Backbone] = {
    "cnn": Backbone(plain_cnn, r"^(stage\d+)_", {}, smallest=16, has_branches=False),
    # Howard et al., arXiv 1905.02244
    "mobilenetv3small": Backbone(
        keras.applications.MobileNetV3Small, r"^(expanded_conv)(_\d+)?_|^(conv(?:_1)?)(?:_bn)?$"
    ),
    # Tan and Le, arXiv 1905.11946
    "efficientnetb0": Backbone(keras.applications.EfficientNetB0, _EFFICIENTNET_BLOCKS),
    # Tan and Le, arXiv 2104.00298
    "efficientnetv2s": Backbone(keras.applications.EfficientNetV2S, _EFFICIENTNET_BLOCKS),
    "efficientnetv2m": Backbone(keras.applications.EfficientNetV2M, _EFFICIENTNET_BLOCKS),
    # Liu et al., arXiv 2201.03545. It pools before its last normalization, as the paper's head does; Keras' network
    # without a head normalizes each place instead, if not told to pool.
    "convnextbase": Backbone(
        keras.applications.ConvNeXtBase,
        r"(stem)_|(downsampling)_(?:layernorm|conv)(_\d)|(stage_\d_block_\d+)_|(features)_norm",
        {"include_top": False, "weights": None, "pooling": "avg"},
    ),
}


def build_classifier(
    backbone: str,
    *,
    image_size: int,
    num_classes: int,
    dropout: float,
    seed: int,
    input_size: int | None = None,
    drop_path: float = 0.0,
) -> keras.Model:
    """A network from raw pictures to logits, initialised from `seed`.

    Args:
        backbone: a key of `BACKBONES`.
        image_size: side of the square pictures, pixels.
        num_classes: width of the head.
        dropout: rate before the head, 0 to below 1.
        seed: of the initial weights.
        input_size: side to which pictures are enlarged first, on the device; None leaves them as they are.
        drop_path: stochastic depth rate of the last residual block, 0 to below 1.

    Returns:
        A flat Functional model of float32 [B, image_size, image_size, 3] in [0, 255] to float32 [B, num_classes]; the
        compute type in between follows Keras' global precision policy.

    Raises:
        UserError: the pictures are too small for the network, `input_size` would shrink them, or there are no branches
            to drop.
    """
    known = BACKBONES[backbone]
    _check(backbone, known, image_size, input_size, drop_path)
    pictures = keras.Input((image_size, image_size, 3), name="images")
    features = known.stock(_resized(pictures, image_size, input_size)).output
    stock = keras.Model(pictures, _head(features, num_classes, dropout))
    keras.utils.set_random_seed(seed)
    model = rebuild(stock, drop_path=drop_path)
    model.name = backbone
    return model


def _resized(pictures: keras.KerasTensor, image_size: int, input_size: int | None) -> keras.KerasTensor:
    if input_size is None or input_size == image_size:
        return pictures
    return keras.layers.Resizing(input_size, input_size, name="resize")(pictures)


def _head(features: keras.KerasTensor, num_classes: int, dropout: float) -> keras.KerasTensor:
    if len(features.shape) == 4:
        features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    features = StatelessDropout(dropout, stream=0, name="head_dropout")(features)
    return keras.layers.Dense(num_classes, dtype="float32", name=HEAD)(features)


def _check(backbone: str, known: Backbone, image_size: int, input_size: int | None, drop_path: float) -> None:
    side, key = (image_size, "data.image_size") if input_size is None else (input_size, "model.input_size")
    if side < known.smallest:  # Keras refuses them too, without naming the setting
        raise UserError(
            f"{key}={side}: model.backbone={backbone} needs pictures of at least {known.smallest} pixels; "
            f"set {key}={known.smallest}, or model.backbone=cnn"
        )
    if side < image_size:
        raise UserError(
            f"model.input_size={side} is smaller than data.image_size={image_size}: the network only enlarges; "
            f"set data.image_size={side}, which shrinks the pictures once, when they are read"
        )
    if drop_path and not known.has_branches:
        raise UserError(
            f"model.drop_path={drop_path}: model.backbone={backbone} has no residual branches to leave out; use 0"
        )
