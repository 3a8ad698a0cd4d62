"""Small tensors as few large ones: nothing is lost, and what belongs to a tensor reaches all of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.training.packs import LANES, LARGE, PACK, Pack, make_packs

SHAPES = [(3, 3, 8, 16), (16,), (), (LARGE,), (2, LANES), (1,), (LARGE // 4, 4), (LANES + 1,)]


def drawn(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def test_large_ones_are_alone_and_small_ones_together() -> None:
    assert [pack.members for pack in make_packs(SHAPES)] == [(0, 1, 2, 4, 5, 7), (3,), (6,)]


def test_a_full_pack_is_followed_by_another() -> None:
    size = LARGE - 1
    packs = make_packs([(size,)] * 20)
    assert [place for pack in packs for place in pack.members] == list(range(20))
    assert all(size * len(pack.members) <= PACK for pack in packs)
    assert len(packs) == math.ceil(20 / (PACK // size))


@pytest.mark.parametrize("pack", make_packs(SHAPES), ids=str)
def test_joined_and_parted_they_are_what_they_were(pack: Pack) -> None:
    values = drawn(pack.shapes)
    joined = pack.join([tf.constant(value) for value in values])
    assert tuple(joined.shape) == pack.shape
    for parts in (pack.split(joined), pack.cut(joined.numpy())):
        for part, value in zip(parts, values, strict=True):
            assert tuple(part.shape) == value.shape
            np.testing.assert_array_equal(part, value)
    assert math.isclose(np.abs(joined).sum(dtype=float), sum(np.abs(value).sum(dtype=float) for value in values))


@pytest.mark.parametrize("pack", make_packs(SHAPES), ids=str)
def test_a_number_of_each_tensor_reaches_all_of_its_numbers(pack: Pack) -> None:
    one, other = pack.spread([tf.range(len(SHAPES), dtype=tf.float32), tf.fill([len(SHAPES)], 0.5)])
    joined = pack.join([tf.constant(value) for value in drawn(pack.shapes)])
    for place, part, value in zip(pack.members, pack.split(joined * one + other), drawn(pack.shapes), strict=True):
        np.testing.assert_allclose(part, value * place + 0.5, rtol=1e-6)


def test_a_network_of_hundreds_of_weights_is_a_handful() -> None:
    model = build_classifier("mobilenetv3small", image_size=96, num_classes=8, dropout=0.0, seed=0)
    shapes = [tuple(variable.shape) for variable in model.trainable_variables]
    assert len(shapes) == 140
    assert len(make_packs(shapes)) < 10
