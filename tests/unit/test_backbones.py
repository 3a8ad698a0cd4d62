"""The networks: what goes in and comes out, in every precision, and their BatchNorm momentum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import BACKBONES, build_classifier
from bloodcell_dist.models.dropout import StatelessDropout

SIZE = 32


@pytest.fixture
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    keras.mixed_precision.set_dtype_policy(request.param)
    yield request.param
    keras.mixed_precision.set_dtype_policy("float32")


def build(backbone: str = "cnn", *, seed: int = 0, num_classes: int = 8) -> keras.Model:
    return build_classifier(backbone, image_size=SIZE, num_classes=num_classes, dropout=0.2, seed=seed)


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, SIZE, SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"], indirect=True)
def test_logits_and_weights_are_float32_in_every_precision(precision: str) -> None:
    model = build(num_classes=5)
    assert model.input_shape == (None, SIZE, SIZE, 3)
    assert model.input.dtype == "float32"
    logits = model(pictures(), training=False)
    assert logits.shape == (3, 5)
    assert logits.dtype == "float32"
    assert {variable.dtype for variable in model.weights} == {"float32"}
    compute = {"float32": "float32"}.get(precision, precision.removeprefix("mixed_"))
    assert model.get_layer("stage1_conv").compute_dtype == compute
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("precision", ["mixed_bfloat16"], indirect=True)
def test_mobilenet_gives_float32_logits_from_bfloat16(precision: str) -> None:
    logits = build("mobilenetv3small")(pictures(), training=False)
    assert logits.shape == (3, 8)
    assert logits.dtype == "float32"


@pytest.mark.parametrize(("backbone", "low", "high"), [("cnn", 0.38e6, 0.40e6), ("mobilenetv3small", 0.93e6, 0.96e6)])
def test_networks_are_as_large_as_they_say_and_named_for_checkpoints(backbone: str, low: float, high: float) -> None:
    one, two = build(backbone, seed=1), build(backbone, seed=1)
    assert low < one.count_params() < high
    paths = [variable.path for variable in one.weights]
    assert len(set(paths)) == len(paths)
    assert paths == [variable.path for variable in two.weights]
    for ours, theirs in zip(one.get_weights(), two.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_seed_gives_other_weights() -> None:
    one, two = build(seed=1).get_weights()[0], build(seed=2).get_weights()[0]
    assert np.abs(one - two).max() > 0.01


MARKS = dict.fromkeys(("efficientnetv2s", "convnextbase"), pytest.mark.slow)
MARKS["efficientnetv2m"] = pytest.mark.thorough  # V2S with more blocks
ALL = [pytest.param(name, marks=MARKS.get(name, ())) for name in BACKBONES]


@pytest.mark.parametrize("backbone", ALL)
def test_the_head_has_our_dropout_and_no_other(backbone: str) -> None:
    layers = [layer for layer in build(backbone).layers if isinstance(layer, keras.layers.Dropout)]
    assert [(type(layer), layer.rate, layer.name) for layer in layers] == [(StatelessDropout, 0.2, "head_dropout")]


SCALING = {
    "cnn": (-1.0, 1.0),
    "mobilenetv3small": (-1.0, 1.0),
    "efficientnetb0": (-0.485 / 0.229, (1 - 0.485) / 0.229),
    "efficientnetv2s": (-1.0, 255 / 128 - 1),
    "efficientnetv2m": (-1.0, 255 / 128 - 1),
    "convnextbase": (-0.485 / 0.229, (1 - 0.485) / 0.229),
}
"""What black and white become in the first channel."""


@pytest.mark.parametrize("backbone", ALL)
def test_raw_pictures_are_scaled_inside_as_each_family_wants(backbone: str) -> None:
    model = build(backbone)
    first = next(layer for layer in model.layers if layer.weights)
    scaling = keras.Model(model.input, first.input)
    for value, expected in zip((0.0, 255.0), SCALING[backbone], strict=True):
        scaled = scaling(np.full((1, SIZE, SIZE, 3), value, np.float32))
        np.testing.assert_allclose(np.asarray(scaled)[0, 8, 8, 0], expected, rtol=1e-5)


def test_a_backbone_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="resnet"):
        build("resnet")


@pytest.mark.parametrize("size", [16, 31])
def test_too_small_pictures_are_the_persons_mistake(size: int) -> None:
    sizes: dict[str, Any] = {"image_size": size, "num_classes": 8, "dropout": 0.2, "seed": 0}
    message = (
        f"data.image_size={size}: model.backbone=mobilenetv3small needs pictures of at least 32 pixels; "
        "set data.image_size=32, or model.backbone=cnn"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        build_classifier("mobilenetv3small", **sizes)
    assert build_classifier("cnn", **sizes).output_shape == (None, 8)
