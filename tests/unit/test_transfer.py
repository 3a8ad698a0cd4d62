"""Weights from files into our networks: every layer gets its own, whatever the file's layout and what is around."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras.src.applications import convnext

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import BACKBONES, HEAD, build_classifier
from bloodcell_dist.models.stored import of_model
from bloodcell_dist.models.transfer import load_weights, stock_of, transfer
from bloodcell_dist.serving.export import export_model, plain_copy

Fill = Callable[..., None]
Write = Callable[[keras.Model, str, Path], Path]

LAYOUTS = ("legacy weights", "legacy model", "weights", "keras")
CLASSES = 5
NAMES = [f"class {number}" for number in range(CLASSES)]
BACKBONE_LAYERS = {"mobilenetv3small": 86, "efficientnetb0": 130, "convnextbase": 34}


def small_convnext(**options: Any) -> keras.Model:
    """ConvNeXt's layers and nesting in small; two blocks in a stage, whose layers have equal shapes."""
    return convnext.ConvNeXt([1, 1, 2, 1], [8, 16, 24, 32], name="convnext_base", **options)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "convnextbase", replace(BACKBONES["convnextbase"], constructor=small_convnext))
        yield


@pytest.fixture(scope="module")
def models() -> dict[str, keras.Model]:
    """Our networks, built once; what a test leaves in them another overwrites."""
    return {
        name: build_classifier(name, image_size=32, num_classes=CLASSES, dropout=0.2, seed=0)
        for name in ("cnn", *BACKBONE_LAYERS)
    }


def with_top(backbone: str, classes: int) -> keras.Model:
    """Stock, with the head that Keras gives it."""
    if backbone == "convnextbase":
        return small_convnext(input_shape=(32, 32, 3), classes=classes)
    constructor = {"mobilenetv3small": "MobileNetV3Small", "efficientnetb0": "EfficientNetB0"}[backbone]
    return getattr(keras.applications, constructor)(weights=None, classes=classes, input_shape=(32, 32, 3))


def stock(backbone: str) -> keras.Model:
    return BACKBONES[backbone].stock(keras.Input((32, 32, 3)))


