"""The networks by name: raw [0, 255] pictures in, float32 logits out."""

from __future__ import annotations

from collections.abc import Callable

import keras

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.dropout import StatelessDropout


def build_classifier(
    backbone: str, *, image_size: int, num_classes: int, dropout: float, total_steps: int, seed: int
) -> keras.Model:
    """A network from raw pictures to logits, initialised from `seed`.

    Args:
        backbone: `cnn` or `mobilenetv3small`.
        image_size: side of the square pictures, pixels.
        num_classes: width of the head.
        dropout: rate before the head, 0 to below 1.
        total_steps: updates of the run, which set the memory of the BatchNorm statistics.
        seed: of the initial weights.

    Returns:
        A model of float32 [B, image_size, image_size, 3] in [0, 255] to float32 [B, num_classes]; the compute type
        in between follows Keras' global precision policy.

    Raises:
        UserError: the pictures are too small for the network.
    """
    keras.utils.set_random_seed(seed)
    pictures = keras.Input((image_size, image_size, 3), name="images")
    features = BACKBONES[backbone](pictures)
    features = keras.layers.GlobalAveragePooling2D(name="pool")(features)
    features = StatelessDropout(dropout, stream=0, name="head_dropout")(features)
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(features)
    model = keras.Model(pictures, logits, name=backbone)
    set_batchnorm_momentum(model, total_steps)
    return model


def set_batchnorm_momentum(model: keras.Model, total_steps: int) -> None:
    """Let moving statistics forget within a tenth of the run, at most over 1,000 updates.

    Keras' MobileNetV3 has momentum 0.999: after a short fine-tune its moving statistics are still the initial ones
    and a network at 98% training accuracy scores at chance.
    """
    memory = min(1000.0, max(2.0, total_steps / 10))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 1.0 - 1.0 / memory


def _mobilenetv3small(pictures: keras.KerasTensor) -> keras.KerasTensor:
    """MobileNetV3-Small (Howard et al., 2019), 0.94 M weights; scales its pictures to [-1, 1] itself."""
    size = pictures.shape[1]
    if size < 32:  # Keras refuses them too, without naming the setting
        raise UserError(
            f"data.image_size={size}: model.backbone=mobilenetv3small needs pictures of at least 32 pixels; "
            "set data.image_size=32, or model.backbone=cnn"
        )
    network = keras.applications.MobileNetV3Small(
        input_tensor=pictures, include_top=False, weights=None, include_preprocessing=True
    )
    return network.output


def _cnn(pictures: keras.KerasTensor) -> keras.KerasTensor:
    """A plain convolutional network: four times 3x3 convolution, BatchNorm, ReLU, pooling; 0.39 M weights."""
    features = keras.layers.Rescaling(1 / 127.5, -1.0, name="rescale")(pictures)
    for stage, width in enumerate((32, 64, 128, 256)):
        convolution = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"stage{stage}_conv")
        features = convolution(features)
        features = keras.layers.BatchNormalization(name=f"stage{stage}_norm")(features)
        features = keras.layers.ReLU(name=f"stage{stage}_relu")(features)
        features = keras.layers.MaxPooling2D(name=f"stage{stage}_pool")(features)
    return features


BACKBONES: dict[str, Callable[[keras.KerasTensor], keras.KerasTensor]] = {
    "cnn": _cnn,
    "mobilenetv3small": _mobilenetv3small,
}
