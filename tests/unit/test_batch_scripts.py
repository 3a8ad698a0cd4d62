"""The batch scripts in slurm/, run by bash among programs that only note how they were called and answer as told."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bloodcell_dist.config import load_settings

ROOT = Path(__file__).parents[2]
SLURM = ROOT / "slurm"
TEMPLATES = sorted(SLURM.glob("train_*.sh"))
NAMES = ("srun", "scontrol", "scancel", "sbatch", "apptainer", "horovodrun", "python", "bloodcell-dist")
TOOLS = [
    "awk",
    "bash",
    "cat",
    "cp",
    "date",
    "dirname",
    "env",
    "find",
    "grep",
    "head",
    "hostname",
    "mkdir",
    "mv",
    "od",
]
TOOLS += ["paste", "rm", "sed", "sleep", "touch", "tr", "wc"]

FAKE = """#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" --end-- >>"$DESK/calls"
env -0 >"$DESK/environment of ${0##*/}"
answer=$DESK/answers/${0##*/}
if [ -f "$answer" ]; then . "$answer"; fi
"""
SCONTROL = """
case "$1 $2" in
"show job") cat "$DESK/answers/job" ;;
"show hostnames") printf 'n1\\nn2\\n' ;;
esac
"""
TRAINING = """
if [ -n '{run}' ]; then
    mkdir -p '{run}/checkpoints'
    printf '%s' '{run}' >"$BLOODCELL_RECORD.run"
    printf '{{"state": "x", "exit_status": {said}, "message": "\\\\"exit_status\\\\": 9"}}' >'{run}/status.json'
    if [ -n '{checkpoint}' ]; then mkdir -p '{run}/checkpoints/{checkpoint}'; fi
fi
exit {status}
"""
HOSTILE = ("--set", "a=two words", "it's", '"quoted"', "$HOME *", "", "b\\c", "größer")
TRAIN = ("python", "-m", "bloodcell_dist.train")
AUTO = ("srun", "--kill-on-bad-exit=1", "--export=ALL", "--mpi=none", "--cpus-per-task=8")

Call = tuple[str, ...]


class Done(NamedTuple):
    """How a script ended."""

    status: int
    out: str


class Desk:
    """A folder from which batch scripts are run, in a job of two nodes with two tasks each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.work = folder / "a 'working' folder"
        for made in (self.bin, self.work, folder / "answers"):
            made.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        for name in NAMES:
            self.program(self.bin / name)
        self.answer("scontrol", SCONTROL)
        self.job_is("RUNNING")
        self.script = self.file("script.sh", f'. "{SLURM}/lib/job.sh"\nbloodcell_job "$@"\n')
        self.variables = {
            "PATH": str(self.bin),
            "DESK": str(folder),
            "HOME": str(folder),
            "BLOODCELL_SITE": str(folder / "site.env"),
            "BLOODCELL_VENV": "/nowhere",
            "BLOODCELL_PREFLIGHT": "off",
            "BLOODCELL_RETRY_S": "0",
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "cells",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_TASKS_PER_NODE": "2(x2)",
            "SLURM_CPUS_PER_TASK": "8",
            "SLURM_CPUS_ON_NODE": "16",
            "SLURM_SUBMIT_DIR": str(self.work),
        }

    def program(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(FAKE)
        file.chmod(0o755)

    def file(self, name: str, text: str) -> Path:
        (self.folder / name).write_text(text)
        return self.folder / name

    def answer(self, name: str, text: str) -> None:
        """What a program does when it is called."""
        (self.folder / "answers" / name).write_text(text)

    def job_is(self, state: str, command: Path | str = "/x/train_cnn.sh") -> None:
        """What `scontrol show job` says."""
        self.answer(
            "job", f"JobId=4711 JobName=cells\n   JobState={state} Reason=None\n   Command={command} --set a=b\n"
        )

    def training(self, status: int, said: int | None = None, run: Path | None = None, checkpoint: str = "") -> None:
        """The next training ends like this: srun's exit status, what the chief says in status.json, what it saves."""
        text = "null" if said is None else str(said)
        self.answer("srun", TRAINING.format(status=status, said=text, run=run or "", checkpoint=checkpoint))

    def start(self, script: Path, *arguments: str, **variables: str | None) -> subprocess.Popen[str]:
        """Variables that are None are left out."""
        environment = {name: value for name, value in (self.variables | variables).items() if value is not None}
        self.folder.joinpath("calls").write_text("")
        return subprocess.Popen(
            ["bash", str(script), *arguments],
            cwd=self.work,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: Path | None = None, *arguments: str, **variables: str | None) -> Done:
        with self.start(script or self.script, *arguments, **variables) as process:
            out, _ = process.communicate(timeout=60)
        return Done(process.returncode, out)

    def calls(self, *names: str) -> list[Call]:
        """How these programs were called since the last start, in order."""
        found: list[list[str]] = [[]]
        for word in (self.folder / "calls").read_text().split("\0")[:-1]:
            if word == "--end--":
                found.append([])
            else:
                found[-1].append(word)
        return [tuple(call) for call in found[:-1] if call[0] in names]

    def environment_of(self, name: str) -> dict[str, str]:
        text = (self.folder / f"environment of {name}").read_text()
        return dict(line.split("=", 1) for line in text.split("\0")[:-1])

    def record(self, job: str = "4711") -> list[str]:
        """Its lines without the times."""
        file = self.work / "runs" / ".jobs" / job
        return [line.split(" ", 1)[1] for line in file.read_text().splitlines()]

    def requeued(self) -> bool:
        return ("scontrol", "requeue", "4711") in self.calls("scontrol")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def wait_for(what: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- as texts


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        reason = "shellcheck is needed: install the package of this name"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    files = [
        file for pattern in ("slurm/*.sh", "slurm/lib/*.sh", "scripts/*.sh") for file in sorted(ROOT.glob(pattern))
    ]
    names = [str(file.relative_to(ROOT)) for file in [*files, ROOT / ".ci" / "run"]]
    assert len(names) > 12
    done = subprocess.run([shellcheck, *names], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def options_of(script: Path) -> dict[str, str]:
    """The #SBATCH lines; a flag's value is empty."""
    lines = [line for line in script.read_text().splitlines() if line.startswith("#SBATCH ")]
    found = [re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line) for line in lines]
    assert all(found), lines
    return {match[1]: match[2] or "" for match in found if match}


def test_there_is_a_template_for_every_backbone() -> None:
    names = "cnn convnext efficientnetb0 efficientnetv2m efficientnetv2s mobilenetv3small"
    assert [file.stem for file in TEMPLATES] == [f"train_{name}" for name in names.split()]


@pytest.mark.parametrize("script", [*TEMPLATES, SLURM / "sweep.sh"], ids=lambda script: script.stem)
def test_a_template_says_what_it_needs(script: Path) -> None:
    options = options_of(script)
    assert options["signal"] == "B:USR1@300"
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    assert options["output"] == ("%x-%A_%a.log" if script.stem == "sweep" else "%x-%j.log")
    assert re.fullmatch(r"\d\d:00:00", options["time"])
    assert options["job-name"].startswith("bloodcell-")
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # a task per GPU
    assert int(options["nodes"]) >= 1 and int(options["cpus-per-task"]) >= 1
    assert "account" not in options and "partition" not in options  # these are the site's
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith(f"# sbatch slurm/{script.name} [")
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])  # sbatch would not read them
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", TEMPLATES, ids=lambda script: script.stem)
def test_a_template_trains_what_its_name_says(script: Path) -> None:
    (config,) = re.findall(r'"\$configs/(.+?)"', script.read_text())
    settings = load_settings(ROOT / "configs" / config)
    assert settings.model.backbone.startswith(script.stem.removeprefix("train_"))
    assert re.search(rf"(?m)^# .* with configs/{config}[:;,. ]", script.read_text())


# ---- how a training is started


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (None, AUTO),
        ("auto", AUTO),
        ("pmix", ("srun", "--kill-on-bad-exit=1", "--export=ALL", "--mpi=pmix", "--cpus-per-task=8")),
        (
            "multiworker",
            (
                *("srun", "--kill-on-bad-exit=1", "--export=ALL", "--mpi=none"),
                *("--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=16"),
            ),
        ),
        ("horovodrun", ("horovodrun", "--gloo", "-np", "4", "-H", "n1:2,n2:2")),
    ],
)
def test_the_line_of_each_launcher(desk: Desk, launcher: str | None, expected: Call) -> None:
    done = desk.run(None, *HOSTILE, BLOODCELL_LAUNCHER=launcher)
    after = ("--set", "distribute.strategy=multiworker") if launcher == "multiworker" else ()
    assert desk.calls("srun", "horovodrun") == [(*expected, *TRAIN, *HOSTILE, *after)]
    assert done.status == 0, done.out


def test_without_cpus_per_task_srun_is_not_told_any(desk: Desk) -> None:
    desk.run(SLURM_CPUS_PER_TASK=None)
    assert desk.calls("srun") == [(*AUTO[:-1], *TRAIN)]


@pytest.mark.parametrize(("tasks", "expected"), [("2,1", "-np 3 -H n1:2,n2:1"), ("3(x2)", "-np 6 -H n1:3,n2:3")])
def test_horovodrun_on_unequal_nodes(desk: Desk, tasks: str, expected: str) -> None:
    desk.run(None, BLOODCELL_LAUNCHER="horovodrun", SLURM_TASKS_PER_NODE=tasks)
    (call,) = desk.calls("horovodrun")
    assert " ".join(call[2:6]) == expected


def test_an_unknown_launcher_is_refused(desk: Desk) -> None:
    done = desk.run(BLOODCELL_LAUNCHER="mpirun")
    assert done.status == 2
    assert "BLOODCELL_LAUNCHER=mpirun is unknown; it is auto, pmix, multiworker or horovodrun" in done.out
    assert desk.record()[-1].startswith("end status=2 stopped: BLOODCELL_LAUNCHER=mpirun is unknown")
    assert desk.calls("srun", "horovodrun") == []


def test_multiworker_on_one_node_is_left_to_the_training(desk: Desk) -> None:
    """One process is MirroredStrategy's, and would be refused as multiworker."""
    desk.run(BLOODCELL_LAUNCHER="multiworker", SLURM_JOB_NUM_NODES="1", SLURM_GPUS_PER_TASK="1")
    (call,) = desk.calls("srun")
    assert "distribute.strategy=multiworker" not in call
    assert "SLURM_GPUS_PER_TASK" not in desk.environment_of("srun")


def test_a_site_file_may_have_commands_that_fail(desk: Desk) -> None:
    desk.file("site.env", "false\nBLOODCELL_SCRATCH=/local\n[ -d /nowhere ] && BLOODCELL_SCRATCH=/nowhere\n")
    assert desk.run().status == 0
    assert desk.environment_of("srun")["BLOODCELL_SCRATCH"] == "/local"


def test_a_copy_of_a_template_under_another_name_finds_its_lib(desk: Desk) -> None:
    clone = desk.folder / "my clone"
    shutil.copytree(SLURM, clone / "slurm")
    (clone / "spool").mkdir()
    copy = shutil.copy(SLURM / "train_cnn.sh", clone / "spool/slurm_script")
    desk.job_is("RUNNING", clone / "slurm/mine.sh")
    done = desk.run(Path(copy))
    assert done.status == 0, done.out
    desk.job_is("RUNNING", desk.folder / "elsewhere/mine.sh")
    (desk.folder / "elsewhere").mkdir()
    done = desk.run(Path(copy))
    assert done.status == 2
    assert "keep copies in slurm/, or set BLOODCELL_SLURM" in done.out


def test_each_step_has_a_secret_of_its_own(desk: Desk) -> None:
    tokens = []
    for _ in range(2):
        desk.run()
        tokens.append(desk.environment_of("srun")["BLOODCELL_TOKEN"])
    assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)
    assert tokens[0] != tokens[1]
    assert tokens[0] not in str(desk.calls(*NAMES))  # other users see command lines


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"BLOODCELL_RUNS": "{work}/runs", "BLOODCELL_RECORD": "{work}/runs/.jobs/4711", "BLOODCELL_SCRATCH": ""}),
        ({"BLOODCELL_RUNS": "my runs"}, {"BLOODCELL_RUNS": "{work}/my runs"}),
        ({"BLOODCELL_RUNS": "{desk}/r"}, {"BLOODCELL_RECORD": "{desk}/r/.jobs/4711"}),
        ({"BLOODCELL_RECORD": "{desk}/mine/7"}, {"BLOODCELL_RECORD": "{desk}/mine/7"}),
        ({"SLURM_TMPDIR": "/local/4711"}, {"BLOODCELL_SCRATCH": "/local/4711"}),
        ({"SLURM_TMPDIR": "/local/4711", "BLOODCELL_SCRATCH": "/fast"}, {"BLOODCELL_SCRATCH": "/fast"}),
    ],
)
def test_what_the_ranks_are_told(desk: Desk, given: dict[str, str], expected: dict[str, str]) -> None:
    def filled(values: dict[str, str]) -> dict[str, str]:
        return {name: text.format(work=desk.work, desk=desk.folder) for name, text in values.items()}

    assert desk.run(None, **filled(given)).status == 0
    found = desk.environment_of("srun")
    assert {name: found.get(name) for name in expected} == filled(expected)


def test_test_cells_of_the_site_come_before_the_arguments(desk: Desk) -> None:
    desk.run(None, "--set", "data.test_path=mine.npz", BLOODCELL_TEST_SET="/our cells/t.npz")
    told = ("--set", "data.test_path=/our cells/t.npz", "--set", "data.test_path=mine.npz")
    assert desk.calls("srun") == [(*AUTO, *TRAIN, *told)]


@pytest.mark.parametrize("script", TEMPLATES, ids=lambda script: script.stem)
def test_a_template_passes_its_arguments_on(desk: Desk, script: Path) -> None:
    """After its recipe and its own settings, so that they win."""
    done = desk.run(script, *HOSTILE)
    (line,) = re.findall(r'(?m)^bloodcell_job (.*) "\$@"$', script.read_text())
    own = shlex.split(line.replace("$configs", str(ROOT / "configs")))
    assert desk.calls("srun") == [(*AUTO, *TRAIN, *own, *HOSTILE)], done.out
    assert own[0] == "--config" and Path(own[1]).is_file()


@pytest.mark.parametrize("relative", [False, True])
def test_the_copy_that_slurm_runs_finds_its_clone(desk: Desk, relative: bool) -> None:
    clone = desk.folder / "Bob's clone (100%) $HOME"
    for name in ("slurm", "configs"):
        shutil.copytree(ROOT / name, clone / name)
    (clone / "slurm/site.env").unlink(missing_ok=True)
    spooled = desk.file("slurm_script", (SLURM / "train_cnn.sh").read_text())
    there = Path("..", clone.name) if relative else clone
    desk.job_is("RUNNING", there / "slurm/train_cnn.sh")
    done = desk.run(spooled, "--set", "x=y", BLOODCELL_SITE=None)
    config = str(clone / "configs/cnn.yaml")
    assert desk.calls("srun") == [(*AUTO, *TRAIN, "--config", config, "--set", "x=y")], done.out


# ---- the settings of the site