def _pooled(features: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.GlobalAveragePooling2D()(features) if len(features.shape) == 4 else features


def in_sequential(backbone: str, ours: keras.Model) -> keras.Model:
    inner = stock(backbone)
    pool = [keras.layers.GlobalAveragePooling2D()] if len(inner.output.shape) == 4 else []
    head = [keras.layers.Dropout(0.2), keras.layers.Dense(CLASSES, activation="softmax")]
    return keras.Sequential([inner, *pool, *head])


def in_functional(backbone: str, ours: keras.Model) -> keras.Model:
    """As Keras' guide to transfer learning does it, partly frozen."""
    inner = stock(backbone)
    for layer in inner.layers[: len(inner.layers) // 2]:
        layer.trainable = False
    pictures = keras.Input((32, 32, 3))
    return keras.Model(pictures, keras.layers.Dense(CLASSES)(_pooled(inner(pictures, training=False))))


SOURCES: dict[str, Callable[[str, keras.Model], keras.Model]] = {
    "stock": lambda backbone, ours: stock(backbone),
    "stock with top": lambda backbone, ours: with_top(backbone, CLASSES),
    "stock with another top": lambda backbone, ours: with_top(backbone, 3),
    "exported": lambda backbone, ours: plain_copy(ours),
    "in Sequential": in_sequential,
    "in Functional": in_functional,
}


def assert_loaded(ours: keras.Model, source: keras.Model) -> None:
    """By name, which is not how weights are loaded. Only ConvNeXt's last norm is called otherwise by Keras."""
    expected = {layer.name: layer for layer in of_model(source)}
    for name in [name for name in expected if re.fullmatch(r"layer_normalization(_\d+)?|.*_head_layernorm", name)]:
        expected["features_norm"] = expected.pop(name)
    layers = [layer for layer in ours.layers if layer.weights and layer.name != HEAD]
    assert len(layers) == BACKBONE_LAYERS[ours.name]
    for layer in layers:
        for variable, array in zip(layer.weights, expected[layer.name].arrays, strict=True):
            np.testing.assert_array_equal(np.ravel(variable), np.ravel(array), err_msg=layer.name)


@pytest.mark.parametrize("source", list(SOURCES))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "backbone",
    ["convnextbase", *(pytest.param(b, marks=pytest.mark.slow) for b in ("mobilenetv3small", "efficientnetb0"))],
)
def test_every_layer_gets_its_weights(
    backbone: str,
    layout: str,
    source: str,
    models: dict[str, keras.Model],
    fill: Fill,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    write: Write,
) -> None:
    ours = models[backbone]
    fill(ours, seed=1)
    before = ours.get_layer(HEAD).get_weights()
    given = SOURCES[source](backbone, ours)
    fill(given, seed=2)
    path = write(given, layout, tmp_path)
    with caplog.at_level(logging.INFO, logger="bloodcell_dist"):
        load_weights(ours, path, NAMES)
    assert_loaded(ours, given)

    fits = source in {"exported", "in Sequential", "in Functional"} or (
        source == "stock with top" and backbone != "mobilenetv3small"  # whose top has two layers
    )
    expected = given.layers[-1].get_weights() or given.get_layer(HEAD).get_weights() if fits else before
    for array, wanted in zip(ours.get_layer(HEAD).get_weights(), expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    width = 3 if source == "stock with another top" else CLASSES
    layers = " of 2 layers" if backbone == "mobilenetv3small" else ""
    notice = (
        f"head for {CLASSES} classes loaded too; it counts on the same classes in the same order"
        if fits
        else f"the file has no head: the head for {CLASSES} classes is new"
        if source == "stock"
        else f"the file's head{layers} is for {width} classes and is left out: the head for {CLASSES} classes is new"
    )
    messages = [record.message for record in caplog.records if record.name.startswith("bloodcell_dist")]
    assert messages == [f"{path}: {BACKBONE_LAYERS[backbone]} layers loaded", notice]


def test_keras_efficientnet_that_was_trained_from_imagenet(
    imagenet: Callable[..., Any], models: dict[str, keras.Model], tmp_path: Path, write: Write
) -> None:
    """It has a second scaling of pictures, which is no layer of `stock_of`'s network; and it was trained on."""
    given = imagenet("efficientnetb0", input_shape=(32, 32, 3))
    assert [type(layer).__name__ for layer in given.layers[1:4]] == ["Rescaling", "Normalization", "Rescaling"]
    for layout in LAYOUTS:
        models["efficientnetb0"].set_weights([weight * 0 for weight in models["efficientnetb0"].get_weights()])
        load_weights(models["efficientnetb0"], write(given, layout, tmp_path), NAMES)
        assert_loaded(models["efficientnetb0"], given)


def test_stock_of_is_the_network_without_a_head(models: dict[str, keras.Model]) -> None:
    assert [layer.name for layer in of_model(stock_of(models["cnn"]))] == [
        f"stage{n}_{kind}" for n in range(4) for kind in ("conv", "norm")
    ]


def stored_cnn(models: dict[str, keras.Model]) -> list[Any]:
    return of_model(models["cnn"])


def changed(layer: Any, *shapes: tuple[int, ...]) -> Any:
    return replace(layer, arrays=tuple(np.zeros(shape, np.float32) for shape in shapes))


def test_mistakes_leave_the_network_alone(models: dict[str, keras.Model]) -> None:
    ours = models["cnn"]
    before = ours.get_weights()
    stored = stored_cnn(models)
    stored[0] = replace(stored[0], arrays=(stored[0].arrays[0] + 1,))
    stored[6] = changed(stored[6], (3, 3, 128, 255))
    with pytest.raises(UserError):
        transfer(ours, stored, "w.h5")
    for array, wanted in zip(ours.get_weights(), before, strict=True):
        np.testing.assert_array_equal(array, wanted)


BEGINNING = "model.weights=w.h5: does not fit model.backbone=cnn with its 8 layers: "
END = "; give weights of the same network, or set model.backbone to the file's"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (
            lambda stored: stored.__setitem__(2, changed(stored[2], (5, 5, 32, 64))),
            "stage1_conv should be 3x3x32x64, the file has stage1_conv 5x5x32x64",
        ),
        (
            lambda stored: stored.__setitem__(2, changed(stored[2], (3, 3, 32, 64), (64,))),
            "stage1_conv should be 3x3x32x64, the file has stage1_conv 3x3x32x64, 64",
        ),
        (lambda stored: stored.pop(3), "stage1_norm should be 64, 64, 64, 64, the file has nothing"),
        (lambda stored: stored.insert(3, changed(stored[3], (7,), ())), "the file has stage1_norm 7, scalar besides"),
        (
            lambda stored: stored.__setitem__(slice(6, None), []),
            "stage3_conv should be 3x3x128x256, the file has nothing; "
            "stage3_norm should be 256, 256, 256, 256, the file has nothing",
        ),
        (
            lambda stored: stored.clear(),
            "stage0_conv should be 3x3x3x32, the file has nothing; "
            "stage0_norm should be 32, 32, 32, 32, the file has nothing; "
            "stage1_conv should be 3x3x32x64, the file has nothing; "
            "stage1_norm should be 64, 64, 64, 64, the file has nothing; "
            "stage2_conv should be 3x3x64x128, the file has nothing; "
            "stage2_norm should be 128, 128, 128, 128, the file has nothing; "
            "stage3_conv should be 3x3x128x256, the file has nothing; "
            "stage3_norm should be 256, 256, 256, 256, the file has nothing",
        ),
    ],
    ids=["shape", "bias", "missing", "besides", "end missing", "empty"],
)
def test_the_layers_that_differ_are_named(
    change: Callable[[list[Any]], Any], difference: str, models: dict[str, keras.Model]
) -> None:
    stored = stored_cnn(models)
    change(stored)
    with pytest.raises(UserError) as caught:
        transfer(models["cnn"], stored, "w.h5")
    assert str(caught.value) == BEGINNING + difference + END


@pytest.mark.parametrize(("theirs", "loaded"), [(NAMES, True), (NAMES[::-1], False), (["other"] * CLASSES, False)])
def test_an_exported_head_is_taken_for_the_same_classes_in_the_same_order_only(
    theirs: list[str],
    loaded: bool,
    models: dict[str, keras.Model],
    fill: Fill,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours = models["cnn"]
    fill(ours, seed=3)
    expected = ours.get_layer(HEAD).get_weights()
    export_model(ours, tmp_path / "model.keras", theirs)
    fill(ours, seed=4)
    new = ours.get_layer(HEAD).get_weights()
    with caplog.at_level(logging.INFO, logger="bloodcell_dist"):
        load_weights(ours, tmp_path / "model.keras", NAMES)
    for array, wanted in zip(ours.get_layer(HEAD).get_weights(), expected if loaded else new, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert ("the file's head is for other classes and is left out" in caplog.text) is not loaded


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_another_network(layout: str, models: dict[str, keras.Model], tmp_path: Path, write: Write) -> None:
    path = write(stock("convnextbase"), layout, tmp_path)
    # without names and order the file's first layers are any
    theirs = "layers/conv2d 7x7x1x8, 8" if layout == "weights" else "convnext_base_stem_conv 4x4x3x8, 8"
    with pytest.raises(UserError) as caught:
        load_weights(models["mobilenetv3small"], path, NAMES)
    message = str(caught.value)
    beginning = (
        f"model.weights={path}: does not fit model.backbone=mobilenetv3small with its 86 layers: "
        f"conv should be 3x3x3x16, the file has {theirs}; conv_bn should be 16, 16, 16, 16, the file has "
    )
    assert message.startswith(beginning), message
    assert message.endswith(f" more differences{END}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_efficientnet_for_pictures_scaled_otherwise(
    layout: str, models: dict[str, keras.Model], fill: Fill, tmp_path: Path, write: Write
) -> None:
    """As Keras builds it for training from scratch: with a Normalization that does nothing."""
    given = stock("efficientnetb0")
    (layer,) = (layer for layer in given.layers if isinstance(layer, keras.layers.Normalization))
    layer.adapt_mean.assign([0.5, 0.25, 0.0])
    layer.adapt_variance.assign([1.0, 1.0, 2.0])
    path = write(given, layout, tmp_path)
    name = "layers/normalization" if layout == "weights" else layer.name
    words = (
        f"model.weights={path}: layer {name} scales pictures by mean [0.5, 0.25, 0.0] and variance [1.0, 1.0, 2.0]; "
        "model.backbone=efficientnetb0 scales by ImageNet's, mean [0.485, 0.456, 0.406] and variance "
        "[0.229, 0.224, 0.225]; give weights that were trained so"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        load_weights(models["efficientnetb0"], path, NAMES)
