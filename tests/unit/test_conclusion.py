"""What the report of a run may claim."""

from __future__ import annotations

from typing import Any

import pytest

from bloodcell_dist.conclusion import origin_of_test
from bloodcell_dist.settings import Data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"source": "synthetic"}, ("drawn cells", True)),
        ({"source": "medmnist", "path": "bloodmnist.npz"}, ("the source's own test part", True)),
        ({"source": "npz", "path": "a.npz"}, (None, None)),
        ({"source": "npz", "path": "a.npz", "test_path": "b.npz"}, ("b.npz", None)),
        ({"source": "medmnist", "path": "bloodmnist.npz", "test_path": "b.npz"}, ("b.npz", None)),
        ({"source": "synthetic", "test_path": "b.npz"}, ("b.npz", None)),
    ],
)
def test_a_test_set_of_its_own_may_come_from_anywhere(
    data: dict[str, Any], expected: tuple[str | None, bool | None]
) -> None:
    assert origin_of_test(Data(**data)) == expected
