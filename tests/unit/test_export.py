"""model.keras and the predictor: what is exported answers alike in a Python without this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from bloodcell_dist.config import dump_yaml
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.predict import make_forward, predict
from bloodcell_dist.models.backbones import build_classifier
from bloodcell_dist.models.batchnorm import Recalibration
from bloodcell_dist.models.dropout import StatelessDropout
from bloodcell_dist.models.finetune import Depth, Part
from bloodcell_dist.serving.export import export_model, plain_copy
from bloodcell_dist.serving.predictor import Predictor
from bloodcell_dist.settings import BLOOD_CELLS, Settings

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

PLAIN_KERAS = """
import sys
import keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
assert not any(name.startswith("bloodcell_dist") for name in sys.modules)
images = np.load(sys.argv[2])
np.savez(sys.argv[3], call=model(images, training=False), predict=model.predict(images, verbose=0))
"""


@pytest.fixture(scope="module")
def model() -> keras.Model:
    network = build_classifier("cnn", image_size=32, num_classes=8, dropout=0.3, seed=4)
    Recalibration(network, False)([keras.ops.convert_to_tensor(IMAGES)])
    return network


@pytest.fixture(scope="module")
def expected(model: keras.Model) -> np.ndarray:
    probabilities = predict(make_forward(model, logits=True, xla=False), IMAGES, 6)
    assert np.ptp(probabilities, axis=0).max() > 1e-3  # the pictures are told apart
    return probabilities


@pytest.mark.slow
def test_plain_keras_in_a_fresh_process_gives_the_same_probabilities(
    tmp_path: Path, model: keras.Model, expected: np.ndarray
) -> None:
    export_model(model, tmp_path / "model.keras", BLOOD_CELLS)
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    np.save(tmp_path / "images.npy", IMAGES)
    arguments = [str(tmp_path / name) for name in ("model.keras", "images.npy", "out.npz")]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN_KERAS, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "out.npz")
    for way in ("call", "predict"):
        assert found[way].dtype == np.float32
        np.testing.assert_allclose(found[way], expected, rtol=1e-5, atol=1e-6)


def test_the_copy_is_of_keras_own_layers_and_leaves_the_model_alone(model: keras.Model) -> None:
    before = model.get_weights()
    plain = plain_copy(model)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    assert plain.get_layer("head_dropout").rate == 0.3
    plain.set_weights([weight * 0 for weight in plain.get_weights()])
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(model.get_layer("head_dropout"), StatelessDropout)


def test_the_copy_can_be_fine_tuned_with_its_dropout_and_norms(model: keras.Model) -> None:
    plain = plain_copy(model)
    plain.compile("sgd", "sparse_categorical_crossentropy")
    history = plain.fit(IMAGES.astype(np.float32), np.arange(6), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


def test_mobilenet_is_copied_exactly() -> None:
    network = build_classifier("mobilenetv3small", image_size=32, num_classes=3, dropout=0.2, seed=0)
    plain = plain_copy(network)
    assert all(type(layer).__module__.startswith("keras.") for layer in plain.layers)
    pictures = IMAGES[:2].astype(np.float32)
    logits = network(pictures, training=False)
    np.testing.assert_allclose(plain(pictures, training=False), keras.ops.softmax(logits), rtol=1e-5, atol=1e-7)


def test_the_copy_of_a_network_with_frozen_layers_and_stochastic_depth_can_be_trained_on() -> None:
    network = build_classifier("mobilenetv3small", image_size=32, num_classes=8, dropout=0.0, seed=4, drop_path=0.3)
    Depth(network).freeze(Part("head"))
    copy = plain_copy(network)
    assert len(copy.trainable_variables) == 36 * 2 + 34 * 2  # kernels and biases, gammas and betas
    drops = [layer for layer in copy.layers if isinstance(layer, keras.layers.Dropout) and layer.rate]
    assert len(drops) == 5 and {type(layer) for layer in drops} == {keras.layers.Dropout}
    assert {tuple(layer.noise_shape) for layer in drops} == {(None, 1, 1, 1)}
    images = IMAGES.astype(np.float32)
    expected = keras.ops.softmax(network(images, training=False))
    np.testing.assert_allclose(copy(images, training=False), expected, atol=1e-6)


def test_a_mixed_precision_network_exports_float32_probabilities() -> None:
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        network = build_classifier("cnn", image_size=32, num_classes=4, dropout=0.2, seed=0)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    plain = plain_copy(network)  # under another policy than the network was built with
    assert plain.get_layer("stage1_conv").compute_dtype == "bfloat16"
    pictures = IMAGES[:2].astype(np.float32)
    found = plain(pictures, training=False)
    assert found.dtype == "float32"
    expected = keras.ops.softmax(network(pictures, training=False))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def make_run(folder: Path, model: keras.Model) -> Path:
    """The files of a finished run that a predictor reads."""
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_yaml(Settings()))
    (folder / "result.json").write_text(json.dumps({"class_names": [f"type {i}" for i in range(8)]}))
    export_model(model, folder / "model.keras", BLOOD_CELLS)
    return folder


def test_the_predictor_gives_a_finished_runs_probabilities(
    tmp_path: Path, model: keras.Model, expected: np.ndarray
) -> None:
    predictor = Predictor(make_run(tmp_path / "run", model))
    assert predictor.class_names == tuple(f"type {i}" for i in range(8))
    np.testing.assert_allclose(predictor.probabilities(IMAGES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.yaml", r"run: is not a run folder \(no config.yaml\); give the folder of a finished run"),
        ("result.json", r"run: this run is not finished \(no result.json\); run its training command again"),
        ("model.keras", r"model.keras: cannot be read as a Keras model"),
    ],
)
def test_what_a_predictor_misses_is_named(tmp_path: Path, model: keras.Model, missing: str, message: str) -> None:
    folder = make_run(tmp_path / "run", model)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=message):
        Predictor(folder)


def test_a_truncated_model_file_is_named(tmp_path: Path, model: keras.Model) -> None:
    folder = make_run(tmp_path / "run", model)
    content = (folder / "model.keras").read_bytes()
    (folder / "model.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model.keras: cannot be read as a Keras model"):
        Predictor(folder)
