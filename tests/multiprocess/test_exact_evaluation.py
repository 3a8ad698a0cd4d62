"""Every example once, at any number of replicas, and the same on all ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SIZES = (256, 20)
Found = dict[tuple[int, int], dict[str, np.ndarray]]


def evaluate(launch: Callable[..., Any], folder: Path, world: Any) -> Found:
    """(rank, batch size) to what `sharded.py` left there."""
    script = Path(__file__).with_name("sharded.py")
    launched = launch(world, [script, folder, world.kind, world.replicas])
    assert set(launched.wait()) == {0}, launched.text
    found: Found = {}
    for file in folder.glob("*.npz"):
        rank, size = map(int, file.stem.split("-"))
        with np.load(file) as content:
            found[rank, size] = {name: content[name] for name in content.files}
    return found


@pytest.fixture(scope="module")
def alone(launch_once: Callable[..., Any], world: Any) -> Found:
    found: Found = launch_once(lambda launch, folder: evaluate(launch, folder, world("single")))
    return found


@pytest.mark.parametrize(
    ("kind", "replicas", "ranks"),
    [("horovod", 2, 2), ("horovod", 3, 3), ("horovod", 7, 7), ("multiworker", 2, 2), ("mirrored", 3, 1)],
)
def test_401_examples_give_the_same_confusion_matrix(
    kind: str, replicas: int, ranks: int, launch: Any, world: Any, alone: Found, tmp_path: Path
) -> None:
    found = evaluate(launch, tmp_path, world(kind, replicas))
    assert set(found) == {(rank, size) for rank in range(ranks) for size in SIZES}
    for (_, size), content in found.items():
        expected = alone[0, size]
        assert content["confusion"].sum() == 401
        np.testing.assert_array_equal(content["confusion"], expected["confusion"])
        np.testing.assert_allclose(content["probabilities"], expected["probabilities"], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(content["probabilities"], found[0, size]["probabilities"])
        # Shared out: what a rank computes, padding included, is near an even share.
        assert 0 < content["passes"].sum() <= 1.25 * 401 / ranks + 20 * replicas / ranks


def test_one_process_predicts_each_batch_once(alone: Found) -> None:
    assert alone[0, 20]["passes"].tolist() == [20] * 21
    assert alone[0, 256]["passes"].tolist() == [256] * 2
