"""The whole gradient function is one XLA program for every policy, in both placements, under every strategy.

TensorFlow refuses a function with `jit_compile=True` that holds anything XLA cannot compile, so that these steps run at
all is the proof; that all agree shows that none took another way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.augment.policies import POLICY_NAMES

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("compiled.py")


@pytest.fixture(scope="module")
def losses(launch_once: Callable[..., Any], world: Any) -> Callable[[str, int], list[dict[str, np.ndarray]]]:
    """losses(kind, replicas): what every rank found, by policy and placement."""

    def of(kind: str, replicas: int) -> list[dict[str, np.ndarray]]:
        def work(launch: Callable[..., Any], folder: Path) -> list[dict[str, np.ndarray]]:
            launched = launch(world(kind, replicas), [SCRIPT, folder, kind, replicas])
            assert set(launched.wait()) == {0}, launched.text
            return [dict(np.load(file)) for file in sorted(folder.glob("*.npz"))]

        return launch_once(work)  # type: ignore[no-any-return]

    return of


@pytest.fixture(scope="module")
def alone(losses: Callable[[str, int], list[dict[str, np.ndarray]]]) -> dict[str, np.ndarray]:
    """On one device."""
    (found,) = losses("single", 1)
    return found


def test_every_policy_compiles_in_both_placements_and_they_agree_to_the_bit(alone: dict[str, np.ndarray]) -> None:
    for policy in POLICY_NAMES:
        np.testing.assert_array_equal(alone[f"{policy} DeviceCells"], alone[f"{policy} HostCells"])
    different = {alone[f"{policy} DeviceCells"].tobytes() for policy in POLICY_NAMES}
    assert len(different) == len(POLICY_NAMES) >= 4


@pytest.mark.parametrize("kind", ["mirrored", "multiworker", "horovod"])
def test_so_do_two_replicas(
    kind: str, alone: dict[str, np.ndarray], losses: Callable[[str, int], list[dict[str, np.ndarray]]]
) -> None:
    for found in losses(kind, 2):
        assert found.keys() == alone.keys()
        for name, expected in alone.items():
            np.testing.assert_allclose(found[name], expected, rtol=2e-5, err_msg=name)
