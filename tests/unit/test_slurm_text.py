"""Batch files as text, and Slurm's programs played by scripts: what reaches them, and what their answers mean."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bloodcell_dist.cluster.slurm import Options, batch_text, index_list, output_name
from bloodcell_dist.cluster.slurm_client import client_environment, in_queue, submit
from bloodcell_dist.errors import UserError
from bloodcell_dist.sweep.folder import Plan, SweepDir
from bloodcell_dist.sweep.scripts import Submission, prepare_submission

HOSTILE = "a b'c\"d $x `id` %A #e ü"
SLURM: Options = {"nodes": 1, "ntasks-per-node": 4, "gpus-per-node": 4, "cpus-per-task": 8, "time": "12:00:00"}

MEMBERS = """\
#!/usr/bin/env bash
# Members of the sweep backbones, written by `bloodcell-dist sweep submit`
#SBATCH --job-name=backbones
#SBATCH --array=0-5%2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/project/sweeps/backbones/logs/%A_%a.out

set -euo pipefail
cd -- /project
sweep=/project/sweeps/backbones
index=${SLURM_ARRAY_TASK_ID:-}
export BLOODCELL_RECORD="$sweep/jobs/$index"
# shellcheck source=/dev/null
. /opt/slurm/lib/job.sh
# shellcheck source=/dev/null
. /opt/slurm/lib/member.sh
train_member "$sweep" "$index"
"""
REPORT = """\
#!/usr/bin/env bash
# Comparison of the sweep backbones, written by `bloodcell-dist sweep submit`
#SBATCH --job-name=backbones-report
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/project/sweeps/backbones/logs/report_%j.out

set -euo pipefail
cd -- /project
# shellcheck source=/dev/null
. /opt/slurm/lib/job.sh
bloodcell_run bloodcell-dist sweep report /project/sweeps/backbones
"""


def prepared(
    folder: Path = Path("/project/sweeps/backbones"),
    working_folder: str = "/project",
    slurm_folder: Path = Path("/opt/slurm"),
    indices: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
    slurm: Options = SLURM,
    more: tuple[str, ...] = (),
) -> Submission:
    plan = Plan("backbones", working_folder, ())
    return prepare_submission(SweepDir(folder), plan, slurm_folder, indices=indices, at_once=2, slurm=slurm, more=more)


def test_both_batch_files() -> None:
    submission = prepared()
    assert submission.members_text == MEMBERS
    assert submission.report_text == REPORT
    assert submission.members_command == ("sbatch", "--parsable", "/project/sweeps/backbones/members.sbatch")
    assert submission.report_command == ("sbatch", "--parsable")


@pytest.mark.parametrize(
    ("options", "there", "gone"),
    [
        ({}, ("--nodes=1", "--time=12:00:00"), ("--ntasks",)),
        ({"time": 30}, ("--time=30",), ("--time=12:00:00",)),
        ({"signal": "B:USR1@600"}, ("--signal=B:USR1@600",), ("@120",)),
        ({"requeue": False, "exclusive": True}, ("--exclusive\n",), ("--requeue",)),
        ({"comment": 'our "best" #1'}, ('--comment="our \\"best\\" #1"',), ()),
    ],
)
def test_options_of_the_file(options: Options, there: tuple[str, ...], gone: tuple[str, ...]) -> None:
    text = prepared(slurm=options).members_text
    assert all(f"#SBATCH {part}" in text for part in there), text
    assert not any(part in text for part in gone), text


def test_the_report_needs_no_gpus_but_an_account() -> None:
    """From the sweep's file and from the command line, whichever way it is written there."""
    submission = prepared(slurm={**SLURM, "account": "ours"}, more=("-p", "gpu", "--qos=low", "--gpus-per-node=2"))
    assert "--account=ours" in submission.report_text and "gpus" not in submission.report_text
    assert submission.members_command[2:6] == ("-p", "gpu", "--qos=low", "--gpus-per-node=2")
    assert submission.report_command == ("sbatch", "--parsable", "--partition=gpu", "--qos=low")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12:00:00", "12:00:00"),
        ("gpu:a100:4", "gpu:a100:4"),
        ("a b", '"a b"'),
        ("a#b", '"a#b"'),
        ("it's", '"it\'s"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("$x`id`", '"$x`id`"'),
        ("ü", '"ü"'),
    ],
)
def test_values_by_the_rules_of_sbatch(value: str, expected: str) -> None:
    assert f"\n#SBATCH --comment={expected}\n" in batch_text({"comment": value}, "c", "true")


@pytest.mark.parametrize("value", ["two\nlines", "tab\there", "\x00"])
def test_what_no_line_can_hold_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="^comment=.*cannot stand in a batch file"):
        batch_text({"comment": value}, "c", "true")


def test_names_of_output_files() -> None:
    assert output_name("/a/100%/x%j", "%A_%a.out") == "/a/100%%/x%%j/%A_%a.out"
    with pytest.raises(UserError, match="backslash"):
        output_name("/a\\b", "%j.out")


@pytest.mark.parametrize(
    ("indices", "at_once", "expected"),
    [
        ((0,), None, "0"),
        ((0, 1, 2), None, "0-2"),
        ((0, 1, 2, 3), 2, "0-3%2"),
        ((1, 3, 4, 5, 9), 3, "1,3-5,9%3"),
        (tuple(range(1000)), 8, "0-999%8"),
    ],
)
def test_lists_of_indices(indices: tuple[int, ...], at_once: int | None, expected: str) -> None:
    assert index_list(indices, at_once) == expected


