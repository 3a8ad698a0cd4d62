"""A sweep planned or submitted again, and folders it cannot have; scripts play Slurm's part."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from bloodcell_dist import cli
from bloodcell_dist.sweep.folder import SweepDir

BESIDE = "a b'c $x"
SPEC = {
    "name": "small",
    "grid": {"config": ["cnn.yaml"], "train.seed": [0, 1, 2]},
    "settings": {"data.source": "synthetic"},
    "slurm": {"time": 5},
}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's file; the working folder is another one."""
    work = tmp_path / "work"
    for folder in (tmp_path / BESIDE, work):
        folder.mkdir()
    (tmp_path / BESIDE / "cnn.yaml").write_text("model: {backbone: cnn}")
    path = tmp_path / BESIDE / "sweep.yaml"
    path.write_text(yaml.safe_dump(SPEC))
    monkeypatch.chdir(work)
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "BLOODCELL"))]:
        monkeypatch.delenv(name)
    return path


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(yaml.safe_dump({**SPEC, **changes}))


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_planning_again_changes_nothing(spec: Path) -> None:
    """Nor does another order, or another way to run the same members."""
    command = ["sweep", "plan", str(spec), "--out", "here"]
    assert cli.main(command) == 0
    before = content(Path("here"))
    assert cli.main(command) == 0
    assert content(Path("here")) == before
    rewrite(spec, at_once=7, slurm={"time": 99}, grid={"train.seed": [2, 0, 1], "config": ["cnn.yaml"]})
    assert cli.main(command) == 0
    after = content(Path("here"))
    assert after.pop("sweep.yaml") == spec.read_text() != before.pop("sweep.yaml")
    assert after == before


def test_foreign_folders_are_left_alone(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    assert cli.main(["sweep", "plan", str(spec), "--out", "thesis"]) == 2
    assert "holds chapter.tex and no sweep" in capsys.readouterr().err
    assert os.listdir("thesis") == ["chapter.tex"]
    for command in ("status", "report"):
        assert cli.main(["sweep", command, "thesis"]) == 2
        assert "is not the folder of a sweep (members.json: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/nowhere/sweep", "file/sweep"])
def test_folders_that_cannot_be_written(spec: Path, place: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("no folder")
    assert cli.main(["sweep", "plan", str(spec), "--out", place]) == 2
    assert f"{place}: cannot be written" in capsys.readouterr().err


class Slurm:
    """sbatch and squeue as scripts: jobs 100, 101, … that never run, and a queue that the test fills."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "next").write_text("100")
        self.fill("")
        self._script("squeue", f'cat "{folder}/queue"')
        self._script(
            "sbatch",
            f'cd "{folder}"; number=$(<next); echo $((number + 1)) >next\n'
            'printf "%s\\0" "$@" >"arguments-$number"; cp "${@: -1}" "script-$number"\n'
            "[ ! -f refuse-$number ] || { echo 'sbatch: error: over quota' >&2; exit 1; }\necho $number",
        )

    def _script(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (self.folder / name).chmod(0o755)

    def fill(self, queue: str) -> None:
        (self.folder / "queue").write_text(queue)

    def refuse(self, number: int) -> None:
        (self.folder / f"refuse-{number}").touch()

    def arguments(self, number: int) -> list[str]:
        return (self.folder / f"arguments-{number}").read_text().split("\0")[:-1]

    def script(self, number: int) -> str:
        return (self.folder / f"script-{number}").read_text()


@pytest.fixture
def slurm(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


def submit(spec: Path, *more: str) -> int:
    return cli.main(["sweep", "submit", str(spec), "--out", "s", *more])


def test_only_what_is_left_is_submitted_again(spec: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(spec) == 0
    folder = SweepDir(Path("s").absolute())
    folder.run("cnn-seed1").path.mkdir(parents=True)
    folder.run("cnn-seed1").result.write_text("{}")
    slurm.fill("100 0 RUNNING\n")
    capsys.readouterr()
    assert submit(spec) == 0
    printed = capsys.readouterr().out
    assert "cnn-seed1 is finished" in printed and "cnn-seed0 is in the queue (running)" in printed
    assert "#SBATCH --array=2%2\n" in slurm.script(102)
    assert "--dependency=afterany:102:100" in slurm.arguments(103)
    slurm.fill("100 0 RUNNING\n102 2 PENDING\n")
    assert submit(spec) == 0
    assert "nothing to submit" in capsys.readouterr().out
    assert not (slurm.folder / "arguments-104").exists()


def test_a_report_that_is_refused_does_not_hide_the_members(
    spec: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.refuse(101)
    assert submit(spec) == 2
    message = capsys.readouterr().err
    assert (
        "the members are submitted (job 100), the report is not: sbatch refuses: sbatch: error: over quota" in message
    )
    assert f"bloodcell-dist sweep report {Path('s').absolute()}" in message
    (made,) = json.loads(Path("s/submitted.json").read_text())
    assert (made["array"], made["report"]) == ("100", None)
