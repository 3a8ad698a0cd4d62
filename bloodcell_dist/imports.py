"""Imports that wait until they are needed: a rank spends half of its start on what it never uses."""

import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence

# What Keras and KerasCV import for every user: scikit-learn with scipy.stats for its wrappers, pyplot for galleries of
# pictures, TensorFlow Datasets for Pascal VOC, Kaggle's client for presets. 1,100 files, which N ranks ask N times of
# the cluster's shared file system.
SELDOM_USED = frozenset(
    {
        "keras.visualization",
        "keras.src.visualization",
        "keras.wrappers",
        "keras_cv.api.callbacks",
        "keras_cv.api.datasets",
        "keras_cv.api.visualization",
        "keras_cv.src.callbacks",
        "keras_cv.src.datasets",
        "keras_cv.src.visualization",
        "kagglehub",
    }
)


@contextlib.contextmanager
def put_off(names: frozenset[str] = SELDOM_USED) -> Iterator[None]:
    """Modules of these names that the block imports run when an attribute of theirs is first asked for.

    They are whole then, so nobody who uses them sees a difference (`importlib.util.LazyLoader`). `from NAME import x`
    asks for an attribute, and so does a second `import NAME`. Names of modules that are not there, or that were
    imported before, change nothing.
    """
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Python looks for garbage neither within the block nor, later, among what the block has made.

    For imports, which make hundreds of thousands of objects that stay: to look through them again and again takes a
    fifth of the time of importing TensorFlow.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of some names as Python would, and has them loaded later."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if fullname in self._names else None
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec
