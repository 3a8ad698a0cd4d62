"""A sweep on a real cluster: submitted with one command, two members at a time, and compared afterwards."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SETTINGS = {
    "data.source": "synthetic",
    "data.synthetic_examples": 200,
    "data.image_size": 32,
    "model.backbone": "cnn",
    "train.global_batch_size": 16,
    "train.max_steps": 2,
    "train.xla": "off",
    "evaluate.bootstrap": 0,
}


def rows_of(folder: Path) -> dict[str, dict[str, str]]:
    """comparison.csv by member."""
    with open(folder / "comparison.csv", newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_six_members_two_at_a_time_and_one_fails(desk: Any) -> None:
    """Five trainings on drawn cells; the sixth member's cells are not there."""
    spec = {
        "name": "five-and-a-failure",
        "grid": {"optimizer.name": ["lion", "adamw"], "train.seed": [1, 2]},
        "also": [
            {"settings": {"optimizer.name": "sgd"}},
            {"settings": {"data.source": "npz", "data.path": str(desk.folder / "gone.npz")}},
        ],
        "settings": SETTINGS,
        "at_once": 2,
        "slurm": {"nodes": 1, "ntasks-per-node": 1, "cpus-per-task": 1, "time": "10"},
    }
    (desk.folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    program = Path(sys.prefix, "bin", "bloodcell-dist")
    environment = desk.environment | {"BLOODCELL_PREFLIGHT": "off"}  # the failure is to come from the training
    out = desk.folder / "a sweep"
    submit = (program, "sweep", "submit", "sweep.yaml", "--out", "a sweep")
    said = desk.cluster.run(*submit, cwd=desk.folder, env=environment).stdout
    jobs = re.findall(r"job (\d+)", said)
    assert len(jobs) == 2, said
    most = 0

    def over() -> bool:
        nonlocal most
        queue = desk.cluster.run("squeue", "--noheader", "--array", "--format=%A %T %j").stdout
        running = [line for line in queue.splitlines() if "RUNNING" in line and "report" not in line]
        most = max(most, len(running))
        return desk.cluster.job(jobs[1]).state == "COMPLETED"

    desk.cluster.wait_for(over, "the comparison is written", 500)
    assert most == 2
    rows = rows_of(out)
    states = sorted(row["state"] for row in rows.values())
    assert states == ["done"] * 5 + ["failed"]
    (failed,) = [row for row in rows.values() if row["state"] == "failed"]
    assert "gone.npz" in failed["reason"]
    for name in ("comparison.md", "comparison.html"):
        text = (out / name).read_text(encoding="utf-8")
        assert "gone.npz" in text
    status = desk.cluster.run(program, "sweep", "status", "a sweep", cwd=desk.folder, env=environment).stdout
    assert status.count(" done") == 5 and status.count("failed") == 1, status


def test_the_plain_script_does_the_same(desk: Any) -> None:
    """slurm/sweep.sh with an array of one member, from a file of one."""
    spec = {"name": "plain", "grid": {"train.seed": [3]}, "settings": SETTINGS}
    (desk.folder / "one.yaml").write_text(yaml.safe_dump(spec))
    options = ("--array=0-0%1", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
    desk.cluster.sbatch(*options, desk.slurm_folder / "sweep.sh", "one.yaml", cwd=desk.folder, env=desk.environment)
    result = desk.folder / "sweeps/plain/comparison.html"
    desk.cluster.wait_for(result.exists, "the comparison is written", 400)
    (row,) = rows_of(result.parent).values()
    assert row["state"] == "done"
    (run,) = (result.parent / "runs").iterdir()
    assert json.loads((run / "result.json").read_text())["seed"] == 3