def test_the_member_script_reads_its_arguments_from_any_path(tmp_path: Path) -> None:
    """Run by bash, with a job.sh that tells what it is given."""
    base = tmp_path / HOSTILE
    folder, work, slurm = SweepDir(base / "sweep"), base / "work", base / "slurm"
    for place in (work, slurm / "lib", folder.path / "arguments"):
        place.mkdir(parents=True)
    job = (
        'bloodcell_job() { printf "%s\\0" "$PWD" "$BLOODCELL_RECORD" "$@"; }\nbloodcell_run() { bloodcell_job "$@"; }\n'
    )
    (slurm / "lib" / "job.sh").write_text(job)
    shutil.copy(Path(__file__).parents[2] / "slurm" / "lib" / "member.sh", slurm / "lib")
    arguments = ("--set", "data.path=x y\nz", "--run-dir", str(folder.path / "runs" / "one"))
    folder.arguments(3).write_text("".join(f"{argument}\0" for argument in arguments))
    submission = prepared(folder.path, str(work), slurm)
    environ = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "3"}
    told = said_by(submission.members_text, environ)
    assert told == [str(work), str(folder.record(3)), *arguments]
    told = said_by(submission.report_text, {**environ, "BLOODCELL_RECORD": ""})
    assert told == [str(work), "", "bloodcell-dist", "sweep", "report", str(folder.path)]


def said_by(text: str, environ: dict[str, str]) -> list[str]:
    done = subprocess.run(["bash", "-c", text], env=environ, capture_output=True, text=True, timeout=30, check=True)
    return done.stdout.split("\0")[:-1]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_scripts_are_clean() -> None:
    submission = prepared(Path("/project/it's here"))
    for text in (submission.members_text, submission.report_text):
        done = subprocess.run(["shellcheck", "-"], input=text, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


def test_what_an_enclosing_job_left_does_not_reach_the_new_one() -> None:
    inherited = {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1", "PMI_RANK": "0", "PMIX_RANK": "0", "OMPI_COMM": "x"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "ours", "PATH": "/bin", "BLOODCELL_DATA": "d"}
    found = client_environment({**inherited, **kept}, None)
    found.pop("BLOODCELL_VENV", None)
    assert found == kept


def test_the_jobs_find_the_python_of_this_process() -> None:
    """Unless the site has its own."""
    in_venv = sys.prefix != sys.base_prefix
    assert client_environment({}, None).get("BLOODCELL_VENV") == (sys.prefix if in_venv else None)
    assert client_environment({"BLOODCELL_VENV": "/v"}, None)["BLOODCELL_VENV"] == "/v"
    assert "BLOODCELL_VENV" not in client_environment({"BLOODCELL_CONTAINER": "image.sif"}, None)


def test_site_settings_are_read_by_bash_and_the_environment_wins(tmp_path: Path) -> None:
    site = tmp_path / HOSTILE
    lines = ["SBATCH_ACCOUNT=theirs", 'SBATCH_PARTITION="a $WORD"', "echo loud", "site_setup() { module load cuda; }"]
    site.write_text("\n".join([*lines, "BLOODCELL_SCRATCH=/tmp/$USER_NAME", "false"]))
    given = {"PATH": os.environ["PATH"], "WORD": "b", "SBATCH_ACCOUNT": "mine", "USER_NAME": "u"}
    found = client_environment(given, site)
    assert (found["SBATCH_ACCOUNT"], found["SBATCH_PARTITION"]) == ("mine", "a b")
    assert (found["BLOODCELL_SCRATCH"], found["BLOODCELL_SITE"]) == ("/tmp/u", str(site))
    assert not any("site_setup" in name for name in found)


def test_a_site_file_that_ends_bash_is_refused(tmp_path: Path) -> None:
    site = tmp_path / "site.env"
    site.write_text("exit 3")
    with pytest.raises(UserError, match=r"site.env: bash cannot read it \(exit status 3\)"):
        client_environment({"PATH": os.environ["PATH"]}, site)


def program(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which `name` is this bash script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def test_submit_gives_the_number(tmp_path: Path) -> None:
    environ = program(
        tmp_path, "sbatch", f'printf "%s\\n" "$@" >{shlex.quote(str(tmp_path / "given"))}; echo "12;cluster"'
    )
    assert submit(["sbatch", "--parsable", "a b"], environ) == "12"
    assert (tmp_path / "given").read_text() == "--parsable\na b\n"


def test_what_sbatch_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    environ = program(tmp_path, "sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(UserError, match="^sbatch refuses: sbatch: error: invalid partition$"):
        submit(["sbatch"], environ)


def test_without_slurm_the_message_names_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sbatch here.*sweep run --local"):
        submit(["sbatch"], {"PATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("printf '12 0 RUNNING\\n12 5 PENDING\\n13 N/A PENDING\\n'", {("12", 0): "RUNNING", ("12", 5): "PENDING"}),
        ("true", {}),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", {}),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", None),
    ],
)
def test_the_queue(tmp_path: Path, script: str, expected: object) -> None:
    assert in_queue(["12", "13"], program(tmp_path, "squeue", script)) == expected


def test_no_queue_is_asked_without_jobs_or_without_slurm(tmp_path: Path) -> None:
    assert in_queue([], program(tmp_path, "squeue", "exit 9")) is None
    assert in_queue(["12"], {"PATH": "/nowhere"}) is None
