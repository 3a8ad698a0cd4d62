"""What happens to jobs: they are preempted, asked to stop, cancelled, crash, and lose nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

STEPS = 200
LONG = (
    f"train.max_steps={STEPS}",
    "checkpoint.every_steps=20",
    "data.balance=oversample",
    "data.target_per_class=100",
    "augment.policy=light",
    "optimizer.ema_decay=0.9",
    "distribute.timeout_s=10",
)
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


def final_state(run: Path) -> dict[str, np.ndarray]:
    """Weights, optimizer slots, averages and counters of the last checkpoint."""
    with np.load(run / "checkpoints" / f"step-{STEPS:08d}" / "arrays.npz", allow_pickle=False) as file:
        return dict(file)


def events(desk: Any, job: str) -> list[str]:
    """`start`, `requeued`, `left to Slurm`, `done`: what happened to the job, by its record."""
    return [
        re.sub(r"start .*|end status=\d+ ", lambda m: m[0][:5].rstrip() if m[0][0] == "s" else "", line)
        for line in desk.record(job)
    ]


def test_preempted_and_signalled_it_ends_with_the_same_bits(desk_in: Any, cluster: Any, tmp_path: Path) -> None:
    """USR1, as before the time limit, requeues by itself; preemption by a job of higher priority, by Slurm."""
    calm, disturbed = (desk_in(cluster, tmp_path / name) for name in ("calm", "disturbed"))
    for desk in (calm, disturbed):
        desk.folder.mkdir()
    calm.finish(calm.train("cnn", *LONG, sbatch=TWO_NODES))

    job = disturbed.train("cnn", *LONG, sbatch=TWO_NODES)
    disturbed.wait_for_step(job, 20)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait_for(lambda: cluster.job(job).restarts == 1, "USR1 has requeued the job")
    disturbed.wait_for_step(job, 120)
    urgent = cluster.sbatch(
        "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1", cwd=tmp_path
    )
    cluster.wait(urgent)
    assert cluster.job(job).restarts == 2
    log = disturbed.finish(job)

    assert events(disturbed, job) == ["start", "requeued", "start", "left to Slurm", "start", "done"], log
    assert "stopped by SIGUSR1 after step" in log
    assert "stopped by SIGTERM after step" in log
    assert len(list((disturbed.folder / "runs").glob("cnn-*"))) == 1
    assert (disturbed.run() / "run_id").read_text()
    expected, found = final_state(calm.run()), final_state(disturbed.run())
    assert expected.keys() == found.keys()
    different = [name for name, array in expected.items() if array.tobytes() != found[name].tobytes()]
    assert different == []


def test_a_node_that_is_switched_off_costs_the_steps_since_the_last_checkpoint(desk: Any) -> None:
    job = desk.train("cnn", *LONG, sbatch=TWO_NODES)
    desk.wait_for_step(job, 60)
    desk.cluster.switch_off("n2")
    desk.cluster.wait_for(lambda: desk.cluster.job(job).restarts >= 1, "the job is requeued", 90)
    desk.cluster.switch_on("n2")
    log = desk.finish(job)
    steps = [int(step) for step in re.findall(r"the run continues after step (\d+) of", log)]
    assert steps and min(steps) >= 60, log
    assert (desk.run() / "result.json").exists()


def test_scancel_stops_it_with_a_checkpoint(desk: Any) -> None:
    job = desk.train("cnn", *LONG, sbatch=TWO_NODES)
    desk.wait_for_step(job, 20)
    desk.cluster.run("scancel", job)
    found = desk.cluster.wait(job)
    desk.cluster.wait_for(lambda: len(desk.record(job)) == 2, "its script has ended")
    assert found.state == "CANCELLED"
    assert found.restarts == 0
    assert events(desk, job) == ["start", "left to Slurm"]
    (saved,) = re.findall(r"stopped by SIGTERM after step (\d+), which is saved", desk.log(job))
    assert (desk.run() / "checkpoints" / f"step-{int(saved):08d}").exists()


def test_a_training_that_crashes_at_once_is_given_up(desk: Any, tmp_path: Path) -> None:
    """One rank dies while Python starts, before anything of ours runs."""
    (tmp_path / "bad").mkdir()
    dies = (
        'import os\nif os.environ.get("SLURM_PROCID") == "1" and "BLOODCELL_TOKEN" in os.environ:\n    os._exit(139)\n'
    )
    (tmp_path / "bad/sitecustomize.py").write_text(dies)
    desk.environment["PYTHONPATH"] = str(tmp_path / "bad")
    desk.environment["BLOODCELL_PREFLIGHT"] = "off"
    job = desk.train("cnn", *LONG, sbatch=TWO_NODES)
    found = desk.cluster.wait(job)
    assert (found.state, found.restarts) == ("FAILED", 2)
    log = desk.log(job)
    assert "failed 1 of 3 times, requeued" in log
    assert "failed 2 of 3 times, requeued" in log
    assert "GIVEN UP: the training ended 3 times in a row without a new checkpoint" in log
    assert desk.record(job)[-1].startswith("end status=")
    assert "stopped: ended 3 times in a row" in desk.record(job)[-1]


def test_bad_input_is_not_tried_again(desk: Any) -> None:
    job = desk.train("cnn", "train.epoch=3", sbatch=TWO_NODES)
    found = desk.cluster.wait(job)
    assert (found.state, found.exit_status, found.restarts) == ("FAILED", 2, 0)
    assert "train.epoch" in desk.log(job) and "train.epochs" in desk.log(job)
