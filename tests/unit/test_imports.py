"""Imports that wait: what a start leaves out, and that it is all there when somebody asks."""

from __future__ import annotations

import gc
import subprocess
import sys
import types
from pathlib import Path

import pytest

from bloodcell_dist.imports import put_off, uncollected

UNUSED = ("scipy.stats", "sklearn", "matplotlib.pyplot", "matplotlib.figure", "tensorflow_datasets", "kagglesdk")

START = f"""
import sys
import bloodcell_dist.train
brought = [name for name in {UNUSED} if name in sys.modules]
assert not brought, brought
"""

# Each is the first use of a module that was put off.
USES = """
import keras, keras_cv, kagglehub
from keras.wrappers import SKLearnClassifier
from keras_cv.datasets import pascal_voc
assert issubclass(SKLearnClassifier, sys.modules["sklearn.base"].BaseEstimator)
assert callable(keras.visualization.plot_image_gallery) and callable(keras.visualization.draw_bounding_boxes)
assert callable(keras_cv.visualization.plot_image_gallery) and callable(keras_cv.callbacks.PyCOCOCallback)
assert callable(pascal_voc.load) and callable(kagglehub.model_download)
"""


def test_a_rank_starts_without_what_it_does_not_use_and_all_of_it_is_there() -> None:
    subprocess.run([sys.executable, "-c", START + USES], check=True, timeout=120)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose modules `early`, `late` and `broken` tell in `ran` when they run."""
    folder = tmp_path / "waits_to_be_imported"
    folder.mkdir()
    (folder / "__init__.py").write_text("ran = []\n")
    for name in ("early", "late"):
        (folder / f"{name}.py").write_text(f"from {folder.name} import ran\nran.append('{name}')\nvalue = '{name}'\n")
    (folder / "broken.py").write_text("raise ImportError('no library here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("", ".early", ".late", ".broken"):
        monkeypatch.delitem(sys.modules, folder.name + name, raising=False)
    return folder.name


def import_module(package: str, name: str) -> types.ModuleType:
    """As `from package import name` does."""
    module: types.ModuleType = getattr(__import__(package, fromlist=[name]), name)
    return module


def test_only_the_named_wait_and_only_within_the_block(package: str) -> None:
    with put_off(frozenset({f"{package}.late", f"{package}.missing"})):
        import_module(package, "early")
        late = import_module(package, "late")
    ran = sys.modules[package].ran
    assert ran == ["early"]
    assert late.value == "late"
    assert ran == ["early", "late"]
    assert import_module(package, "late") is late
    del sys.modules[f"{package}.early"], sys.modules[package].early
    import_module(package, "early")
    assert ran == ["early", "late", "early"]


def test_what_fails_fails_when_it_is_used(package: str) -> None:
    with put_off(frozenset({f"{package}.broken"})):
        broken = import_module(package, "broken")
    with pytest.raises(ImportError, match="no library here"):
        _ = broken.value


def test_the_finder_goes_with_the_block(package: str) -> None:
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError), put_off(frozenset()):
        _ = 1 / 0
    assert sys.meta_path == before


@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_again_afterwards(enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with pytest.raises(ZeroDivisionError), uncollected():
            assert not gc.isenabled()
            _ = 1 / 0
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
        (gc.enable if was_enabled else gc.disable)()
