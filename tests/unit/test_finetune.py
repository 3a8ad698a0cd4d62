"""Blocks, freezing, rates by depth, and names of weights that do not depend on history."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.batchnorm import Recalibration
from bloodcell_dist.models.finetune import Depth, Part, batchnorm_layers, weight_names

BLOCKS = {
    "cnn": (4, "stage0_conv", "stage3_norm"),
    "mobilenetv3small": (13, "conv", "conv_1_bn"),
    "efficientnetb0": (18, "stem_conv", "top_bn"),
    "efficientnetv2s": (42, "stem_conv", "top_bn"),
    "efficientnetv2m": (59, "stem_conv", "top_bn"),
    "convnextbase": (41, "convnext_base_stem_conv", "features_norm"),
}
"""Number of blocks, the first layer with weights, the last one before the head."""
LARGE = ("efficientnetv2s", "efficientnetv2m", "convnextbase")


def network(backbone: str = "mobilenetv3small", drop_path: float = 0.0) -> keras.Model:
    return build_classifier(backbone, image_size=32, num_classes=4, dropout=0.1, seed=0, drop_path=drop_path)


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return network(drop_path=0.2)


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in BLOCKS]
)
def test_every_weight_but_the_heads_is_in_a_block_in_the_order_of_depth(backbone: str) -> None:
    model = network(backbone)
    depth = Depth(model)
    count, first, last = BLOCKS[backbone]
    assert len(depth.blocks) == count
    weighted = [layer.name for block in depth.blocks for layer in block if layer.weights]
    assert sorted([*weighted, "logits"]) == sorted(layer.name for layer in model.layers if layer.weights)
    assert weighted == [layer.name for layer in model.layers if layer.weights][:-1]
    assert (weighted[0], weighted[-1]) == (first, last)


@pytest.mark.parametrize(
    ("train", "of_ten", "of_thirteen"), [("head", 0, 0), ("all", 10, 13), ("last:0.4", 4, 6), ("last:0.01", 1, 1)]
)
def test_a_share_of_the_blocks_is_rounded_up(train: str, of_ten: int, of_thirteen: int) -> None:
    assert Part(train).trained_blocks(10) == of_ten
    assert Part(train).trained_blocks(13) == of_thirteen


def test_the_head_alone(small: keras.Model) -> None:
    variables = Depth(small).freeze(Part("head"))
    assert [variable.path for variable in variables] == ["logits/kernel", "logits/bias"]
    assert batchnorm_layers(small) == []


def test_freezing_and_thawing_give_the_same_variables_in_the_same_order(small: keras.Model) -> None:
    depth = Depth(small)
    everything = [id(variable) for variable in depth.freeze(Part("all"))]
    part = [id(variable) for variable in depth.freeze(Part("last:0.4"))]
    assert part == everything[-len(part) :]
    assert 2 < len(part) < len(everything)
    assert [id(variable) for variable in depth.freeze(Part("all"))] == everything


def test_frozen_batchnorm_stays_frozen_in_every_stage(small: keras.Model) -> None:
    depth = Depth(small)
    kinds = {variable.name for variable in depth.freeze(Part("all", freeze_batchnorm=True))}
    assert kinds == {"kernel", "bias"}
    assert batchnorm_layers(small) == []
    depth.freeze(Part("all"))
    assert len(batchnorm_layers(small)) == 34


def test_frozen_layers_work_in_inference_mode(small: keras.Model) -> None:
    """BatchNorm with its stored statistics, stochastic depth without drops: a frozen backbone gives fixed features."""
    depth = Depth(small)
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    features = keras.Model(small.input, small.get_layer("pool").output)
    depth.freeze(Part("head"))
    before = [np.asarray(variable) for variable in small.weights]
    np.testing.assert_array_equal(features(images, training=True), features(images, training=False))
    for variable, value in zip(small.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    depth.freeze(Part("all"))
    assert np.abs(np.asarray(features(images, training=True) - features(images, training=False))).max() > 1e-3


def test_recalibration_leaves_frozen_statistics_alone() -> None:
    model = network()
    depth = Depth(model)
    depth.freeze(Part("last:0.4"))
    frozen = [
        variable
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable
        for variable in layer.weights
    ]
    live = batchnorm_layers(model)
    assert frozen and live
    before, moved = [np.asarray(variable) for variable in frozen], np.asarray(live[-1].moving_variance)
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype(np.float32)
    Recalibration(model, xla=False)([keras.ops.convert_to_tensor(images)])
    for variable, value in zip(frozen, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert not np.array_equal(live[-1].moving_variance, moved)


def test_rates_fall_with_every_block_towards_the_pictures(small: keras.Model) -> None:
    rates = dict(zip(weight_names(small), Depth(small).rates(0.5), strict=True))
    assert rates["logits/kernel"] == rates["logits/bias"] == 1.0
    assert rates["conv_1/kernel"] == rates["conv_1_bn/gamma"] == 0.5
    assert rates["expanded_conv_10_expand/kernel"] == rates["expanded_conv_10_project_bn/beta"] == 0.25
    assert rates["expanded_conv_depthwise/kernel"] == 0.5**12
    assert rates["conv/kernel"] == 0.5**13
    assert set(Depth(small).rates(1.0)) == {1.0}


@pytest.mark.slow
def test_names_of_weights_do_not_depend_on_what_was_built_before() -> None:
    """Keras numbers ConvNeXt's unnamed scales through the process, and checkpoints go by names."""
    first = weight_names(network("convnextbase"))
    assert len(set(first)) == len(first)
    network("efficientnetb0")
    assert weight_names(network("convnextbase")) == first
