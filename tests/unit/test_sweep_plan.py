"""Planning a sweep: which members a file stands for, what is refused, the folder, and handing it to a drawn sbatch."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import bloodcell_dist
from bloodcell_dist import cli
from bloodcell_dist.commandline import add_train_options
from bloodcell_dist.config import load_settings
from bloodcell_dist.settings import Settings
from bloodcell_dist.sweep.folder import Plan, SweepDir
from bloodcell_dist.sweep.members import Member, as_text, expand
from bloodcell_dist.sweep.spec import read_spec

ROOT = Path(bloodcell_dist.__file__).resolve().parents[1]

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """write(text): a sweep's file beside a.yaml, b.yaml and more/a.yaml; tests work in another folder."""
    (tmp_path / "specs" / "more").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH_", "BLOODCELL_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "specs" / "a.yaml").write_text("train: {epochs: 3}\n")
    (tmp_path / "specs" / "b.yaml").write_text("train: {epochs: 4}\n")
    (tmp_path / "specs" / "more" / "a.yaml").write_text("train: {epochs: 5}\n")

    def write_file(text: str) -> Path:
        path = tmp_path / "specs" / "sweep.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write_file


def members(path: Path, *overrides: str) -> list[Member]:
    return expand(read_spec(path), path, overrides, Path.cwd())