def test_the_environment_wins_over_the_site(desk: Desk) -> None:
    desk.file(
        "site.env", "BLOODCELL_SCRATCH=/site\nBLOODCELL_LAUNCHER=pmix\nNCCL_SOCKET_IFNAME=ib0\nBLOODCELL_RUNS=r\n"
    )
    desk.run(BLOODCELL_LAUNCHER="auto", BLOODCELL_RUNS="two words\nand lines")
    assert desk.calls("srun") == [(*AUTO, *TRAIN)]
    found = desk.environment_of("srun")
    assert (found["BLOODCELL_SCRATCH"], found["NCCL_SOCKET_IFNAME"]) == ("/site", "ib0")
    assert found["BLOODCELL_RUNS"] == f"{desk.work}/two words\nand lines"


def test_site_setup_runs_though_modules_are_not_clean(desk: Desk) -> None:
    text = 'site_setup() {\n    false\n    export MODULES="$NOT_SET loaded"\n    false\n}\n: $NOT_SET_EITHER\n'
    desk.file("site.env", text)
    desk.training(75)
    done = desk.run()
    assert desk.environment_of("srun")["MODULES"] == " loaded"
    assert done.status == 75, done.out  # what comes after runs under -e again


def test_the_example_of_a_site_changes_nothing(desk: Desk) -> None:
    desk.file("site.env", (SLURM / "site.env.example").read_text())
    assert desk.run().status == 0
    assert desk.calls("srun") == [(*AUTO, *TRAIN)]


def test_what_the_example_of_a_site_offers_is_understood(desk: Desk) -> None:
    """With all its lines switched on."""
    text = re.sub(r"(?m)^#(?! \S)", "", (SLURM / "site.env.example").read_text())
    desk.file("site.env", f"module() {{ export LOADED=$*; }}\n{text}")
    done = desk.run(BLOODCELL_RUNS="runs", BLOODCELL_VENV=None, BLOODCELL_PREFLIGHT=None, USER="me")
    assert done.status == 0, done.out
    container = ("apptainer", "exec", "--nv", "--bind", "/project,/scratch", "/project/haematology/bloodcell_dist.sif")
    test_set = ("--set", "data.test_path=/project/haematology/test_set.npz")
    assert desk.calls("srun") == [(*AUTO, *container, *TRAIN, *test_set)]
    found = desk.environment_of("srun")
    assert (found["LOADED"], found["SBATCH_ACCOUNT"]) == ("load CUDA/12.4 NCCL", "haematology")
    assert found["BLOODCELL_SCRATCH"] == "/tmp/me"


def test_in_a_container_everything_runs_through_apptainer(desk: Desk) -> None:
    image = "/our images/b.sif"
    container = ("apptainer", "exec", "--nv", "--bind", "/a,/b", "--cleanenv", image)
    options = "--bind /a,/b  --cleanenv"
    given: dict[str, str | None] = {
        "BLOODCELL_CONTAINER": image,
        "BLOODCELL_CONTAINER_OPTIONS": options,
        "BLOODCELL_PREFLIGHT": "stop",
    }
    assert desk.run(None, "a b", **given).status == 0
    assert desk.calls("srun") == [(*AUTO, *container, *TRAIN, "a b")]
    assert desk.calls("apptainer") == [
        (*container, "python", "-c", "import bloodcell_dist"),
        (*container, "bloodcell-dist", "doctor", "--quick", "a b"),
    ]
    assert desk.calls("python", "bloodcell-dist") == []
    desk.run(None, "a b", BLOODCELL_LAUNCHER="horovodrun", **given)
    (call,) = desk.calls("apptainer")[2:]
    assert call == (*container, "horovodrun", "--gloo", "-np", "4", "-H", "n1:2,n2:2", *TRAIN, "a b")


def test_a_container_needs_no_options(desk: Desk) -> None:
    desk.run(BLOODCELL_CONTAINER="b.sif")
    assert desk.calls("srun") == [(*AUTO, "apptainer", "exec", "--nv", "b.sif", *TRAIN)]


def test_the_virtual_environment_comes_first(desk: Desk) -> None:
    venv = desk.folder / "a venv"
    desk.program(venv / "bin" / "python")
    desk.run(BLOODCELL_VENV=str(venv))
    found = desk.environment_of("srun")
    assert found["PATH"] == f"{venv}/bin:{desk.bin}"
    assert found["VIRTUAL_ENV"] == str(venv)


def test_a_python_without_the_package_is_refused(desk: Desk) -> None:
    desk.answer("python", "exit 1")
    done = desk.run()
    assert done.status == 2
    assert (
        "no Python with bloodcell_dist on " in done.out and "set BLOODCELL_VENV or BLOODCELL_CONTAINER in" in done.out
    )
    assert desk.calls("srun") == []


# ---- outside a job


def test_outside_a_job_it_submits_itself_as_the_site_says(desk: Desk) -> None:
    desk.file("site.env", "SBATCH_ACCOUNT=haematology\nSBATCH_PARTITION='gpu'\n")
    script = SLURM / "train_cnn.sh"
    desk.answer("sbatch", "exit 7")
    done = desk.run(script, *HOSTILE, SLURM_JOB_ID=None, SBATCH_PARTITION="long")
    assert done.status == 7
    assert desk.calls(*NAMES) == [("sbatch", str(script), *HOSTILE)]
    found = desk.environment_of("sbatch")
    assert (found["SBATCH_ACCOUNT"], found["SBATCH_PARTITION"]) == ("haematology", "long")


