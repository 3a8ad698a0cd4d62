"""What the report of a run may claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.conclusion import beginnings, notes, origin_of_test
from bloodcell_dist.config import load_settings
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


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.weights=none"], []),
        (
            ["finetune.stages=[{share: 0.5, train: head}, {share: 0.5}]", "train.max_steps=4"],
            [
                "Training was cut short by train.max_steps=4.",
                "It ended before these stages of finetune.stages began: all.",
            ],
        ),
    ],
)
def test_the_report_warns_of_what_was_not_trained(overrides: list[str], expected: list[str]) -> None:
    settings = load_settings(None, [*overrides, "train.epochs=2", "train.global_batch_size=10"])
    assert notes(settings, work_out(settings, np.arange(50) % 8, 1)) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.weights=none"], {"Initial weights": "drawn at random"}),
        (["model.weights=/w/a.h5"], {"Initial weights": "/w/a.h5"}),
        (
            ["model.weights=imagenet", "finetune.stages=[{share: 0.5, train: head}, {share: 0.5}]"],
            {"Initial weights": "ImageNet", "Stages": "head in steps 1 to 5, all in steps 6 to 10"},
        ),
    ],
)
def test_the_report_tells_where_a_run_began(overrides: list[str], expected: dict[str, str]) -> None:
    settings = load_settings(None, [*overrides, "train.epochs=2", "train.global_batch_size=10"])
    assert beginnings(settings, work_out(settings, np.arange(50) % 8, 1)) == expected
