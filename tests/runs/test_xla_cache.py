"""XLA's persistent cache: a second start finds what the first one compiled."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = (
    "data.source=synthetic",
    "data.synthetic_examples=240",
    "data.image_size=32",
    "augment.policy=light",
    "model.backbone=cnn",
    "train.global_batch_size=48",
    "train.epochs=1",
    "train.max_steps=2",
    "train.xla=on",
    "evaluate.bootstrap=0",
)


@pytest.mark.slow
def test_a_second_run_compiles_nothing_anew(tmp_path: Path) -> None:
    cache = tmp_path / "xla"
    found = []
    for name in ("first", "second"):
        settings = (*SETTINGS, f"data.cache_dir={tmp_path / 'cells'}", f"train.xla_cache_dir={cache}")
        overrides = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(tmp_path / name), *overrides]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        found.append({file.name: file.stat().st_mtime_ns for file in cache.iterdir()})
        print(re.findall("first step.*", done.stdout))
    assert len(found[0]) >= 3  # the step, the update, the evaluation
    assert found[1] == found[0]
