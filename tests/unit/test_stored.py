"""Keras' weight files in every layout: all layers, in the network's order, bit for bit."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from bloodcell_dist.errors import UserError
from bloodcell_dist.models.stored import StoredLayer, of_model, read_layers

Fill = Callable[..., None]
Write = Callable[[keras.Model, str, Path], Path]

LAYOUTS = ("legacy weights", "legacy model", "weights", "keras")


def network(name: str = "inner") -> keras.Model:
    """Convolutions of equal shape, some with BatchNorm, a side branch; names in another order than the layers."""
    layers = keras.layers
    pictures = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 255)(pictures)
    for number in range(12):  # past 10, where conv2d_10 would sort before conv2d_2
        x = layers.Conv2D(3, 3, padding="same", use_bias=number % 2 == 0, name=f"conv{97 * number % 13}")(x)
        if number % 3 == 0:
            x = layers.BatchNormalization(name=f"norm{number}")(x)
        x = layers.ReLU()(x)
    side = layers.Conv2D(3, 1, name="zz_side")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="aa_last")(layers.Add()([x, side]))
    return keras.Model(pictures, x, name=name)


def as_sequential(inner: keras.Model) -> keras.Model:
    return keras.Sequential([inner, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4, name="head")])


def as_functional(inner: keras.Model) -> keras.Model:
    pictures = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(inner(pictures))
    return keras.Model(pictures, keras.layers.Dense(4, name="head")(features))


def write_keras2(model: keras.Model, path: Path, *, as_bytes: bool) -> None:
    """As Keras 2 wrote: every layer is listed, `conv/kernel:0` lies in a group of the layer's name."""

    def listed(names: Sequence[str]) -> Any:
        return np.array([name.encode() for name in names]) if as_bytes else list(names)

    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = listed([layer.name for layer in model.layers])
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.15.0"
        for layer in model.layers:
            group = file.create_group(layer.name)
            inner = of_model(layer) if isinstance(layer, keras.Model) else []
            weights = {f"{layer.name}/{variable.name}:0": variable for variable in layer.weights}
            if inner:
                weights = {f"{one.name}/weight_{n}:0": array for one in inner for n, array in enumerate(one.arrays)}
            group.attrs["weight_names"] = listed(list(weights)) if weights else np.zeros(0)
            for name, values in weights.items():
                group.create_dataset(name, data=np.asarray(values))


def forbidden() -> Sequence[keras.Model]:
    raise AssertionError("no network is needed to read this file")


