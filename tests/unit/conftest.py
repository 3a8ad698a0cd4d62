"""Networks with weights that tell, and weight files as keras.applications gives them."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Keras is imported in the functions only: most tests do without it.

Stock = Callable[..., Any]

HASHES = {
    "mobilenetv3small": ("mobilenet_v3", "small_224_1.0_float"),
    "efficientnetb0": ("efficientnet", "b0"),
    "efficientnetv2s": ("efficientnet_v2", "-s"),
    "efficientnetv2m": ("efficientnet_v2", "-m"),
    "convnextbase": ("convnext", "convnext_base"),
}
"""Module of keras.applications and key in its table of hashes."""


@pytest.fixture(scope="session")
def fill() -> Callable[..., None]:
    """fill(model, seed): other random weights in every layer, BatchNorm statistics and LayerScale too.

    Kernels keep the size of what goes through them, and scales lie about 1, so that every layer matters: Keras' initial
    LayerScale of 1e-6 would hide all that happens in a block. A Normalization of pictures gets the values that the
    ImageNet files of EfficientNetB0 have, where the deviation stands for the variance.
    """

    def fill_model(model: Any, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        for layer in flat(model.layers):
            for variable in layer.weights:
                variable.assign(_draw(layer, variable, rng))

    return fill_model


@pytest.fixture(scope="module")  # no longer: until its end Keras has other hashes
def imagenet(fill: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stock]:
    """imagenet(backbone): the network that a person gets from keras.applications, with weights from a generated file.

    Its BatchNorm statistics are nearly those of random pictures: with statistics drawn at random the features of
    EfficientNetB0 hardly depended on the picture, by 2e-6.
    """
    import h5py
    import keras
    from keras.src.backend import config
    from keras.src.legacy.saving import legacy_h5_format

    from bloodcell_dist.models.backbones import BACKBONES
    from bloodcell_dist.models.imagenet import weights_file

    home = tmp_path_factory.mktemp("keras")
    (home / "models").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "_KERAS_DIR", str(home))  # KERAS_HOME, which Keras reads when it is imported

        def build(backbone: str, **options: Any) -> Any:
            path = home / "models" / weights_file(backbone).name
            if not path.exists():
                network = BACKBONES[backbone].constructor(weights=None, include_top=False, input_shape=(None, None, 3))
                fill(network)
                _settle(network)
                with h5py.File(path, "w") as file:
                    legacy_h5_format.save_weights_to_hdf5_group(file, network)
            module, key = HASHES[backbone]
            table = importlib.import_module(f"keras.src.applications.{module}").WEIGHTS_HASHES
            patch.setitem(table, key, ("0" * 32, hashlib.md5(path.read_bytes()).hexdigest()))
            keras.utils.set_random_seed(0)
            return BACKBONES[backbone].constructor(weights="imagenet", include_top=False, **options)

        yield build
    weights_file.cache_clear()


@pytest.fixture(scope="session")
def write() -> Callable[[Any, str, Path], Path]:
    """write(model, layout, folder): a weight file in one of Keras' layouts."""

    def write_file(model: Any, layout: str, folder: Path) -> Path:
        import h5py
        from keras.src.legacy.saving import legacy_h5_format

        if layout == "legacy weights":
            with h5py.File(folder / "w.h5", "w") as file:
                legacy_h5_format.save_weights_to_hdf5_group(file, model)
            return folder / "w.h5"
        name = {"legacy model": "m.h5", "weights": "w.weights.h5", "keras": "m.keras"}[layout]
        (model.save_weights if layout == "weights" else model.save)(folder / name)
        return folder / name

    return write_file


def flat(layers: Iterable[Any]) -> Iterator[Any]:
    """The layers, with nested models opened."""
    for layer in layers:
        yield from flat(layer.layers) if hasattr(layer, "layers") else (layer,)


def _draw(layer: Any, variable: Any, rng: np.random.Generator) -> Any:
    kind, shape = type(layer).__name__, tuple(variable.shape)
    if kind == "Normalization":
        return {"mean": (0.485, 0.456, 0.406), "variance": (0.229, 0.224, 0.225), "count": 0}[variable.name]
    if len(shape) > 1:
        inputs = np.prod(shape[:2]) if kind == "DepthwiseConv2D" else np.prod(shape[:-1])
        return rng.normal(0, inputs**-0.5, shape)
    if kind == "LayerScale" or variable.name in {"gamma", "moving_variance"}:
        return rng.uniform(0.5, 1.5, shape)
    return rng.normal(0, 0.2, shape)


def _settle(network: Any) -> None:
    """Set the BatchNorm statistics to those of random pictures, somewhat shaken.

    Checks more or less hidden by noise: noise alone looks alike in all pictures from afar. No variance is far below the
    others. Both would let BatchNorm blow up rounding, by thousands over EfficientNetB0's blocks.
    """
    rng = np.random.default_rng(1)
    checks = rng.uniform(0, 255, (32, 4, 4, 3)).repeat(16, axis=1).repeat(16, axis=2)
    share = rng.uniform(0, 1, (32, 1, 1, 1))
    pictures = share * checks + (1 - share) * rng.uniform(0, 255, checks.shape)
    norms = [layer for layer in network.layers if type(layer).__name__ == "BatchNormalization"]
    scalings = [layer for layer in network.layers if type(layer).__name__ == "Normalization" and layer.weights]
    for layer in scalings:  # EfficientNetB0's: with ImageNet weights Keras divides by the deviation itself
        layer.adapt_variance.assign(layer.adapt_variance**2)
        layer.finalize_state()
    for layer in norms:
        layer.momentum = 0.0
    if norms:
        network(pictures.astype(np.float32), training=True)
    for layer in scalings:
        layer.adapt_variance.assign(layer.adapt_variance**0.5)
    for layer in norms:
        mean, variance = (np.asarray(statistics) for statistics in (layer.moving_mean, layer.moving_variance))
        layer.moving_mean.assign(mean + rng.normal(0, 0.2, mean.shape) * np.sqrt(variance))
        layer.moving_variance.assign(variance * rng.uniform(0.7, 1.4, mean.shape) + 0.1 * variance.mean())
