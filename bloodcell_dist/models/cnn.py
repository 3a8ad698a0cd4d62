"""The plain convolutional network, for comparison: what the backbones are measured against."""

from __future__ import annotations

import keras

from bloodcell_dist.models.pooling import PairwiseMaxPooling2D


def plain_cnn(input_tensor: keras.KerasTensor) -> keras.Model:
    """Four times 3x3 convolution, BatchNorm, ReLU, pooling; 0.39 M weights; scales its pictures to [-1, 1] itself."""
    features = keras.layers.Rescaling(1 / 127.5, -1.0)(input_tensor)
    for stage, width in enumerate((32, 64, 128, 256)):
        convolution = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"stage{stage}_conv")
        features = convolution(features)
        features = keras.layers.BatchNormalization(name=f"stage{stage}_norm")(features)
        features = keras.layers.ReLU(name=f"stage{stage}_relu")(features)
        features = PairwiseMaxPooling2D(name=f"stage{stage}_pool")(features)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), features)
