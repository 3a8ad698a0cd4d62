"""The benchmarks of the training loop run from end to end at sizes of seconds; their figures are not looked at here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RATIO = r"\d+\.\d\d \(round by round \d+\.\d\d to \d+\.\d\d\)"

RUNS = {
    "loop.py": (
        ["--backbone", "cnn", "--batch", "4", "--steps", "3", "--rounds", "1"],
        [f"trainer / bare: {RATIO}", f"trainer / fit: {RATIO}"],
    ),
    "end_to_end.py": (
        ["--backbone", "cnn", "--batch", "4", "--steps", "2", "--rounds", "1", "--policy", "none"],
        [f"ours / usual: {RATIO}"],
    ),
    "input_time.py": (
        ["--backbone", "cnn", "--policy", "none", "--count", "16", "--batch", "4", "--steps", "3", "--rounds", "1"],
        [f"{place}: {times} times the pictures / once: {RATIO}" for place in ("device", "host") for times in (4, 16)],
    ),
    "checkpoint_stall.py": (
        ["--backbone", "cnn", "--batch", "4", "--steps", "5", "--rounds", "2"],
        [r"begins a checkpoint / plain: \d", r"begins a checkpoint \(2 steps\)"],
    ),
    "kernels.py": (["--backbones", "cnn", "--batch", "2", "--rounds", "1"], [r"cnn, batch 2 +\d+\.\d +\d+\.\d  \d"]),
    "start_up.py": (
        ["--backbones", "cnn", "--batch", "8"],
        [r"cnn, cold( +\d+\.\d){4}\n", r"cnn, warm( +\d+\.\d){4}\n"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", RUNS)
def test_a_benchmark_runs(script: str, tmp_path: Path) -> None:
    arguments, expected = RUNS[script]
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for pattern in expected:
        assert re.search(pattern, done.stdout), done.stdout
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
