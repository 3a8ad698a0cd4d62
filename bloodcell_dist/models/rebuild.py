"""A stock network of keras.applications rebuilt for training here: the same function, other layers.

- `Conv2D(groups=channels)`, which ConvNeXt uses, becomes `DepthwiseConv2D`: Keras sends the former through a slow path
  (`benchmarks/convnext_step.py` has figures and the reason).
- Stochastic depth becomes ours, which draws statelessly; where the stock network has none, it is added.
- Pre-processing computes in float32 under every precision policy, and EfficientNetB0's is always that of its ImageNet
  weights: stock Keras adds part of it only when it loads these weights itself.
- BatchNorm, convolutions, padding and activations have faster kernels for training on CPUs, see `kernels`.
- Nested models are opened, so that the layers lie flat.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import keras

from bloodcell_dist.models.dropout import StochasticDepth
from bloodcell_dist.models.kernels import DepthwiseConv2D, with_kernels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_PREPROCESSING = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.Resizing)
_STABLE_NAMES = {
    keras.layers.Rescaling: "rescale",
    keras.layers.Normalization: "normalize",
    keras.layers.GlobalAveragePooling2D: "pool",  # ConvNeXt's, and then
    keras.layers.LayerNormalization: "features_norm",
}
"""Names in place of those that Keras numbers by what was built before in the process: checkpoints go by names."""
_NUMBERED = re.compile(r"(rescaling|normalization|layer_normalization|global_average_pooling2d)(_\d+)?")
_ADDITIONS = {re.compile(r"expanded_conv_\d+_add"): 1, re.compile(r"block\d+[a-z]_add"): 0}
"""Where MobileNetV3's and the EfficientNets' residual blocks end, and which of the two summands is the branch."""


def rebuild(stock: keras.Model, *, drop_path: float) -> keras.Model:
    """The network `stock` from our layers, with weights of its own, drawn anew.

    Args:
        stock: a Functional model made of keras.applications and Keras layers.
        drop_path: stochastic depth rate of the last residual block; it rises from 0 at the first one in equal steps.
    """
    branches = [layer.name for layer in stock.layers if _ends_branch(layer)]
    drops = {name: (drop_path * place / max(1, len(branches) - 1), place) for place, name in enumerate(branches)}
    names = {layer.name: _stable_name(layer) for layer in stock.layers}

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            return layer  # opened when it is called
        if is_grouped(layer):
            return _depthwise(layer)
        return with_kernels(layer).from_config(_config(layer, names.get(layer.name, layer.name)))

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            return functools.reduce(lambda tensor, inner: clone(inner)(tensor), layer.layers, args[0])
        if isinstance(layer, keras.layers.Dropout) and layer.noise_shape is not None:
            return args[0]  # EfficientNets' own stochastic depth, which EfficientNetV2's first block lacks
        if layer.name not in drops:
            return layer(*args, **kwargs)
        rate, place = drops[layer.name]
        branch = _branch_of(layer.name)
        if branch is None:
            return _drop(args[0], rate, place, layer.name)
        summands = list(args[0])
        summands[branch] = _drop(summands[branch], rate, place, layer.name.removesuffix("add") + "drop")
        return layer(summands)

    return keras.models.clone_model(stock, clone_function=clone, call_function=call)


def is_grouped(layer: Any) -> bool:
    """Whether a layer is a depthwise convolution written as a grouped one."""
    return isinstance(layer, keras.layers.Conv2D) and 1 < layer.groups == layer.filters


def _ends_branch(layer: keras.layers.Layer) -> bool:
    """Whether a residual branch ends in this layer: where stochastic depth belongs."""
    return layer.name.endswith("_identity") or _branch_of(layer.name) is not None  # the former are ConvNeXt's


def _branch_of(addition: str) -> int | None:
    """Which summand of the layer of this name is a residual branch, if it is such an addition."""
    return next((branch for pattern, branch in _ADDITIONS.items() if pattern.fullmatch(addition)), None)


def _stable_name(layer: keras.layers.Layer) -> str:
    return _STABLE_NAMES[type(layer)] if _NUMBERED.fullmatch(layer.name) else layer.name


def _config(layer: Any, name: str) -> dict[str, Any]:
    config = {**layer.get_config(), "name": name}
    if isinstance(layer, _PREPROCESSING):
        config["dtype"] = "float32"  # bfloat16 has 8 bits: too few for pictures that were changed in float32
    if isinstance(layer, keras.layers.Normalization) and layer.input_mean is None:
        config |= {"mean": list(IMAGENET_MEAN), "variance": [deviation**2 for deviation in IMAGENET_STD]}
    return config


def _depthwise(layer: keras.layers.Conv2D) -> DepthwiseConv2D:
    config = layer.get_config()
    for key in ("filters", "groups"):
        del config[key]
    for part in ("initializer", "regularizer", "constraint"):
        config[f"depthwise_{part}"] = config.pop(f"kernel_{part}")
    return DepthwiseConv2D.from_config(config)


def _drop(branch: keras.KerasTensor, rate: float, place: int, name: str) -> keras.KerasTensor:
    return StochasticDepth(rate, place, name=name)(branch) if rate else branch