def test_outside_a_job_without_slurm_it_says_what_to_do(desk: Desk) -> None:
    (desk.bin / "sbatch").unlink()
    done = desk.run(SLURM / "train_cnn.sh", SLURM_JOB_ID=None)
    assert (done.status, desk.calls(*NAMES)) == (2, [])
    assert done.out.startswith("There is no sbatch here. On one machine: bloodcell-dist train")


# ---- how a training ends


@pytest.mark.parametrize(
    ("status", "said", "end", "exit_status", "requeued"),
    [
        (0, None, "end status=0 done", 0, False),
        (2, None, "end status=2 stopped: bad input, see above", 2, False),
        (75, None, "end status=75 requeued", 75, True),
        (1, None, "end status=1 failed 1 of 3 times, requeued", 1, True),
        (3, None, "end status=3 failed 1 of 3 times, requeued", 3, True),
        (137, None, "end status=137 failed 1 of 3 times, requeued", 137, True),
        # what the chief has written down wins over what srun makes of it
        (143, 75, "end status=75 requeued", 75, True),
        (137, 2, "end status=2 stopped: bad input, see above", 2, False),
        (1, 0, "end status=0 done", 0, False),
        (75, 3, "end status=3 failed 1 of 3 times, requeued", 3, True),
    ],
)
def test_an_end_is_recorded_and_followed(
    desk: Desk, status: int, said: int | None, end: str, exit_status: int, requeued: bool
) -> None:
    desk.training(status, said, run=None if said is None else desk.folder / "a run")
    done = desk.run()
    assert done.status == exit_status, done.out
    assert desk.record() == ["start job=4711 restart=0 nodes=n[1-2] at=none", end]
    assert desk.requeued() is requeued


def test_a_chief_that_was_killed_has_said_nothing(desk: Desk) -> None:
    """status.json says null while it runs."""
    desk.training(137, None, run=desk.folder / "run")
    assert desk.run().status == 137
    assert desk.record()[-1] == "end status=137 failed 1 of 3 times, requeued"


def test_what_was_said_in_the_life_before_does_not_count(desk: Desk) -> None:
    desk.training(143, 75, run=desk.folder / "run")
    desk.run()
    desk.training(139)  # before it came to its run folder
    assert desk.run(SLURM_RESTART_COUNT="1").status == 139
    assert desk.record() == [
        "start job=4711 restart=0 nodes=n[1-2] at=none",
        "end status=75 requeued",
        "start job=4711 restart=1 nodes=n[1-2] at=none",
        "end status=139 failed 1 of 3 times, requeued",
    ]


@pytest.mark.parametrize(
    ("status", "end"), [(75, "end status=75 left to Slurm"), (1, "end status=1 failed 1 of 3 times, left to Slurm")]
)
@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PREEMPTED"])
def test_a_job_that_slurm_is_ending_is_left_to_it(desk: Desk, state: str, status: int, end: str) -> None:
    desk.training(status)
    desk.job_is(state)
    done = desk.run()
    assert (done.status, desk.record()[-1], desk.requeued()) == (status, end, False)
    assert f"Slurm ends this job itself ({state})" in done.out


def test_where_slurm_does_not_answer_it_is_asked_again(desk: Desk) -> None:
    desk.training(75)
    desk.answer(
        "scontrol", 'touch "$DESK/$1"; [ -f "$DESK/$1.before" ] || { mv "$DESK/$1" "$DESK/$1.before"; exit 1; }'
    )
    done = desk.run()
    assert (done.status, desk.record()[-1], desk.requeued()) == (75, "end status=75 requeued", True)
    desk.answer("scontrol", "exit 1")
    done = desk.run()
    assert (done.status, desk.record()[-1]) == (75, "end status=75 stopped: Slurm does not requeue it")
    assert len(desk.calls("scontrol")) == 12  # six times each


def test_a_job_that_cannot_be_requeued_says_how_to_go_on(desk: Desk) -> None:
    desk.training(75)
    desk.answer("scontrol", f"{SCONTROL}[ $1 != requeue ] || exit 1")
    done = desk.run()
    assert done.status == 75
    assert "it cannot be requeued; submit it again, it goes on from its last checkpoint" in done.out
    assert desk.record()[-1] == "end status=75 stopped: Slurm does not requeue it"


def test_tasks_of_an_array_have_their_own_number(desk: Desk) -> None:
    desk.training(75)
    desk.run(SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="3")
    assert desk.record("4700_3") == ["start job=4700_3 restart=0 nodes=n[1-2] at=none", "end status=75 requeued"]
    assert desk.calls("scontrol") == [("scontrol", "show", "job", "4700_3"), ("scontrol", "requeue", "4700_3")]


# ---- the cap


def test_three_crashes_in_a_row_are_enough(desk: Desk) -> None:
    desk.training(139)
    ends = [desk.run(SLURM_RESTART_COUNT=str(life)).status for life in range(3)]
    assert ends == [139] * 3
    assert [line for line in desk.record() if line.startswith("end")] == [
        "end status=139 failed 1 of 3 times, requeued",
        "end status=139 failed 2 of 3 times, requeued",
        "end status=139 stopped: ended 3 times in a row without a new checkpoint, at last with exit status 139",
    ]
    assert not desk.requeued()


