"""A gradient that is not finite on one replica skips the update on all and lowers the loss scale on all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


@pytest.mark.parametrize(
    ("kind", "ranks", "compression"),
    [("mirrored", 1, "none"), ("mirrored", 1, "float16"), ("horovod", 2, "float16"), ("multiworker", 2, "none")],
)
def test_all_replicas_skip_together(
    kind: str, ranks: int, compression: str, launch: Callable[..., Any], world: Any, tmp_path: Path
) -> None:
    script = Path(__file__).with_name("overflow.py")
    launched = launch(world(kind, 2), [script, tmp_path, kind, 2, compression])
    assert set(launched.wait()) == {0}, launched.text
    # The gradients are 1/1024 and 2/1024, their sum is clipped to a norm of 1 (it is below), the rate is 0.5.
    moved = 0.5 * 3 / 1024
    for rank in range(ranks):
        with np.load(tmp_path / f"{rank}.npz") as found:
            copies = 2 // ranks
            assert found["a"].shape == (3, copies, 3)
            np.testing.assert_allclose(found["a"][0], 1.0 - moved, rtol=1e-6)
            np.testing.assert_array_equal(found["a"][1], found["a"][0])
            np.testing.assert_allclose(found["a"][2], 1.0 - 2 * moved, rtol=1e-6)
            np.testing.assert_array_equal(found["b"][1], found["b"][0])
            np.testing.assert_array_equal(found["finite"], [[True] * copies, [False] * copies, [True] * copies])
            np.testing.assert_allclose(found["norm"][0], np.sqrt(7) * 3 / 1024, rtol=1e-6)
            np.testing.assert_array_equal(found["scale"], [[2.0**15] * copies, [2.0**14] * copies, [2.0**14] * copies])
            np.testing.assert_array_equal(found["losses"].ravel(), np.arange(24))
