"""The folder of a sweep, and its submission to programs that play Slurm's part."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
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


def test_plan_writes_what_the_jobs_need(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "plan", str(spec), "--set", "train.epochs=2"]) == 0
    folder = Path.cwd() / "sweeps" / "small"
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)
    assert (folder / "sweep.yaml").read_text() == spec.read_text()
    plan = json.loads((folder / "members.json").read_text())
    assert (plan["name"], plan["working_folder"]) == ("small", str(Path.cwd()))
    assert [one["name"] for one in plan["members"]] == ["cnn-seed0", "cnn-seed1", "cnn-seed2"]
    for index, one in enumerate(plan["members"]):
        arguments = (folder / "arguments" / str(index)).read_bytes().decode().split("\0")
        assert arguments == [*one["arguments"], ""]
        assert arguments[:2] == ["--config", str(spec.parent / "cnn.yaml")]
        assert arguments[-4:] == ["train.epochs=2", "--run-dir", str(folder / "runs" / one["name"]), ""]
        assert (one["index"], one["settings"], one["group"]) == (index, {"train.seed": index}, "cnn")


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


@pytest.mark.parametrize(
    ("changes", "config", "words"),
    [
        ({"grid": {"train.seed": [0, 1], "config": ["cnn.yaml"]}}, None, "cnn-seed2 is gone"),
        ({"grid": {"train.seed": [0, 1, 2, 3], "config": ["cnn.yaml"]}}, None, "cnn-seed3 is new"),
        ({"settings": {}}, None, "cnn-seed0 is not the same: data.source=synthetic"),
        ({"settings": {"data.source": "auto"}}, None, "data.source=auto"),
        ({}, "model: {backbone: cnn, dropout: 0.1}", "the configuration of cnn-seed0 has changed"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(
    spec: Path, changes: dict[str, object], config: str | None, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sweep", "plan", str(spec)]) == 0
    before = content(Path("sweeps"))
    rewrite(spec, **changes)
    if config:
        (spec.parent / "cnn.yaml").write_text(config)
    capsys.readouterr()
    for command in ("plan", "submit"):
        assert cli.main(["sweep", command, str(spec)]) == 2
        message = capsys.readouterr().err
        assert words in message and "give another --out" in message
    assert content(Path("sweeps")) == before


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


def test_nothing_is_written_if_a_member_is_wrong(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rewrite(spec, also=[{"settings": {"train.epochs": 0}}])
    assert cli.main(["sweep", "plan", str(spec)]) == 2
    assert "train.epochs=0 is not possible" in capsys.readouterr().err
    assert not Path("sweeps").exists()


def test_tasks_of_an_array_may_plan_at_once(spec: Path) -> None:
    command = [sys.executable, "-m", "bloodcell_dist.cli", "sweep", "plan", str(spec), "--out", "all"]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(6)]
    assert [process.wait(60) for process in processes] == [0] * 6
    found = content(Path("all"))
    assert sorted(found) == [".lock", "arguments/0", "arguments/1", "arguments/2", "members.json", "sweep.yaml"]
    assert cli.main(["sweep", "plan", str(spec), "--out", "all"]) == 0
    assert content(Path("all")) == found


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
            'printf "%s\\0" "$@" >"arguments-$number"; env -0 >"environment-$number"; cp "${@: -1}" "script-$number"\n'
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

    def environment(self, number: int) -> dict[str, str]:
        pairs = (self.folder / f"environment-{number}").read_text().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def script(self, number: int) -> str:
        return (self.folder / f"script-{number}").read_text()


@pytest.fixture
def slurm(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    made = Slurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


def submit(spec: Path, *more: str) -> int:
    return cli.main(["sweep", "submit", str(spec), "--out", "s", *more])


def test_submit_hands_in_the_members_and_the_report_after_them(
    spec: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SBATCH_ACCOUNT", "ours")
    assert submit(spec, "--at-once", "3", "--", "--partition=gpu", "--time=9") == 0
    folder = SweepDir(Path("s").absolute())
    assert slurm.arguments(100) == ["--parsable", "--partition=gpu", "--time=9", str(folder.members_script)]
    dependency = "--dependency=afterany:100"
    assert slurm.arguments(101) == ["--parsable", "--partition=gpu", dependency, str(folder.report_script)]
    assert "#SBATCH --array=0-2%3\n" in slurm.script(100)
    assert slurm.script(100) == folder.members_script.read_text()
    assert slurm.script(101) == folder.report_script.read_text()
    for number in (100, 101):
        assert "SLURM_JOB_ID" not in slurm.environment(number)
        assert slurm.environment(number)["SBATCH_ACCOUNT"] == "ours"
    (made,) = json.loads(folder.submitted.read_text())
    assert (made["array"], made["report"], made["members"]) == ("100", "101", [0, 1, 2])
    assert "array job 100 trains 3 members, job 101 compares them afterwards" in capsys.readouterr().out


def test_the_site_s_settings_reach_sbatch(spec: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("site.env").write_text("SBATCH_ACCOUNT=lab\nBLOODCELL_DATA=/cells\n")
    monkeypatch.setenv("BLOODCELL_SITE", "site.env")
    assert submit(spec) == 0
    found = slurm.environment(100)
    assert (found["SBATCH_ACCOUNT"], found["BLOODCELL_DATA"]) == ("lab", "/cells")
    assert found["BLOODCELL_SITE"] == str(Path("site.env").absolute())


def test_a_site_that_is_not_there(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BLOODCELL_SITE", "nowhere.env")
    assert submit(spec) == 2
    assert "BLOODCELL_SITE=nowhere.env: no such file" in capsys.readouterr().err


def test_a_dry_run_prints_all_and_writes_nothing(
    spec: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "our lab")
    assert submit(spec, "--dry-run", "--", "--partition=gpu") == 0
    printed = capsys.readouterr().out
    assert not Path("s").exists() and not (slurm.folder / "arguments-100").exists()
    assert submit(spec, "--", "--partition=gpu") == 0
    assert slurm.script(100) in printed and slurm.script(101) in printed
    assert "# SBATCH_ACCOUNT='our lab'" in printed
    assert printed.splitlines()[-2:] == [
        f"sbatch --parsable --partition=gpu {Path('s/members.sbatch').absolute()}",
        f"sbatch --parsable --partition=gpu --dependency=afterany:ARRAY_JOB {Path('s/report.sbatch').absolute()}",
    ]


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


def test_without_slurm_another_way_is_named(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "bash").symlink_to(str(shutil.which("bash")))
    monkeypatch.setenv("PATH", str(tmp_path / "only"))
    assert submit(spec) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert submit(spec, "--dry-run") == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [(("--at-once", "0"), "--at-once 0: expected a number from 1"), (("--set", "train.epoch=1"), "did you mean")],
)
def test_mistakes_on_the_command_line(
    spec: Path, more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(spec, *more) == 2
    assert words in capsys.readouterr().err
