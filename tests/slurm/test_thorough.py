"""What takes minutes, or a Horovod that not everybody has: `make thorough`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.thorough]

LONG = ("data.balance=oversample", "data.target_per_class=100", "augment.policy=none", "distribute.timeout_s=10")


def test_the_time_limit_itself(desk: Any) -> None:
    """Slurm looks every 30 s: USR1 comes a minute before the limit, and the job goes on from its checkpoint."""
    steps = ("train.max_steps=12000", "checkpoint.every_steps=100")
    job = desk.train(
        "cnn", *LONG, *steps, sbatch=["--nodes=2", "--ntasks-per-node=1", "--time=2", "--signal=B:USR1@60"]
    )
    desk.cluster.wait_for(lambda: desk.cluster.job(job).restarts == 1, "the time limit requeues it", 200)
    desk.cluster.wait_for(lambda: "the run continues after step" in desk.log(job), "it goes on", 90)
    assert "USR1: the training saves a checkpoint" in desk.log(job)
    desk.cluster.run("scancel", job)
    desk.cluster.wait(job)


def test_by_horovodrun_on_one_node(desk: Any) -> None:
    desk.environment["BLOODCELL_LAUNCHER"] = "horovodrun"
    job = desk.train(
        "cnn", *LONG, "train.max_steps=1000", "checkpoint.every_steps=20", sbatch=["--nodes=1", "--ntasks-per-node=2"]
    )
    desk.wait_for_step(job, 20)
    desk.cluster.run("scancel", "--batch", "--signal=USR1", job)
    desk.cluster.wait_for(lambda: desk.cluster.job(job).restarts == 1, "USR1 has requeued the job")
    log = desk.finish(job)
    assert "2 processes, started by horovodrun" in log
    assert "stopped by SIGUSR1 after step" in log or "stopped by a signal to another rank after step" in log
    assert "the run continues after step" in log


def test_the_node_of_rank_0_is_switched_off(desk: Any) -> None:
    job = desk.train(
        "cnn", *LONG, "train.max_steps=600", "checkpoint.every_steps=20", sbatch=["--nodes=2", "--ntasks-per-node=1"]
    )
    desk.wait_for_step(job, 40)
    desk.cluster.switch_off("n1")
    desk.cluster.wait_for(lambda: desk.cluster.job(job).restarts >= 1, "the job is requeued", 90)
    desk.cluster.switch_on("n1")
    log = desk.finish(job)
    assert re.search(r"the run continues after step \d+ of 600", log), log


def test_by_mpi(desk: Any) -> None:
    """`srun --mpi=pmix`, where this Horovod was built with MPI."""
    built = subprocess.run(
        [sys.executable, "-c", "import horovod.tensorflow as hvd; print(hvd.mpi_built())"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.stdout.strip() != "True":
        pytest.skip("this Horovod is built without MPI: scripts/install_horovod.sh where mpicxx is")
    desk.environment |= {
        "BLOODCELL_LAUNCHER": "pmix",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    job = desk.train("cnn", "train.max_steps=4", sbatch=["--nodes=2", "--ntasks-per-node=2"])
    desk.finish(job)
    assert json.loads((desk.run() / "result.json").read_text())["replicas"] == 4