def test_giving_up_is_said(desk: Desk) -> None:
    desk.training(1)
    done = desk.run(BLOODCELL_MAX_FAILURES="1")
    assert done.status == 1
    assert "GIVEN UP: the training ended 1 times in a row without a new checkpoint" in done.out
    assert "Submit it again, it goes on from its last checkpoint" in done.out


def test_a_new_checkpoint_resets_the_cap(desk: Desk) -> None:
    run = desk.folder / "a run"
    for life, checkpoint in enumerate(["", "", "step-00000010", "", "step-00000020", "", "", "step-00000010"]):
        desk.training(1, None, run, checkpoint)
        desk.run(SLURM_RESTART_COUNT=str(life))
    ends = [line for line in desk.record() if line.startswith("end")]
    counts = [re.sub(r".*(failed|ended) (\d).*", r"\2", line) for line in ends]
    #                  crash, crash, saved 10, crash, saved 20, crash, crash, crash (10 is not new)
    assert counts == ["1", "2", "1", "1", "1", "1", "2", "3"]
    assert "stopped" in ends[-1]


def test_a_job_with_the_number_of_an_older_one_begins_anew(desk: Desk) -> None:
    desk.training(1, 3, desk.folder / "run")
    for life in range(2):
        desk.run(SLURM_RESTART_COUNT=str(life))
    desk.training(1)
    desk.run()
    assert desk.record() == [
        "start job=4711 restart=0 nodes=n[1-2] at=none",
        "end status=1 failed 1 of 3 times, requeued",
    ]
    assert [file.name for file in (desk.work / "runs" / ".jobs").iterdir()] == ["4711"]


def test_lives_that_slurm_cuts_short_are_limited_too(desk: Desk) -> None:
    """Ten starts without an end line and without a checkpoint: a time limit that is too short, a node that dies."""
    desk.answer("srun", f'cp "{desk.work}/runs/.jobs/4711" "{desk.folder}/kept"; kill -9 $PPID; sleep 0.1')
    for life in range(10):
        assert desk.run(SLURM_RESTART_COUNT=str(life)).status == -signal.SIGKILL
    done = desk.run(SLURM_RESTART_COUNT="10")
    assert done.status == 3
    assert desk.record()[-1] == "end status=3 stopped: was started 11 times without a new checkpoint"
    assert desk.calls("srun") == []


COUNT = f"""
. "{SLURM}/lib/job.sh"
echo "found $(count_fruitless failed) $(count_fruitless started) $(newest_checkpoint)"
"""


@pytest.mark.parametrize(
    ("lines", "checkpoints", "found"),
    [
        (["start at=none"], [], "0 1 none"),
        (["start at=none", "end failed", "start at=none"], [], "1 2 none"),
        (["start at=none", "end failed", "start at=none"], ["step-00000005"], "0 0 step-00000005"),
        (
            ["start at=none", "end failed", "start at=step-00000005", "end failed", "start at=step-00000005"],
            ["step-00000005"],
            "1 2 step-00000005",
        ),
        (["start at=none", "end requeued", "start at=none", "start at=none"], [], "0 3 none"),
        (["start at=none", "end left to Slurm", "start at=none", "end failed, left to Slurm"], [], "1 2 none"),
        # given up, and requeued by hand
        (["start at=none", "end failed", "start at=none", "end status=1 stopped: x", "start at=none"], [], "0 1 none"),
        # older than the newest, whatever their order; what is no checkpoint
        (["start at=step-00000100"], ["step-00000100", "step-00000020"], "0 1 step-00000100"),
        (["start at=none"], ["tmp-step-00000009"], "0 1 none"),
        # the newest was taken away, as damaged: so the run is where it was once, which is not new
        (["start at=step-00000005", "end failed", "start at=step-00000009"], ["step-00000005"], "0 0 step-00000005"),
    ],
)
def test_fruitless_lives(desk: Desk, lines: list[str], checkpoints: list[str], found: str) -> None:
    run, record = desk.folder / "my run", desk.folder / "record"
    for name in checkpoints:
        (run / "checkpoints" / name).mkdir(parents=True)
    record.write_text("".join(f"2026-11-25T08:20:59+0000 {line}\n" for line in lines))
    Path(f"{record}.run").write_text(str(run))
    done = desk.run(desk.file("count.sh", COUNT), BLOODCELL_RECORD=str(record))
    assert done.out == f"found {found}\n"


def test_the_run_of_an_earlier_life_is_known_until_there_is_a_newer_one(desk: Desk) -> None:
    for name, step in (("old", 7), ("new", 9)):
        (desk.folder / name / "checkpoints" / f"step-0000000{step}").mkdir(parents=True)
    record = desk.file("record", "2026 start at=step-00000007\n")
    desk.file("record.run-before", str(desk.folder / "old"))
    script = desk.file("count.sh", COUNT)
    assert desk.run(script, BLOODCELL_RECORD=str(record)).out == "found 0 1 step-00000007\n"
    desk.file("record.run", str(desk.folder / "new"))
    assert desk.run(script, BLOODCELL_RECORD=str(record)).out == "found 0 0 step-00000009\n"


