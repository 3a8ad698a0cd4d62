"""`sbatch slurm/train_….sh`: every template on a real cluster, from clone to result."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TINY = ("model.weights=none", "train.max_steps=2", "model.input_size=null", "optimizer.accumulate_steps=1")


def test_convnext_by_horovod_on_two_nodes(desk: Any) -> None:
    """The card of this package. Node n1 alone has the disk with runs/: another node that wrote would leave traces."""
    runs = desk.folder / "runs"
    runs.mkdir()
    desk.cluster.on("n1", "mount", "-t", "tmpfs", "tmpfs", runs)
    try:
        job = desk.train("convnext", *TINY, sbatch=["--nodes=2", "--ntasks-per-node=2"])
        log = desk.finish(job, 300)
        found = desk.cluster.on("n1", "find", runs, "-type", "f", "-printf", "%P\\n").split()
        status = desk.cluster.on("n1", "bash", "-c", f"cat '{runs}'/convnextbase-*/result.json")
    finally:
        desk.cluster.on("n1", "umount", runs)
    assert "distribute.strategy = horovod: 4 processes, started by srun" in log
    assert "network: nodes 10.99.0.1, 10.99.0.2, here by eth0" in log
    assert json.loads(status)["replicas"] == 4
    names = {name.partition("/")[2] for name in found}
    assert {"result.json", "report.html", "model.keras", "status.json", "log.txt"} <= names
    assert list(runs.iterdir()) == []  # what n2 sees
    assert log.count("first step, with tracing") == 1  # one rank speaks
    assert not [name for name in names if ".tmp-" in name]


def test_multiworker_on_two_nodes(desk: Any) -> None:
    desk.environment["BLOODCELL_LAUNCHER"] = "multiworker"
    job = desk.train("cnn", "train.max_steps=4", sbatch=["--nodes=2", "--ntasks-per-node=2"])
    log = desk.finish(job)
    assert re.search(r"strategy = multiworker|global batch 16 = 8 per replica x 2 replicas", log), log
    environment = json.loads((desk.run() / "environment.json").read_text())
    assert (environment["launcher"], environment["workers"]) == ("slurm", 2)
    assert json.loads((desk.run() / "result.json").read_text())["replicas"] == 2


@pytest.mark.parametrize(
    "names",
    [
        ("efficientnetv2m", "mobilenetv3small"),
        pytest.param(("efficientnetv2s", "efficientnetb0"), marks=pytest.mark.thorough),
    ],
)
def test_the_other_templates_at_their_smallest(
    names: tuple[str, ...], desk_in: Any, cluster: Any, tmp_path: Path
) -> None:
    jobs = []
    for name in names:
        (tmp_path / name).mkdir()
        desk = desk_in(cluster, tmp_path / name)
        # a node each, so that no more than two run at once
        jobs.append((desk, desk.train(name, *TINY, sbatch=["--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=4"])))
    for desk, job in jobs:
        desk.finish(job, 400)
        assert (desk.run() / "result.json").exists()


def test_from_another_folder_with_spaces_and_quotes(desk_in: Any, cluster: Any, tmp_path: Path) -> None:
    """A clone, a working folder and a run folder with hostile names; the clone's own slurm/ and configs/ are used."""
    clone, work = tmp_path / "Bob's clone (100%) $HOME", tmp_path / 'a "working" folder'
    work.mkdir()
    for name in ("slurm", "configs"):
        shutil.copytree(ROOT / name, clone / name)
    scratch = tmp_path / "it's fast"
    scratch.mkdir()
    (clone / "slurm/site.env").write_text(f'BLOODCELL_SCRATCH="{scratch}"\nBLOODCELL_VENV=/nowhere\n')
    desk = desk_in(cluster, work, clone / "slurm")
    run = "runs of 'mine'/first $1"
    job = desk.train(
        "cnn", "train.max_steps=2", sbatch=["--nodes=1", "--ntasks-per-node=1"], options=["--run-dir", run]
    )
    log = desk.finish(job)
    assert (work / run / "result.json").exists(), log
    assert f"copying the decoded cells to {scratch}" in log
    assert len(list(scratch.glob("bloodcell_dist/*/images.npy"))) == 2  # the training and the test cells
