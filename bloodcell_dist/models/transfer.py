"""Weights from a file into a network: layer by layer, in order, with shapes compared first."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import BACKBONES, HEAD
from bloodcell_dist.models.rebuild import IMAGENET_MEAN, IMAGENET_STD
from bloodcell_dist.models.stored import StoredLayer, classes_of, read_layers

log = logging.getLogger(__name__)

SHOWN = 10
"""How many differing layers a message names."""


def load_weights(model: keras.Model, path: Path, class_names: Sequence[str]) -> None:
    """Give a network of `build_classifier` the weights in a file of the same architecture; logs what it took.

    The file may be stock or rebuilt (depthwise kernels in either layout), with or without a head. A head for as many
    classes is taken over, unless the file tells other ones, as exported models do; else the network keeps its new head.

    Args:
        model: the network.
        path: of the file.
        class_names: what the network is to tell apart, in label order.

    Raises:
        UserError: the file cannot be read, or layers differ; the message names them.
    """
    stored = read_layers(path, lambda: [stock_of(model), model])
    theirs = classes_of(path)
    for line in transfer(model, stored, str(path), take_head=theirs is None or theirs == list(class_names)):
        log.info(line)


def transfer(model: keras.Model, stored: Sequence[StoredLayer], origin: str, *, take_head: bool = True) -> list[str]:
    """Copy stored layers into a network; what there is to tell about it, a line each. Raises UserError.

    Args:
        model: of `build_classifier`.
        stored: in the network's order.
        origin: of the layers, for messages.
        take_head: whether a head that fits is wanted.
    """
    backbone = [layer for layer in model.layers if layer.weights and layer.name != HEAD]
    stored = _without_fixed(stored, model, origin)
    wanted, found = [_shapes(layer) for layer in backbone], [_common_shapes(layer) for layer in stored]
    if found[: len(wanted)] != wanted:
        raise UserError(_explain(model.name, backbone, stored, origin))
    for layer, source in zip(backbone, stored, strict=False):
        for variable, array in zip(layer.weights, source.arrays, strict=True):
            variable.assign(array.reshape(variable.shape))  # (7, 7, 1, C) and (7, 7, C, 1) hold the same numbers
    return [f"{origin}: {len(backbone)} layers loaded", *_load_head(model, stored[len(backbone) :], take_head)]


def stock_of(model: keras.Model) -> keras.Model:
    """The network of keras.applications that a network of `build_classifier` was made from, without a head."""
    return BACKBONES[model.name].stock(keras.Input(model.input_shape[1:]))


def _load_head(model: keras.Model, rest: Sequence[StoredLayer], take: bool) -> list[str]:
    """Take over the head if it fits; what there is to tell."""
    head = model.get_layer(HEAD)
    classes = head.units
    if not rest:
        return [f"the file has no head: the head for {classes} classes is new"]
    if not take:
        return [f"the file's head is for other classes and is left out: the head for {classes} classes is new"]
    if len(rest) == 1 and rest[0].shapes == _shapes(head):
        for variable, array in zip(head.weights, rest[0].arrays, strict=True):
            variable.assign(array)
        return [f"head for {classes} classes loaded too; it counts on the same classes in the same order"]
    width = rest[-1].shapes[-1][-1] if rest[-1].shapes[-1] else "?"
    layers = f" of {len(rest)} layers" if len(rest) > 1 else ""
    return [f"the file's head{layers} is for {width} classes and is left out: the head for {classes} classes is new"]


def _without_fixed(stored: Sequence[StoredLayer], model: keras.Model, origin: str) -> list[StoredLayer]:
    """The layers less a Normalization of the pictures, which is constant here. UserError if it scales otherwise."""
    kept = []
    for layer in stored:
        if layer.shapes != ((3,), (3,), ()):
            kept.append(layer)
            continue
        mean, variance = layer.arrays[0], layer.arrays[1]
        # ImageNet files of EfficientNetB0 hold the deviation as variance, see `rebuild`.
        if not (np.allclose(mean, IMAGENET_MEAN, atol=1e-3) and np.allclose(variance, IMAGENET_STD, atol=1e-3)):
            raise UserError(
                f"model.weights={origin}: layer {layer.name} scales pictures by mean {mean.tolist()} and variance "
                f"{variance.tolist()}; model.backbone={model.name} scales by ImageNet's, mean {list(IMAGENET_MEAN)} "
                f"and variance {list(IMAGENET_STD)}; give weights that were trained so"
            )
    return kept


def _shapes(layer: keras.layers.Layer) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(variable.shape) for variable in layer.weights)


def _common_shapes(layer: StoredLayer) -> tuple[tuple[int, ...], ...]:
    """Shapes with grouped kernels (h, w, 1, C) as the depthwise ones (h, w, C, 1) that they equal."""
    return tuple(
        (*shape[:2], shape[3], 1) if len(shape) == 4 and shape[2] == 1 and shape[0] > 1 else shape
        for shape in layer.shapes
    )


def _explain(name: str, backbone: Sequence[keras.layers.Layer], stored: Sequence[StoredLayer], origin: str) -> str:
    """Which layers differ, by the smallest set of insertions, deletions and replacements."""
    wanted, found = [_shapes(layer) for layer in backbone], [_common_shapes(layer) for layer in stored]
    lines = []
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, wanted, found, autojunk=False).get_opcodes():
        if kind == "equal" or (i == len(wanted) and kind == "insert"):  # what follows the backbone is a head
            continue
        for n in range(max(i_end - i, j_end - j)):
            lines.append(_difference(backbone[i + n : i_end][:1], stored[j + n : j_end][:1]))
    shown = "; ".join(lines[:SHOWN])
    more = f"; and {len(lines) - SHOWN} more differences" if len(lines) > SHOWN else ""
    return (
        f"model.weights={origin}: does not fit model.backbone={name} with its {len(backbone)} layers: "
        f"{shown}{more}; give weights of the same network, or set model.backbone to the file's"
    )


def _difference(wanted: Sequence[keras.layers.Layer], found: Sequence[StoredLayer]) -> str:
    theirs = f"{found[0].name} {_text(found[0].shapes)}" if found else "nothing"
    if not wanted:
        return f"the file has {theirs} besides"
    return f"{wanted[0].name} should be {_text(_shapes(wanted[0]))}, the file has {theirs}"


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "scalar" for shape in shapes)