# ---- the check at the head of a job


@pytest.mark.parametrize(
    ("check", "restart", "exit_status", "end", "trains"),
    [
        (None, "0", 2, "stopped: the check above found an error (BLOODCELL_PREFLIGHT=warn goes on anyway)", False),
        ("stop", "0", 2, "stopped: the check above found an error (BLOODCELL_PREFLIGHT=warn goes on anyway)", False),
        ("stop", "1", 3, "failed 1 of 3 times, requeued", False),  # another node may be well
        ("warn", "0", 0, "done", True),
        ("off", "0", 0, "done", True),
    ],
)
def test_an_error_of_the_check(
    desk: Desk, check: str | None, restart: str, exit_status: int, end: str, trains: bool
) -> None:
    desk.answer("bloodcell-dist", "exit 1")
    done = desk.run(None, "--set", "a=b c", BLOODCELL_PREFLIGHT=check, SLURM_RESTART_COUNT=restart)
    assert done.status == exit_status
    status = exit_status if trains or restart == "0" else 3
    assert desk.record()[-1] == f"end status={status} {end}"
    asked = [("bloodcell-dist", "doctor", "--quick", "--set", "a=b c")]
    assert desk.calls("bloodcell-dist") == ([] if check == "off" else asked)
    assert bool(desk.calls("srun")) is trains


# ---- signals, by real ones to a real bash

LONG = """
trap 'touch "$DESK/heard"' USR1 TERM
echo $$ >"$DESK/pid"
touch "$DESK/started"
until [ -s "$DESK/end" ]; do sleep 0.02; done
exit $(cat "$DESK/end")
"""
# What horovodrun starts: it takes up the signal that it inherits as ignored, which bash cannot.
RANK = """
import os, pathlib, signal, sys, time
desk = pathlib.Path(os.environ["DESK"])
signal.signal(signal.SIGUSR1, lambda *_: (desk / "heard").touch())
(desk / "started").touch()
while not (desk / "end").exists() or not (text := (desk / "end").read_text()):
    time.sleep(0.02)
sys.exit(int(text))
"""
SCANCEL = 'kill -USR1 "$(cat "$DESK/pid")"\n'


@contextlib.contextmanager
def running(desk: Desk, **variables: str | None) -> Iterator[subprocess.Popen[str]]:
    """A script that is in its training, or whatever says that it has started."""
    with desk.start(desk.script, **variables) as process:
        try:
            wait_for((desk.folder / "started").exists)
            yield process
        finally:
            (desk.folder / "end").write_text("1")  # so that nothing outlives a failed test
            process.kill()


@pytest.fixture
def training(desk: Desk) -> Desk:
    """A desk whose training runs until the file `end` says how it ends."""
    desk.answer("srun", LONG)
    desk.answer("horovodrun", f"'{sys.executable}' -c '{RANK}' || exit $?\n")
    desk.answer("scancel", SCANCEL)
    return desk


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (75, "end status=75 requeued"),
        (137, "end status=137 requeued: it was asked to stop and left no checkpoint of that moment"),
        (0, "end status=0 done"),
    ],
)
def test_usr1_is_passed_on_once_and_waited_for(training: Desk, status: int, end: str) -> None:
    with running(training) as process:
        process.send_signal(signal.SIGUSR1)
        wait_for((training.folder / "heard").exists)
        (training.folder / "heard").unlink()
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.3)
        assert process.poll() is None
        assert not (training.folder / "heard").exists()
        training.file("end", str(status))
        assert process.wait(30) == status
    assert training.calls("scancel") == [("scancel", "--signal=USR1", "4711")]
    assert training.record()[-1] == end
    assert training.requeued() is (status != 0)


def test_an_array_passes_it_on_to_its_own_task(training: Desk) -> None:
    with running(training, SLURM_ARRAY_JOB_ID="4700", SLURM_ARRAY_TASK_ID="3") as process:
        process.send_signal(signal.SIGUSR1)
        wait_for((training.folder / "heard").exists)
        training.file("end", "75")
        process.wait(30)
    assert training.calls("scancel") == [("scancel", "--signal=USR1", "4700_3")]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGCONT"])
def test_while_slurm_cancels_it_waits_for_the_checkpoint(training: Desk, name: str) -> None:
    """Slurm sends these to all ranks itself."""
    training.job_is("CANCELLED")
    with running(training) as process:
        process.send_signal(getattr(signal, name))
        time.sleep(0.3)
        assert process.poll() is None
        training.file("end", "75")
        assert process.wait(30) == 75
    assert training.calls("scancel") == []
    assert training.record()[-1] == "end status=75 left to Slurm"


def test_horovodrun_outlives_the_signal_for_its_ranks(training: Desk) -> None:
    """They are no step of Slurm; the signal goes to them and to horovodrun, which would end with it."""
    with running(training, BLOODCELL_LAUNCHER="horovodrun") as process:
        process.send_signal(signal.SIGUSR1)
        wait_for((training.folder / "heard").exists)
        time.sleep(0.3)
        assert process.poll() is None
        training.file("end", "75")
        assert process.wait(30) == 75
    assert training.calls("scancel") == []
    assert training.record()[-1] == "end status=75 requeued"
    assert training.requeued()


