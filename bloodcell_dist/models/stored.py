"""Reading weight files of Keras in all their layouts, as a flat list of layers with arrays.

| file | layers are found by |
|---|---|
| `.keras` | building the model that the file describes |
| `.h5` of Keras 2 and of keras.applications, weights alone or a whole model | the order in which the file lists them |
| `.weights.h5` of Keras 3 | class and number (`layers/conv2d_3`): the file knows neither names nor order |

A nested model's layers in an old `.h5` are found by name as far as possible, since what is frozen stands last there.
"""

from __future__ import annotations

import functools
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from keras.src.legacy.saving.legacy_h5_format import load_attributes_from_hdf5_group
from keras.src.utils.naming import to_snake_case

from bloodcell_dist.errors import UserError

CLASS_NAMES = "class_names.json"
"""Name of the list of classes in the archives that we export."""


@dataclass(frozen=True)
class StoredLayer:
    """The weights of one layer.

    Attributes:
        name: in the file: the layer's, or its place where the file has no names.
        arrays: in Keras' order, such as kernel, bias.
    """

    name: str
    arrays: tuple[np.ndarray, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the arrays."""
        return tuple(array.shape for array in self.arrays)


def read_layers(path: Path, architectures: Callable[[], Sequence[keras.Model]]) -> list[StoredLayer]:
    """The layers with weights in a file, in the order of the network.

    Args:
        path: the file.
        architectures: makes the networks the file may hold the weights of; called where the file does not tell the
            order, as in Keras 3 weight files. Layers of the file that they do not have, such as a head, come last.

    Raises:
        UserError: there is no such file, or it is no weight file.
    """
    if not path.is_file():
        raise UserError(
            f"model.weights={path}: there is no such file; expected a Keras .h5, .weights.h5 or .keras file"
        )
    try:
        if zipfile.is_zipfile(path):
            return of_model(keras.saving.load_model(path, compile=False))
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return _read_hdf5(file, functools.cache(architectures))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, zipfile.BadZipFile) as error:
        # Keras puts the whole configuration before the exception that it met.
        reason = " ".join(str(error).rpartition("Exception encountered: ")[2].split())[:300]
        raise UserError(f"model.weights={path}: cannot be read as a Keras file ({reason})") from None
    raise UserError(f"model.weights={path}: is neither HDF5 nor a .keras archive; expected .h5, .weights.h5 or .keras")


def classes_of(path: Path) -> list[str] | None:
    """The classes of an exported model, in label order; None for a file that does not tell."""
    try:
        with zipfile.ZipFile(path) as archive:
            return list(json.loads(archive.read(CLASS_NAMES)))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None


def of_model(model: keras.Model) -> list[StoredLayer]:
    """The layers with weights of a network in memory; nested models are opened."""
    layers = [layer for layer in _flat(model.layers) if layer.weights]
    return [StoredLayer(layer.name, tuple(np.asarray(v) for v in layer.weights)) for layer in layers]


def _flat(layers: Iterable[Any]) -> Iterator[Any]:
    for layer in layers:
        yield from _flat(layer.layers) if isinstance(layer, keras.Model) else (layer,)


def _read_hdf5(file: h5py.File, architectures: Callable[[], Sequence[keras.Model]]) -> list[StoredLayer]:
    group = file.get("model_weights", file)
    names = load_attributes_from_hdf5_group(group, "layer_names")
    if names:
        return [layer for name in names for layer in _legacy_layers(name, group[name], architectures)]
    if "layers" not in file:
        raise ValueError("it holds neither layer_names nor layers")
    return _by_class(_variables(file), architectures())


def _legacy_layers(
    name: str, group: h5py.Group, architectures: Callable[[], Sequence[keras.Model]]
) -> list[StoredLayer]:
    """One layer, or those of a nested model, whose weights are called `inner_layer/kernel`.

    A nested model has all that does not train, such as BatchNorm's moving statistics, after what trains; going by the
    layer's name brings them together again.
    """
    found: dict[str, list[np.ndarray]] = {}
    for weight in load_attributes_from_hdf5_group(group, "weight_names"):
        found.setdefault(weight.rpartition("/")[0] or name, []).append(np.asarray(group[weight]))
    if len(found) <= 1:
        return [StoredLayer(name, tuple(arrays)) for arrays in found.values()]
    layers = [StoredLayer(inner.rpartition("/")[2], tuple(arrays)) for inner, arrays in found.items()]
    return _by_name(layers, architectures())


def _by_name(layers: list[StoredLayer], candidates: Sequence[keras.Model]) -> list[StoredLayer]:
    """The layers in the order of the first candidate network that has them all; else as they are."""
    for model in candidates:
        names = [layer.name for layer in _flat(model.layers)]
        places = {_unnumbered(name): place for place, name in enumerate(names)}
        places |= {name: place for place, name in enumerate(names)}
        found = [places.get(layer.name, places.get(_unnumbered(layer.name), -1)) for layer in layers]
        if min(found) >= 0 and len(set(found)) == len(found):
            return [layer for _, layer in sorted(zip(found, layers, strict=True), key=lambda pair: pair[0])]
    return layers


def _unnumbered(name: str) -> str:
    """Keras numbers layers without a name of their own by what was built before in the process."""
    return re.sub(r"_\d+$", "", name)


def _variables(file: h5py.File) -> dict[str, tuple[np.ndarray, ...]]:
    """Path of each layer in a Keras 3 file, such as `layers/conv2d_3`, to its arrays."""
    found: dict[str, tuple[np.ndarray, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and name.endswith("/vars") and len(item):
            arrays = (np.asarray(item[key]) for key in sorted(item, key=int))
            found[name.removesuffix("/vars")] = tuple(arrays)

    file["layers"].visititems(lambda name, item: visit(f"layers/{name}", item))
    return found


def _by_class(found: dict[str, tuple[np.ndarray, ...]], candidates: Sequence[keras.Model]) -> list[StoredLayer]:
    """The layers of a Keras 3 file in the order of the candidate network of which it holds the most."""
    beginnings = {""} | {f"{path.partition('/layers/')[0]}/" for path in found if "/layers/" in path}
    options = [
        [f"{beginning}{place}" for place in _places(model.layers, "layers/")]
        for model in candidates
        for beginning in sorted(beginnings)
    ]
    best = max(options, key=lambda places: sum(place in found for place in places))
    rest = sorted(set(found) - set(best), key=_natural)
    return [StoredLayer(place, found[place]) for place in [*best, *rest] if place in found]


def _places(layers: Sequence[Any], beginning: str) -> Iterator[str]:
    """Where Keras 3 puts the layers with weights, the head's aside: by class, numbered in order of appearance."""
    numbers: dict[str, int] = {}
    for layer in layers:
        kind = to_snake_case(type(layer).__name__)
        number = numbers[kind] = numbers.get(kind, -1) + 1
        place = f"{beginning}{kind}_{number}" if number else f"{beginning}{kind}"
        if isinstance(layer, keras.Model):
            yield from _places(layer.layers, f"{place}/layers/")
        elif layer.weights:
            yield place


def _natural(text: str) -> list[Any]:
    """Sorts conv2d_2 before conv2d_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
