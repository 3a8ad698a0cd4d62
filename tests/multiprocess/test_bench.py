"""`bloodcell-dist bench` among the ranks that horovodrun starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

SHORT = """
import sys
from bloodcell_dist.bench import timing
from bloodcell_dist.cli import main
timing.TURN_S = 0.05
sys.exit(main())
"""
TINY = (
    *("data.source=synthetic", "data.synthetic_examples=240", "data.image_size=32", "data.cache_dir=cache"),
    *("model.backbone=cnn", "augment.policy=none", "train.global_batch_size=16"),
)


def test_two_ranks_measure_their_sum_and_what_it_costs(launch: Callable[..., Any], world: Any, tmp_path: Path) -> None:
    options = [part for setting in TINY for part in ("--set", setting)]
    command = ["-c", SHORT, "bench", "scaling", "allreduce", "--rounds", "2", "--json", "bench.json", *options]
    launched = launch(world("horovod", 2), command)
    assert set(launched.wait()) == {0}, launched.text
    assert not re.search(r"^\[1\]<stdout>", launched.text, re.MULTILINE), launched.text  # rank 0 speaks for both
    assert re.search(r"^\[0\]<stdout>:allreduce: [\d,]+ gradients, 2 replicas$", launched.text, re.MULTILINE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "cache"]

    found = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == ["environment", "settings", "rounds", "allreduce", "scaling"]
    assert (found["environment"]["workers"], found["environment"]["replicas"]) == (2, 2)
    sums = found["allreduce"]["formats"]
    assert (
        sums["float32"]["megabytes"] == found["allreduce"]["parameters"] * 4 / 1e6 == 2 * sums["float16"]["megabytes"]
    )
    for each in sums.values():
        assert 0 < each["bus_gb_per_s"]["median"] == pytest.approx(each["algorithm_gb_per_s"]["median"])
    scaling = found["scaling"]
    assert (scaling["replicas"], scaling["replica_batch_size"]) == (2, 8)
    for rate in ("alone_images_per_s", "apart_images_per_s", "together_images_per_s"):
        assert scaling[rate]["least"] > 0
    assert scaling["efficiency"]["median"] > 0 and scaling["of_apart"]["median"] > 0
    assert scaling["how"].endswith("together: horovod; apart: each rank on its own at the same time")
