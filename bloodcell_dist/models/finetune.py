"""Fine-tuning: which layers train in a stage, and how fast each.

A network is a row of blocks in the order of depth (stem, residual blocks, top), then the head. A stage trains the head,
and the last share of the blocks or all of them. What does not train is frozen whole: its weights stay as they are to
the bit, its BatchNorm keeps its statistics and works in inference mode, its stochastic depth drops nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras

from bloodcell_dist.models.backbones import BACKBONES


@dataclass(frozen=True)
class Part:
    """What trains in a stage.

    Attributes:
        train: `head`, `all` or `last:0.4`.
        freeze_batchnorm: the backbone's BatchNorm layers stay frozen in any case.
    """

    train: str
    freeze_batchnorm: bool = False

    def trained_blocks(self, num_blocks: int) -> int:
        """How many of the last blocks train; a share is rounded up, so that it trains at least one."""
        if self.train == "head":
            return 0
        if self.train == "all":
            return num_blocks
        return math.ceil(float(self.train.removeprefix("last:")) * num_blocks - 1e-9)


class Depth:
    """A network's layers by block.

    Args:
        model: of `build_classifier`.

    Attributes:
        blocks: layers of each block, from the pictures to the head, which is not among them. Layers without a block,
            such as the scaling of pictures, have no weights.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        pattern = re.compile(BACKBONES[model.name].blocks)
        blocks: dict[str, list[Any]] = {}
        for layer in model.layers:
            found = pattern.search(layer.name)
            if found:
                blocks.setdefault("".join(filter(None, found.groups())), []).append(layer)
        self.blocks: list[list[Any]] = list(blocks.values())

    def freeze(self, part: Part) -> list[Any]:
        """Freeze all but `part`; the variables that train, in the order of `model.weights`.

        Functions that were traced before keep what they had.
        """
        first = len(self.blocks) - part.trained_blocks(len(self.blocks))
        for place, block in enumerate(self.blocks):
            for layer in block:
                fixed = part.freeze_batchnorm and isinstance(layer, keras.layers.BatchNormalization)
                layer.trainable = place >= first and not fixed
        return list(self._model.trainable_variables)

    def rates(self, decay: float) -> list[float]:
        """The factor of the learning rate for every weight, in the order of `model.weights`.

        1 for the head, and `decay` times less with each block below it ("layer-wise rate decay", Clark et al.,
        arXiv 2003.10555; Liu et al., arXiv 2201.03545, use it for ConvNeXt).
        """
        factors = {
            id(variable): decay ** (len(self.blocks) - place)
            for place, block in enumerate(self.blocks)
            for layer in block
            for variable in layer.weights
        }
        return [factors.get(id(variable), 1.0) for variable in self._model.weights]


def weight_names(model: keras.Model) -> list[str]:
    """A unique name for every weight of a flat model, in the order of `model.weights`: `stem_conv/kernel`.

    Keras' paths would not do: ConvNeXt's scales are `variable_17` there, by what was built before in the process.
    """
    names = {
        id(variable): f"{layer.name}/{re.sub(r'_[0-9]+$', '', variable.name)}"
        for layer in model.layers
        for variable in layer.weights
    }
    return [names[id(variable)] for variable in model.weights]


def batchnorm_layers(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorm layers that work in training mode now: those that are not frozen."""
    layers: Sequence[Any] = model.layers
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
