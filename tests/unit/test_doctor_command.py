"""`bloodcell-dist doctor`: what it reads, what it prints, how it ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist import cli
from bloodcell_dist.cluster.environment import ALONE, ProcessInfo
from bloodcell_dist.doctor import alone, examination
from bloodcell_dist.doctor.asked import Asked, judge_asked, read_asked
from bloodcell_dist.doctor.devices import Gpus
from bloodcell_dist.doctor.examination import as_node, examine, judge
from bloodcell_dist.doctor.layout import Layout
from bloodcell_dist.resolve import Machine

TWO_RANKS = ProcessInfo("horovod", 0, 2, 0, 2, 0, 1, "here")
Line = dict[str, str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with 16 cells; nothing of this machine's environment counts."""
    for name in os.environ:
        if name.startswith(("BLOODCELL_", "SLURM_", "SBATCH_", "HOROVOD_", "OMPI_", "TF_CONFIG", "CUDA_VISIBLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    np.savez("cells.npz", images=np.zeros((16, 16, 16, 3), np.uint8), labels=np.arange(16) % 8)
    return tmp_path


def ask(
    *overrides: str,
    environ: Mapping[str, str] | None = None,
    process: ProcessInfo = ALONE,
    run_dir: str | None = None,
) -> Asked:
    return read_asked(None, overrides, run_dir, Machine(0, process=process), environ or {}, Path.cwd())


@pytest.mark.parametrize(
    ("overrides", "environ", "changed"),
    [
        ((), {}, {"source_given": False, "problem": None, "data_problem": None, "weights": "auto"}),
        (("data.source=synthetic",), {}, {"source_given": True}),
        (("data.path=cells.npz",), {}, {"source_given": True, "told": "the defaults, 1 changed by --set"}),
        ((), {"BLOODCELL_DATA": "cells.npz"}, {"source_given": True}),
        (
            (),
            {"BLOODCELL_DATA": "gone"},
            {"data_problem": "{folder}/gone: no such file or folder (from $BLOODCELL_DATA)"},
        ),
        (
            ("train.epoch=1",),
            {},
            {"problem": "--set train.epoch=1: unknown key train.epoch; did you mean train.epochs?"},
        ),
        (("distribute.strategy=horovod",), {}, {"problem": None, "strategy": "horovod"}),  # the head of a job
        (("distribute.strategy=multiworker",), {}, {"problem": None, "strategy": "multiworker"}),
        (("model.weights=none", "model.backbone=cnn"), {}, {"weights": "none"}),
    ],
)
def test_what_is_asked_for(
    overrides: tuple[str, ...], environ: Mapping[str, str], changed: dict[str, Any], folder: Path
) -> None:
    found = ask(*overrides, environ=environ).model_dump()
    words = {key: value.format(folder=folder) if isinstance(value, str) else value for key, value in changed.items()}
    assert found | words == found


def test_settings_are_those_of_a_run(folder: Path) -> None:
    asked = ask("data.path=cells.npz", "data.test_path=gone.npz", "train.epochs=7", environ={"BLOODCELL_DATA": "other"})
    data = asked.settings.data
    assert (data.source, data.path, data.test_path) == ("npz", str(folder / "cells.npz"), str(folder / "gone.npz"))
    assert asked.run.startswith(str(folder / "runs/mobilenetv3small-"))
    assert ask(run_dir="r").run == str(folder / "r")
    (line,) = judge_asked(asked)
    assert (line.level, line.text) == ("ok", "the defaults, 3 changed by --set: mobilenetv3small, 7 epochs")


def test_cells_that_are_missing_hide_nothing_else(folder: Path) -> None:
    asked = ask("data.path=gone.npz", "model.backbone=cnn", "data.test_path=cells.npz")
    assert (asked.settings.model.backbone, asked.settings.data.test_path) == ("cnn", str(folder / "cells.npz"))
    assert asked.data_problem == f"{folder}/gone.npz: no such file or folder"


def test_a_strategy_that_does_not_fit_the_launcher(folder: Path) -> None:
    asked = ask("distribute.strategy=multiworker", process=TWO_RANKS)
    assert asked.settings.distribute.strategy == "horovod"
    (line,) = judge_asked(asked)
    assert (line.name, line.level) == ("settings", "error")
    assert line.text.startswith("distribute.strategy=multiworker does not fit: 2 processes, started by horovodrun")


def test_asked_travels_as_json(folder: Path) -> None:
    asked = ask("data.path=cells.npz", "data.class_names=[a, b]")
    assert Asked.model_validate_json(asked.model_dump_json()) == asked


def look(
    process: ProcessInfo = ALONE, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> examination.Examination:
    return examine(ask(*overrides, environ=environ), Layout(), process, environ or {}, Gpus())


def test_each_rank_looks_at_its_own(folder: Path) -> None:
    second = look(ProcessInfo("horovod", 1, 4, 1, 2, 0, 2, "a"))
    assert second.cores is not None and second.software is None and second.run is None and second.data is None
    other_node = look(ProcessInfo("horovod", 2, 4, 0, 2, 1, 2, "b"))
    assert other_node.software is not None and other_node.data is not None and other_node.cache is not None
    assert other_node.run is None and other_node.weights is None and other_node.slurm is None
    chief = look(ProcessInfo("horovod", 0, 4, 0, 2, 0, 2, "a"))
    assert chief.run is not None and chief.weights is not None and chief.slurm is not None
    assert examination.Examination.model_validate_json(chief.model_dump_json()) == chief
    assert [line.name for line in judge(second)] == ["tasks", "gpus", "cores"]
    assert as_node(chief).versions["keras"] and as_node(chief).cores == os.cpu_count()


def test_a_check_that_fails_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(5, "Input/output error", "/proc/x")

    monkeypatch.setattr(examination, "look_at_software", broken)
    monkeypatch.setattr(examination, "look_at_slurm", lambda environ: environ["key"])
    found = look()
    assert found.failures == {"packages": "/proc/x: Input/output error", "slurm": "'key'"}
    lines = judge(found)[-2:]
    assert [(line.name, line.level, line.text) for line in lines] == [
        ("packages", "warning", "could not be checked (/proc/x: Input/output error)"),
        ("slurm", "warning", "could not be checked ('key')"),
    ]
    assert capsys.readouterr() == ("", "")
    examine(ask(), Layout(), ALONE, {}, Gpus(), show_traceback=True)
    assert "Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "level", "text"),
    [
        (lambda run: None, "ok", "{run} (to be made in {folder}), writable"),
        (lambda run: (run.mkdir(), (run / "run_id").touch()), "ok", "{run}, writable"),
        (lambda run: (run.mkdir(), (run / "thesis.tex").touch()), "error", "{run}: has no file run_id"),
        (lambda run: run.touch(), "error", "{run} cannot be written: {run} is no folder"),
    ],
)
def test_the_run_folder(prepare: Any, level: str, text: str, folder: Path) -> None:
    run = folder / "run"
    prepare(run)
    found = examine(ask(run_dir="run"), Layout(), ALONE, {}, Gpus())
    (line,) = [line for line in judge(found) if line.name == "run folder"]
    assert line.level == level and line.text.startswith(text.format(run=run, folder=folder))


@pytest.mark.parametrize(
    ("overrides", "environ", "name", "level", "text"),
    [
        ((), {}, "scratch", "ok", "none: $BLOODCELL_SCRATCH is not set"),
        ((), {"BLOODCELL_SCRATCH": "{folder}"}, "scratch", "ok", "{folder}, writable"),
        ((), {"BLOODCELL_SCRATCH": "{folder}/cells.npz/x"}, "scratch", "warning", "{folder}/cells.npz/x (to be made"),
        (("data.cache_dir=cells.npz",), {}, "cache", "error", "{folder}/cells.npz cannot be written"),
        (("data.cache_dir=c",), {}, "cache", "ok", "{folder}/c (to be made in {folder}), writable"),
        ((), {}, "cache", "ok", "{folder}/cache/bloodcell_dist (to be made in {folder}), writable"),
    ],
)
def test_scratch_and_cache(
    overrides: tuple[str, ...], environ: dict[str, str], name: str, level: str, text: str, folder: Path
) -> None:
    found = look(overrides=overrides, environ={key: value.format(folder=folder) for key, value in environ.items()})
    (line,) = [line for line in judge(found) if line.name == name]
    assert line.level == level and line.text.startswith(text.format(folder=folder))


def test_a_cache_that_nobody_asked_for_is_not_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cells.npz"))
    (line,) = [line for line in judge(look()) if line.name == "cache"]
    assert line.level == "warning"
    assert [line for line in judge(look(overrides=["data.cache_dir=off"])) if line.name == "cache"] == []


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[Line]]:
    """(exit status, lines) of `doctor --quick --json`, which prints nothing else."""
    try:
        status = cli.main(["doctor", "--quick", "--json", *arguments])
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        status = ended.code
    out, err = capsys.readouterr()
    assert err == ""
    return status, json.loads(out)


def test_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = doctor(capsys, "--set", "data.path=cells.npz", "--set", "model.backbone=cnn")
    assert status == 0 and "error" not in {line["level"] for line in lines}
    assert all(list(line) == ["name", "level", "text", "fix"] for line in lines)
    assert [line["name"] for line in lines][:12] == [
        *("settings", "tasks", "python", "packages", "horovod", "gpus", "cores", "data", "test data", "weights"),
        *("run folder", "scratch"),
    ]
    assert {"name": "data", "level": "ok", "text": f"{folder}/cells.npz, npz, 16 cells", "fix": ""} in lines
    assert sorted(path.name for path in folder.iterdir()) == ["cells.npz"]  # it leaves nothing behind


def test_an_error_is_exit_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, lines = doctor(capsys, "--set", "data.path=gone.npz", "--set", "model.weights=gone.keras")
    assert status == 2
    assert [line["name"] for line in lines if line["level"] == "error"] == ["data", "weights"]
    assert next(line for line in lines if line["name"] == "weights")["fix"].startswith("another model.weights")


def test_it_takes_the_options_of_a_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head of a job gives it those of the training that comes."""
    (folder / "my.yaml").write_text("model: {backbone: cnn}\ntrain: {epochs: 3}\n")
    options = ["--config", "my.yaml", "--run-dir", "r", "--debug", "--eager", "--traceback"]
    status, lines = doctor(capsys, *options)
    assert status == 0
    assert lines[0]["text"].startswith("my.yaml, 9 changed by --set: cnn, 2 epochs")
    assert next(line for line in lines if line["name"] == "run folder")["text"].startswith(f"{folder}/r (to be made")


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_chief_speaks(
    rank: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RANK": rank, "SIZE": "2", "LOCAL_RANK": rank, "LOCAL_SIZE": "2", "CROSS_RANK": "0", "CROSS_SIZE": "1"}
    for name, value in places.items():
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    assert cli.main(["doctor", "--quick"]) == 0
    assert bool(capsys.readouterr().out) == (rank == "0")


def test_a_launcher_that_makes_no_sense(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOROVOD_RANK", "0")
    status, lines = doctor(capsys)
    assert status == 2
    assert lines[1]["text"] == "HOROVOD_SIZE is not set, though others of its launcher are"


def test_several_tasks_take_a_gpu_each(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that `auto` chooses depends on whether there is one."""
    machines: list[Machine] = []

    def read(machine: Machine) -> Asked:
        machines.append(machine)
        return ask()

    monkeypatch.setattr(alone, "look_at_gpus", lambda: Gpus(names=("x",) * 4))
    alone.look_alone(read, ALONE, None)
    alone.look_alone(read, ProcessInfo("horovod", 0, 2, 0, 2, 0, 1, "here"), None)
    assert [machine.num_gpus for machine in machines] == [4, 1]


def test_quick_does_without_tensorflow(folder: Path) -> None:
    code = "from bloodcell_dist.cli import main; main(['doctor', '--quick'])"
    command = [sys.executable, "-X", "importtime", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "pydantic" in imported
    assert not imported & {"tensorflow", "keras", "horovod", "matplotlib", "sklearn"}


def test_colours_on_a_terminal_only(folder: Path) -> None:
    command = [sys.executable, "-m", "bloodcell_dist.cli", "doctor", "--quick"]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "\033" not in plain and plain.startswith("ok       settings    the defaults: mobilenetv3small, 4 epochs\n")
    assert on_a_terminal(command, {"TERM": "xterm"}).startswith("\033[32mok     \033[0m  settings    ")
    assert "\033" not in on_a_terminal(command, {"TERM": "xterm", "NO_COLOR": "1"})
    assert "\033" not in on_a_terminal(command, {"TERM": "dumb"})


def on_a_terminal(command: list[str], environ: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdout=theirs, env={**os.environ, **environ})
    os.close(theirs)
    text = b""
    try:
        while block := os.read(ours, 4096):
            text += block
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0
    return text.decode()


@pytest.mark.slow
def test_thoroughly_alone(folder: Path) -> None:
    """With TensorFlow: hashes too, and still nothing but JSON on standard output."""
    options = ["--set", "data.path=cells.npz", "--set", "data.test_path=cells.npz", "--set", "model.backbone=cnn"]
    command = [sys.executable, "-m", "bloodcell_dist.cli", "doctor", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines: list[Line] = json.loads(done.stdout)
    assert [line["name"] for line in lines].count("sha-256") == 2
    assert "all-reduce" not in {line["name"] for line in lines}  # there is nobody to sum with


@pytest.mark.slow
def test_ranks_that_cannot_meet(folder: Path) -> None:
    """What this process sees by itself is told all the same: mpirun, and a Horovod without MPI or none at all."""
    places = {f"OMPI_COMM_WORLD_{name}": "0" for name in ("RANK", "LOCAL_RANK")}
    places |= {f"OMPI_COMM_WORLD_{name}": "2" for name in ("SIZE", "LOCAL_SIZE")}
    command = [sys.executable, "-m", "bloodcell_dist.cli", "doctor", "--json"]
    env = {**os.environ, **places, "HOROVOD_CONTROLLER": "gloo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 2, done.stderr
    lines: list[Line] = json.loads(done.stdout)
    assert lines[-1]["name"] == "ranks" and lines[-1]["text"].startswith("the processes do not meet: ")
    assert {"python", "horovod", "run folder"} <= {line["name"] for line in lines}
