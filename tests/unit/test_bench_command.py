"""`bloodcell-dist bench`: what it refuses, and one run of all parts at tiny settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bloodcell_dist
from bloodcell_dist import cli
from bloodcell_dist.augment.policies import POLICY_NAMES
from bloodcell_dist.bench import PARTS

ROOT = Path(bloodcell_dist.__file__).resolve().parents[1]
PROGRAM = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from bloodcell_dist.bench import timing
from bloodcell_dist.cli import main
timing.TURN_S = 0.05
sys.exit(main())
"""
TINY = (
    *("data.source=synthetic", "data.synthetic_examples=240", "data.image_size=32", "data.cache_dir=cache"),
    *("model.backbone=cnn", "train.global_batch_size=16"),
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; nothing of this machine's launcher or cells counts."""
    for name in os.environ:
        if name.startswith(("BLOODCELL_", "SLURM_", "HOROVOD_", "OMPI_", "TF_CONFIG")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_help_and_wrong_parts(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in ((["--help"], 0), (["speed"], 2), (["step", "speed"], 2)):
        with pytest.raises(SystemExit) as caught:
            cli.main(["bench", *arguments])
        assert caught.value.code == status
    out, err = capsys.readouterr()
    assert all(word in out for word in (*PARTS, "--config YAML", "--set KEY=VALUE", "--rounds N", "--json FILE"))
    choices = "step, augmentation, input, allreduce, scaling"
    assert f"argument PART: invalid choice: 'speed' (choose from {choices})" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds 0: expected a number from 1"),
        (
            ["--json", "gone/bench.json"],
            "--json gone/bench.json: its folder does not exist; make it or give another file",
        ),
        (["--json", "."], "--json .: is a folder; give a file"),
        (["--set", "train.epoch=3"], "--set train.epoch=3: unknown key train.epoch; did you mean train.epochs?"),
        (["--set", "data.path=gone.npz"], "{folder}/gone.npz: no such file or folder"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_measured(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", *arguments]) == 2
    assert capsys.readouterr() == ("", f"bloodcell-dist: {message.format(folder=folder)}\n")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_all_parts_alone(folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "bench", "--rounds", "2", "--json", "bench.json"]
    command += [part for setting in TINY for part in ("--set", setting)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if line.startswith(PARTS)] == list(PARTS)
    assert "allreduce: one replica: there is nothing to reduce" in lines
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "cache"]  # no run folder

    found = json.loads((folder / "bench.json").read_text())
    assert list(found) == ["environment", "settings", "rounds", *PARTS]
    assert (found["rounds"], found["environment"]["replicas"], found["environment"]["workers"]) == (2, 1, 1)
    assert found["settings"]["train"]["xla"] == "parts"
    step = found["step"]
    assert (step["policy"], step["global_batch_size"], step["peak_memory_of"]) == ("light", 16, "the process")
    for speed in (step["augmented"], step["plain"], *found["augmentation"]["policies"].values()):
        assert (
            0 < speed["images_per_s"]["least"] <= speed["images_per_s"]["median"] <= speed["images_per_s"]["greatest"]
        )
    # A first step traces and compiles; later ones take milliseconds.
    assert step["first_step_s"] * 1e3 > 2 * step["augmented"]["batch_ms"]["median"] > 0
    assert step["peak_memory_mb"] > 100
    assert set(found["augmentation"]["policies"]) == set(POLICY_NAMES) and found["augmentation"]["draws"] >= 32
    assert found["input"]["host_reads_from"] == "memory map" and found["input"]["left_out"] is None
    for feed in (found["input"]["placements"][name] for name in ("device", "host")):
        assert 0 < feed["waiting_share"]["median"] < 1 and feed["alone"]["images_per_s"]["median"] > 0
    assert set(found["scaling"]) == {"skipped"}