def sweep(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """(exit status, out, err) of `bloodcell-dist sweep …`."""
    status = cli.main(["sweep", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def trained(arguments: tuple[str, ...] | list[str]) -> Settings:
    """The settings that `bloodcell-dist train ARGUMENTS` would go by."""
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    options = parser.parse_args(list(arguments))
    return load_settings(options.config, options.overrides)


# ---- which members


@pytest.mark.parametrize(
    ("text", "names", "groups"),
    [
        ("grid: {config: [a.yaml, b.yaml]}", ["a", "b"], ["a", "b"]),
        ("grid: {train.seed: [0]}", ["x"], ["x"]),
        ("grid: {train.seed: [0, 1]}", ["seed0", "seed1"], ["x", "x"]),
        ("grid: {config: [a.yaml], train.seed: [0, 1]}", ["a-seed0", "a-seed1"], ["a", "a"]),
        (
            "grid: {config: [a.yaml, b.yaml], train.seed: [1, 2]}",
            ["a-seed1", "a-seed2", "b-seed1", "b-seed2"],
            ["a", "a", "b", "b"],
        ),
        (
            "grid: {optimizer.learning_rate: [1.0e-3, 0.02], augment.policy: [light, none]}",
            [
                "policy-light-learning_rate0.001",
                "policy-none-learning_rate0.001",
                "policy-light-learning_rate0.02",
                "policy-none-learning_rate0.02",
            ],
            None,
        ),
        ("grid: {model.backbone: [cnn, convnextbase]}", ["cnn", "convnextbase"], ["cnn", "convnextbase"]),
        ("grid: {config: [a.yaml, more/a.yaml]}", ["specs-a", "more-a"], ["specs-a", "more-a"]),
        ("also: [{config: a.yaml, settings: {train.seed: 7}}, {config: b.yaml}]", ["a-seed7", "b"], ["a", "b"]),
        (
            "grid: {config: [a.yaml], train.seed: [0]}\nalso: [{config: a.yaml, settings: {train.seed: 1}}]",
            ["a", "a-seed1"],
            ["a", "a"],
        ),
    ],
)
def test_members_are_named_and_grouped(write: Write, text: str, names: list[str], groups: list[str] | None) -> None:
    found = members(write(f"name: x\n{text}\n"))
    assert [one.name for one in found] == names
    assert [one.group for one in found] == (groups or names)


def test_the_six_backbones_are_the_default() -> None:
    path = ROOT / "configs" / "sweep.yaml"
    found = members(path)
    backbones = ["cnn", "mobilenetv3small", "efficientnetb0", "efficientnetv2s", "efficientnetv2m", "convnextbase"]
    assert [one.name for one in found] == backbones == [one.settings.model.backbone for one in found]
    assert read_spec(path).at_once == 2


@pytest.mark.parametrize(
    "value", ["/data/a b'c\"$d.npz", "/etc/#x", "/ä/血.npz", "/with\nline", "/123", "/[a]", "/a: b", "/100%", "/ends "]
)
def test_texts_survive_the_way_to_the_training(write: Write, value: str) -> None:
    (one,) = members(write(f"name: x\ngrid: {{data.path: [{json.dumps(value)}]}}\n"))
    assert trained(one.arguments).data.path == one.settings.data.path == value


@pytest.mark.parametrize(
    "value", [1, 0.5, 1e-7, True, None, "null", "true", "12", "1e-3", "a b", "", ["x", 1], {"a": 1}]
)
def test_values_are_read_back_as_they_were(value: object) -> None:
    from bloodcell_dist.config import _Loader

    assert yaml.load(as_text(value), _Loader) == value


def test_the_order_in_which_settings_win(write: Write) -> None:
    path = write(
        """
        name: x
        settings: {train.epochs: 10, train.seed: 5, evaluate.bootstrap: 7}
        grid: {config: [a.yaml], train.seed: [1]}
        """
    )
    (one,) = members(path, "evaluate.bootstrap=0")
    read = trained(one.arguments)
    assert (read.train.epochs, read.train.seed, read.evaluate.bootstrap) == (10, 1, 0)
    assert read == one.settings


def test_paths_are_absolute(write: Write, tmp_path: Path) -> None:
    """Configurations start at the sweep's file, cells and weights at the working folder; `imagenet` is no path."""
    path = write("name: x\ngrid: {config: [a.yaml], model.weights: [imagenet, mine.keras]}\n")
    first, second = members(path, "data.path=cells/a.npz", "data.cache_dir=off")
    assert first.arguments[:2] == ("--config", str(tmp_path / "specs" / "a.yaml"))
    assert trained(first.arguments).data.path == str(tmp_path / "work" / "cells" / "a.npz")
    assert trained(first.arguments).data.cache_dir == "off"
    assert trained(first.arguments).model.weights == "imagenet"
    assert trained(second.arguments).model.weights == str(tmp_path / "work" / "mine.keras")


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: {train.seed: [0]}", "name is missing"),
        ("name: a/b\ngrid: {train.seed: [0]}", "name='a/b' is not possible"),
        ("name: ..\ngrid: {train.seed: [0]}", "name='..' is not possible"),
        ("name: x", "has no members; expected grid:"),
        ("name: x\ngrids: {train.seed: [0]}", "unknown key grids; did you mean grid?"),
        ("name: x\ngrid: {train.sed: [0]}", "grid: unknown key train.sed; did you mean train.seed?"),
        ("name: x\ngrid: {seed: [0]}", "grid: unknown key seed; did you mean train.seed?"),
        ("name: x\ngrid: {train.seed: 0}", "train.seed=0 is not possible; expected a list"),
        ("name: x\ngrid: {train.seed: []}", "train.seed=[] has no value"),
        ("name: x\ngrid: {config: [1]}", "expected names of YAML files"),
        ("name: x\nalso: [{confg: a.yaml}]", "unknown key confg; did you mean config?"),
        (
            "name: x\nalso: [{settings: {model.backbon: cnn}}]",
            "unknown key model.backbon; did you mean model.backbone?",
        ),
        ("name: x\nsettings: {train.epoch: 1}\ngrid: {train.seed: [0]}", "did you mean train.epochs?"),
        ("name: x\nat_once: 0\ngrid: {train.seed: [0]}", "at_once=0 is not possible; expected greater than 0"),
        ("name: x\nslurm: {array: 1-3}\ngrid: {train.seed: [0]}", "array is set by the sweep itself"),
        ("name: x\nslurm: {--time: 1}\ngrid: {train.seed: [0]}", "expected its long name without dashes"),
        ("name: x\ngrid: {config: [gone.yaml]}", "gone.yaml: cannot be read (No such file or directory)"),
        ("name: x\ngrid: {train.epochs: [3, 0]}", "train.epochs=0 is not possible: input should be greater than 0"),
        ("name: x\ngrid: {train.seed: [0, 0]}", "train.seed=0 and train.seed=0 are the same training; leave one out"),
        ("name: x\ngrid: {config: [a.yaml]}\nalso: [{config: a.yaml}]", "a.yaml and a.yaml are the same training"),
        ("name: x\ngrid: [", "is not YAML"),
        ("- x", "holds a list"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    write: Write, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path = write(text)
    status, out, err = sweep(capsys, "plan", path)
    assert (status, out) == (2, "")
    assert f"{path}: " in err and words in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("plan", "gone.yaml"), "no such file; give the YAML file of a sweep"),
        (("plan", "S", "--set", "train.epoch=5"), "unknown key train.epoch; did you mean train.epochs?"),
        (("submit", "S", "--at-once", "0", "--dry-run"), "--at-once 0: expected a number from 1"),
        (("run", "S"), "say so with --local, or submit them to Slurm with `bloodcell-dist sweep submit "),
    ],
)
def test_mistakes_on_the_command_line(
    write: Write, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    path = write("name: x\ngrid: {train.seed: [0]}\n")
    given = [str(path) if text == "S" else text for text in arguments]
    status, out, err = sweep(capsys, *given)
    assert (status, out) == (2, "") and words in err
    assert list(Path.cwd().iterdir()) == []


# ---- the folder


def test_the_folder(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = write("name: x\ngrid: {config: [a.yaml], train.seed: [0, 1]}\n")
    status, out, err = sweep(capsys, "plan", path, "--set", "evaluate.bootstrap=0")
    folder = tmp_path / "work" / "sweeps" / "x"
    assert (status, out) == (0, f"{folder}\n") and "a-seed0" in err and "2 members" in err
    assert (folder / "sweep.yaml").read_text() == path.read_text()
    plan = json.loads((folder / "members.json").read_text())
    assert plan["name"] == "x"
    assert [(one["index"], one["name"], one["group"]) for one in plan["members"]] == [
        (0, "a-seed0", "a"),
        (1, "a-seed1", "a"),
    ]
    assert [one["settings"] for one in plan["members"]] == [{"train.seed": 0}, {"train.seed": 1}]
    for one in plan["members"]:
        arguments = (folder / "arguments" / str(one["index"])).read_bytes().decode().split("\0")
        assert arguments == [*one["arguments"], ""]
        assert arguments[-3:] == ["--run-dir", one["run_dir"], ""]
        assert one["run_dir"] == str(folder / "runs" / one["name"])
        read = trained(one["arguments"])
        assert (read.train.epochs, read.train.seed, read.evaluate.bootstrap) == (3, one["index"], 0)


@pytest.mark.parametrize("name", ["two words", "it's $HOME", "50%", "Zellen-äöü", "a\\b", '"q"'])
def test_folders_of_every_name(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    path = write("name: x\ngrid: {train.seed: [0]}\n")
    status, out, _ = sweep(capsys, "plan", path, "--out", tmp_path / name)
    assert (status, out) == (0, f"{tmp_path / name}\n")
    assert SweepDir(tmp_path / name).read_plan().members[0].name == "x"


def test_planning_again_changes_nothing(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("name: x\ngrid: {train.seed: [0, 1]}\n")
    sweep(capsys, "plan", path)
    before = contents(Path("sweeps/x"))
    assert sweep(capsys, "plan", path)[0] == 0
    assert contents(Path("sweeps/x")) == before


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--set", "train.epochs=9"), "was planned with other members (seed0 "),
        (("spec", "name: x\ngrid: {train.seed: [0, 1, 2]}\n"), "seed2"),
        (("spec", "name: x\ngrid: {train.seed: [0, 2]}\n"), "(seed1 "),
    ],
)
def test_other_content_is_refused(
    write: Write, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    path = write("name: x\ngrid: {train.seed: [0, 1]}\n")
    sweep(capsys, "plan", path)
    before = contents(Path("sweeps/x"))
    more = () if change[0] == "spec" else change
    if change[0] == "spec":
        path.write_text(change[1])
    status, _, err = sweep(capsys, "plan", path, *more)
    assert status == 2 and words in err and "give another --out for the new sweep" in err
    assert contents(Path("sweeps/x")) == before


def test_a_changed_configuration_is_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("name: x\ngrid: {config: [a.yaml]}\n")
    sweep(capsys, "plan", path)
    (path.parent / "a.yaml").write_text("train: {epochs: 8}\n")
    status, _, err = sweep(capsys, "plan", path)
    assert status == 2 and "configuration of a has changed" in err


def test_a_foreign_folder_is_refused(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("name: x\ngrid: {train.seed: [0]}\n")
    Path("full").mkdir()
    Path("full", "thesis.tex").touch()
    status, _, err = sweep(capsys, "plan", path, "--out", "full")
    assert status == 2 and "holds thesis.tex and no sweep; give a new or empty folder" in err
    assert os.listdir("full") == ["thesis.tex"]


def test_several_processes_plan_at_once(write: Write) -> None:
    path = write("name: x\ngrid: {train.seed: [0, 1, 2, 3, 4, 5, 6, 7]}\n")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bloodcell_dist.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "sweep", "plan", str(path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(5)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    folder = Path("sweeps/x").absolute()
    assert [(out, status) for out, _, status in ended] == [(f"{folder}\n", 0)] * 5
    plan: Plan = SweepDir(folder).read_plan()
    assert [one.index for one in plan.members] == list(range(8))
    assert sorted(os.listdir(folder / "arguments"), key=int) == [str(index) for index in range(8)]
    assert [name for name in os.listdir(folder) if name.startswith(".tmp-")] == []


# ---- submitting, with programs that write down how they were called


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[list[str], dict[str, str]]]]:
    """called(): arguments and environment of each call of sbatch so far; its jobs are 17, 18, …"""
    programs, calls = tmp_path / "programs", tmp_path / "calls"
    programs.mkdir()
    calls.mkdir()
    sbatch = f"""#!/bin/bash
        number=$((17 + $(ls '{calls}' | wc -l) / 2))
        printf '%s\\0' "$@" >'{calls}'/$number.arguments
        env -0 >'{calls}'/$number.environment
        echo "$number;cluster"
    """
    for name, text in {"sbatch": sbatch, "squeue": "#!/bin/bash\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")

    def read() -> list[tuple[list[str], dict[str, str]]]:
        found = []
        for path in sorted(calls.glob("*.arguments")):
            variables = path.with_suffix(".environment").read_text().split("\0")[:-1]
            pairs = (text.partition("=") for text in variables)
            found.append((path.read_text().split("\0")[:-1], {name: value for name, _, value in pairs}))
        return found

    return read


Called = Callable[[], list[tuple[list[str], dict[str, str]]]]

THREE = "name: x\ngrid: {train.seed: [0, 1, 2]}\nslurm: {nodes: 2, time: '1:00'}\n"


def test_submitting(write: Write, called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(THREE)
    status, out, err = sweep(capsys, "submit", path, "--", "--account=a b", "--nice")
    assert (status, err) == (0, "") and "17" in out and "18" in out
    folder = Path("sweeps/x").absolute()
    (members_call, _), (report_call, _) = called()
    assert members_call == ["--parsable", "--account=a b", "--nice", str(folder / "members.sbatch")]
    assert report_call == [
        "--parsable",
        "--account=a b",
        "--dependency=afterany:17",
        str(folder / "report.sbatch"),
    ]
    text = (folder / "members.sbatch").read_text()
    assert "#SBATCH --array=0-2%2\n#SBATCH --nodes=2\n#SBATCH --time=1:00\n" in text
    (made,) = json.loads((folder / "submitted.json").read_text())
    assert (made["array"], made["report"], made["members"]) == ("17", "18", [0, 1, 2])


def test_at_once_from_the_command_line(write: Write, called: Called, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(capsys, "submit", write(THREE), "--at-once", "3")
    assert "#SBATCH --array=0-2%3\n" in Path("sweeps/x/members.sbatch").read_text()


def test_what_an_enclosing_job_left_does_not_reach_sbatch(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = {
        "SLURM_JOB_ID": "5",
        "SLURM_NTASKS": "8",
        "PMIX_RANK": "0",
        "PMI_RANK": "0",
        "OMPI_COMM_WORLD_RANK": "0",
    }
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_PARTITION": "gpu", "BLOODCELL_DATA": "/d", "OMP_NUM_THREADS": "1"}
    for name, value in {**inherited, **kept}.items():
        monkeypatch.setenv(name, value)
    assert sweep(capsys, "submit", write(THREE))[0] == 0
    for _, environment in called():
        assert not environment.keys() & inherited.keys()
        assert environment.items() >= kept.items()


def test_settings_of_the_site_count_and_those_of_the_environment_win(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site = tmp_path / "it's a site.env"
    site.write_text(
        "SBATCH_ACCOUNT='blood $cells'\nSBATCH_PARTITION=slow\nBLOODCELL_DATA=/cells\nsite_setup() { :; }\necho hello\n"
    )
    monkeypatch.setenv("BLOODCELL_SITE", str(site))
    monkeypatch.setenv("SBATCH_PARTITION", "fast")
    status, out, _ = sweep(capsys, "submit", write(THREE))
    assert status == 0 and "hello" not in out
    wanted = {"SBATCH_ACCOUNT": "blood $cells", "SBATCH_PARTITION": "fast", "BLOODCELL_SITE": str(site)}
    assert [environment.items() >= wanted.items() for _, environment in called()] == [True, True]


def test_a_named_site_must_be_there(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOODCELL_SITE", "/gone.env")
    status, _, err = sweep(capsys, "submit", write(THREE))
    assert status == 2 and "BLOODCELL_SITE=/gone.env: no such file" in err
    assert called() == []


def test_finished_members_are_left_out_and_said(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(THREE)
    sweep(capsys, "plan", path)
    finish("seed1")
    _, out, _ = sweep(capsys, "submit", path)
    assert "seed1 is finished" in out
    assert "#SBATCH --array=0,2%2\n" in Path("sweeps/x/members.sbatch").read_text()


def test_when_all_are_finished_only_the_report_is_made(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(THREE)
    sweep(capsys, "plan", path)
    for seed in range(3):
        finish(f"seed{seed}")
    status, out, _ = sweep(capsys, "submit", path)
    assert status == 0 and "nothing to submit" in out and called() == []
    assert Path("sweeps/x/comparison.html").exists()


def finish(name: str) -> None:
    run = Path("sweeps/x/runs", name)
    run.mkdir()
    (run / "result.json").write_text("{}")


def test_dry_run_shows_all_and_writes_nothing(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("SBATCH_ACCOUNT", "blood")
    path = write(THREE)
    status, out, err = sweep(capsys, "submit", path, "--dry-run", "--", "--nice=3")
    assert (status, err) == (0, "")
    assert list(Path.cwd().iterdir()) == []
    folder = Path("sweeps/x").absolute()
    last = out.splitlines()[-2:]
    assert last[0] == f"sbatch --parsable --nice=3 {folder}/members.sbatch"
    assert last[1].startswith("sbatch --parsable --dependency=afterany:") and last[1].endswith("/report.sbatch")
    assert "SBATCH_ACCOUNT=blood" in out and out.count("#!/usr/bin/env bash\n") == 2


def test_dry_run_shows_exactly_what_is_submitted(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(THREE)
    _, shown, _ = sweep(capsys, "submit", path, "--dry-run")
    sweep(capsys, "submit", path)
    for name in ("members.sbatch", "report.sbatch"):
        assert Path("sweeps/x", name).read_text() in shown


def test_without_sbatch(write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    status, _, err = sweep(capsys, "submit", write(THREE))
    assert status == 2 and "there is no sbatch here" in err and "sweep run --local" in err


def test_what_sbatch_says_is_told(
    write: Write, called: Called, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "programs" / "sbatch").write_text("#!/bin/bash\necho 'Invalid account' >&2\nexit 1\n")
    status, _, err = sweep(capsys, "submit", write(THREE))
    assert (status, err) == (2, "bloodcell-dist: sbatch refuses: Invalid account\n")
