"""`model.keras`: raw pictures to probabilities, loadable by plain Keras without this package."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras

from bloodcell_dist.atomic import atomic_file
from bloodcell_dist.models.dropout import StatelessDropout
from bloodcell_dist.models.kernels import without_kernels
from bloodcell_dist.models.pooling import PairwiseMaxPooling2D
from bloodcell_dist.models.stored import CLASS_NAMES


def plain_copy(model: keras.Model) -> keras.Model:
    """The same network from Keras' own layers with a softmax at its end.

    Args:
        model: float32 [B, H, W, 3] in [0, 255] to logits [B, C].

    Returns:
        A model of the same input to float32 probabilities [B, C], with copies of the weights.
    """
    copy = keras.models.clone_model(model, clone_function=_plain_layer)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(copy.output)
    plain = keras.Model(copy.input, probabilities, name=model.name)
    plain.set_weights(model.get_weights())
    return plain


def export_model(model: keras.Model, path: Path, class_names: Sequence[str]) -> None:
    """Write `plain_copy(model)` as a .keras file, whole or not at all.

    The archive also holds `class_names.json`, in label order, which Keras does not look at.
    """
    with atomic_file(path) as temporary:
        plain_copy(model).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr(CLASS_NAMES, json.dumps(list(class_names)))


def _plain_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, StatelessDropout):
        return keras.layers.Dropout(layer.rate, layer.noise_shape, name=layer.name, dtype=layer.dtype_policy)
    if isinstance(layer, PairwiseMaxPooling2D):
        return keras.layers.MaxPooling2D(name=layer.name, dtype=layer.dtype_policy)
    config = layer.get_config()
    if "trainable" in config:
        config["trainable"] = True  # what was frozen in the last stage need not be so for whoever loads the model
    return without_kernels(layer).from_config(config)