def assert_equal(found: Sequence[StoredLayer], expected: Sequence[StoredLayer]) -> None:
    assert [layer.shapes for layer in found] == [layer.shapes for layer in expected]
    for one, other in zip(found, expected, strict=True):
        for array, wanted in zip(one.arrays, other.arrays, strict=True):
            np.testing.assert_array_equal(array, wanted, err_msg=f"{one.name} is not {other.name}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("around", [lambda inner: inner, as_sequential, as_functional], ids=["flat", "seq", "func"])
def test_every_layer_comes_back(
    layout: str, around: Callable[[keras.Model], keras.Model], fill: Fill, tmp_path: Path, write: Write
) -> None:
    model = around(network())
    fill(model)
    expected = of_model(model)
    assert len(expected) == 12 + 4 + 2 + (model.name != "inner")
    found = read_layers(write(model, layout, tmp_path), lambda: [network()])
    assert_equal(found, expected)
    if layout == "weights":
        place = "layers/functional/layers/" if model.name != "inner" else "layers/"
        assert found[0].name == f"{place}conv2d", "the file has no names"
    else:
        assert [layer.name for layer in found] == [layer.name for layer in expected]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_partly_frozen_nested_network_keeps_its_order(layout: str, fill: Fill, tmp_path: Path, write: Write) -> None:
    """Keras' old format has the weights that do not train behind all others there."""
    inner = network()
    for layer in inner.layers[:12]:
        layer.trainable = False
    model = as_sequential(inner)
    fill(model)
    assert_equal(read_layers(write(model, layout, tmp_path), lambda: [network()]), of_model(model))


@pytest.mark.parametrize("as_bytes", [True, False])
@pytest.mark.parametrize("around", [lambda inner: inner, as_functional], ids=["flat", "nested"])
def test_files_of_keras_2(
    as_bytes: bool, around: Callable[[keras.Model], keras.Model], fill: Fill, tmp_path: Path
) -> None:
    model = around(network())
    fill(model)
    write_keras2(model, tmp_path / "old.h5", as_bytes=as_bytes)
    found = read_layers(tmp_path / "old.h5", forbidden if model.name == "inner" else lambda: [network()])
    assert_equal(found, of_model(model))
    assert [layer.name for layer in found] == [layer.name for layer in of_model(model)]


def test_a_nested_network_of_other_names_is_read_as_listed(fill: Fill, tmp_path: Path, write: Write) -> None:
    model = as_sequential(network())
    fill(model)
    pictures = keras.Input((8, 8, 3))
    other = keras.Model(pictures, keras.layers.Conv2D(3, 3, name="other")(pictures))
    path = write(model, "legacy model", tmp_path)
    assert_equal(read_layers(path, lambda: [other]), of_model(model))


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_optimizer_and_metrics_are_left_out(layout: str, fill: Fill, tmp_path: Path, write: Write) -> None:
    model = as_sequential(network())
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(np.ones((2, 8, 8, 3)), np.zeros(2), verbose=0)
    fill(model)
    assert_equal(read_layers(write(model, layout, tmp_path), lambda: [network()]), of_model(model))


def test_a_file_without_names_is_read_as_the_candidate_it_holds_most_of(
    fill: Fill, tmp_path: Path, write: Write
) -> None:
    pictures = keras.Input((8, 8, 3))
    short = keras.Model(pictures, keras.layers.Conv2D(3, 3)(pictures))
    model = network()
    fill(model)
    path = write(model, "weights", tmp_path)
    for candidates in ([short, network()], [network(), short]):
        assert_equal(read_layers(path, lambda candidates=candidates: candidates), of_model(model))  # type: ignore[misc]


def test_what_the_candidates_lack_comes_last_in_natural_order(fill: Fill, tmp_path: Path, write: Write) -> None:
    pictures = keras.Input((8,))
    x = pictures
    for _ in range(12):
        x = keras.layers.Dense(8)(x)
    model = keras.Model(pictures, x)
    fill(model)
    short = keras.Model(pictures, keras.layers.Dense(8)(pictures))
    found = read_layers(write(model, "weights", tmp_path), lambda: [short])
    assert [layer.name for layer in found] == ["layers/dense", *(f"layers/dense_{n}" for n in range(1, 12))]
    assert_equal(found, of_model(model))


@pytest.mark.parametrize("name", ["none.h5", "folder"])
def test_a_missing_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    words = f"model.weights={tmp_path / name}: there is no such file; expected a Keras .h5, .weights.h5 or .keras file"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        read_layers(tmp_path / name, forbidden)


@pytest.mark.parametrize("content", [b"", b"layer,weight\n"])
def test_a_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "w.h5").write_bytes(content)
    words = (
        f"model.weights={tmp_path / 'w.h5'}: is neither HDF5 nor a .keras archive; expected .h5, .weights.h5 or .keras"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        read_layers(tmp_path / "w.h5", forbidden)


def test_hdf5_that_is_not_keras(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["images"] = np.zeros(3)
    words = (
        f"model.weights={tmp_path / 'w.h5'}: cannot be read as a Keras file (it holds neither layer_names nor layers)"
    )
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        read_layers(tmp_path / "w.h5", forbidden)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("legacy weights", r"cannot be read as a Keras file \(.*truncated file.*\)"),
        ("weights", r"cannot be read as a Keras file \(.*truncated file.*\)"),
        # an archive has its table of contents at its end
        ("keras", r"is neither HDF5 nor a \.keras archive; expected \.h5, \.weights\.h5 or \.keras"),
    ],
)
def test_a_truncated_file(layout: str, words: str, tmp_path: Path, write: Write) -> None:
    path = write(network(), layout, tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"^model.weights={re.escape(str(path))}: {words}$"):
        read_layers(path, lambda: [network()])


@pytest.mark.parametrize("member", ["config.json", "model.weights.h5"])
def test_a_damaged_archive(member: str, tmp_path: Path, write: Write) -> None:
    path = write(network(), "keras", tmp_path)
    content = bytearray(path.read_bytes())
    start = content.index(member.encode()) + 600
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^model.weights={re.escape(str(path))}: cannot be read as a Keras file "):
        read_layers(path, forbidden)


def test_an_archive_with_a_class_of_another_package(tmp_path: Path) -> None:
    class Unknown(keras.layers.Dense):
        """Not found by Keras, as it is no name of its module."""

    pictures = keras.Input((4,))
    keras.Model(pictures, Unknown(2)(pictures)).save(tmp_path / "m.keras")
    words = f"model.weights={tmp_path / 'm.keras'}: cannot be read as a Keras file (Could not locate class 'Unknown'"
    with pytest.raises(UserError, match=f"^{re.escape(words)}") as caught:
        read_layers(tmp_path / "m.keras", forbidden)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