def test_a_signal_before_the_training_has_begun(training: Desk) -> None:
    training.answer("bloodcell-dist", LONG.replace("USR1 TERM", "TERM"))
    training.answer("scancel", "")
    with running(training, BLOODCELL_PREFLIGHT="stop") as process:
        process.send_signal(signal.SIGUSR1)
        training.file("end", "0")
        assert process.wait(30) == 75
    assert training.record()[-1] == "end status=75 requeued before it began"
    assert training.calls("srun") == []
    assert training.requeued()


# ---- sweeps


@pytest.fixture
def sweep(desk: Desk) -> Path:
    """A sweep of two, as `bloodcell-dist sweep plan` leaves it."""
    folder = desk.folder / "our 'first' sweep"
    (folder / "arguments").mkdir(parents=True)
    for index, arguments in enumerate((["--config", "a b.yaml", *HOSTILE], ["--set", "x=y"])):
        (folder / "arguments" / str(index)).write_text("".join(f"{argument}\0" for argument in arguments))
    desk.answer("bloodcell-dist", f"[ \"$2\" != plan ] || cat <<'END'\n{folder}\nEND\n")
    return folder


def array(index: int, **others: str | None) -> dict[str, str | None]:
    return {
        "SLURM_ARRAY_JOB_ID": "4700",
        "SLURM_ARRAY_TASK_ID": str(index),
        "SLURM_ARRAY_TASK_MIN": "0",
        **others,
    }


@pytest.mark.parametrize(
    ("given", "planned"),
    [
        ((), (f"{ROOT}/configs/sweep.yaml",)),
        (("--out", "a b"), (f"{ROOT}/configs/sweep.yaml", "--out", "a b")),
        (("mine.yaml", "--set", "a=b c"), ("mine.yaml", "--set", "a=b c")),
    ],
)
def test_the_first_task_submits_the_comparison_and_trains(
    desk: Desk, sweep: Path, given: Sequence[str], planned: Sequence[str]
) -> None:
    mine = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ACCOUNT": "my lab", "SLURM_JOB_PARTITION": "gpu"}
    done = desk.run(SLURM / "sweep.sh", *given, **array(0, **mine))
    assert done.status == 0, done.out
    assert desk.calls("bloodcell-dist") == [("bloodcell-dist", "sweep", "plan", *planned)]
    options = ("--account=my lab", "--partition=gpu", "--export=ALL", "--dependency=afterany:4700")
    assert desk.calls("sbatch") == [("sbatch", *options, f"--chdir={desk.work}", f"{SLURM}/lib/compare.sh", str(sweep))]
    told = desk.environment_of("sbatch")
    assert [name for name in told if name.startswith("SLURM_")] == ["SLURM_CONF"]
    assert told["BLOODCELL_SLURM"] == str(SLURM)
    assert desk.calls("srun") == [(*AUTO, *TRAIN, "--config", "a b.yaml", *HOSTILE)]
    assert "start job=4700_0 restart=0" in (sweep / "jobs" / "0").read_text()
    assert desk.environment_of("srun")["BLOODCELL_RECORD"] == str(sweep / "jobs" / "0")


@pytest.mark.parametrize(("index", "restart"), [(1, None), (0, "1"), (1, "1")])
def test_the_others_and_later_lives_only_train(desk: Desk, sweep: Path, index: int, restart: str | None) -> None:
    done = desk.run(SLURM / "sweep.sh", **array(index, SLURM_RESTART_COUNT=restart))
    assert (done.status, desk.calls("sbatch")) == (0, []), done.out
    assert len(desk.calls("srun")) == 1


def test_a_comparison_that_cannot_be_submitted_keeps_nobody_from_training(desk: Desk, sweep: Path) -> None:
    desk.answer("sbatch", "exit 1")
    done = desk.run(SLURM / "sweep.sh", **array(0))
    assert done.status == 0
    assert "the comparison could not be submitted from here; afterwards: bloodcell-dist sweep report" in done.out
    assert len(desk.calls("srun")) == 1


def test_an_index_beyond_the_members_is_refused(desk: Desk, sweep: Path) -> None:
    done = desk.run(SLURM / "sweep.sh", **array(2))
    assert (done.status, desk.calls("srun")) == (2, [])
    assert f"there is no member 2 in {sweep}: its array is --array=0-1" in done.out


def test_a_plan_that_fails_ends_the_task(desk: Desk, sweep: Path) -> None:
    desk.answer("bloodcell-dist", "echo 'sweep.yaml: wrong' >&2; exit 2")
    done = desk.run(SLURM / "sweep.sh", **array(0))
    assert (done.status, desk.calls("srun", "sbatch")) == (2, []), done.out
    assert "sweep.yaml: wrong" in done.out


def test_the_comparison_runs_where_the_package_is(desk: Desk, sweep: Path) -> None:
    spooled = desk.file("slurm_script", (SLURM / "lib" / "compare.sh").read_text())
    done = desk.run(spooled, str(sweep), BLOODCELL_SLURM=str(SLURM))
    assert done.status == 0, done.out
    assert desk.calls("bloodcell-dist") == [("bloodcell-dist", "sweep", "report", str(sweep))]
    assert options_of(SLURM / "lib" / "compare.sh")["open-mode"] == "append"
