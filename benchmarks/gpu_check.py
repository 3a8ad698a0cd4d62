"""What a GPU shows of this package: its tests on one, how fast the six backbones train there, and PyTorch beside them.

    .venv/bin/python benchmarks/gpu_check.py --out runs/gpu-check           # or: make gpu-check
    .venv/bin/python benchmarks/gpu_check.py --device cpu --quick --backbones cnn,mobilenetv3small     # a rehearsal

First `tests/gpu`, a process for each of its files. Then, for each backbone in a process of its own, updates as a
training makes them (gather, augmentation, forward, backward, clipping, Lion, EMA; drawn cells of 96x96 pixels;
precision as `auto` chooses it, bfloat16 where the GPU has it): build, the first update, which compiles, three more,
then rounds, each timed until the device is done; those without augmentation and with the policy `seed` by turns, so
that augmentation's share of a step is a fair ratio. With XLA in all batches, without it in the first one. Then timm's
network of the same kind with torch.compile, channels_last and bfloat16 on the same card, see `gpu_timm.py`, where
PyTorch and timm are installed for this Python or that of --torch-python. Several GPUs are measured too:
MirroredStrategy, and horovodrun if Horovod has NCCL.

Leaves gpu_check.json, gpu_check.md and gpu_check.log in --out, brought up to date after every measurement; what was not
measured is there with the reason. Where the time is limited (`--time-limit-s 540`), run it again with the same --out:
it goes on with what is missing. Needs no make, and no pytest: without it the tests are left out.

Exit status: 0 all done, or left out for a reason that the report tells; 1 something failed; 2 no GPU.

Not run on a GPU yet, for want of one; rehearsed on a CPU, 25 November 2026.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib.util
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpu_common import GRACE_S, ROOT, ROUND_S, ROUNDS, Child, Clock, told
from gpu_report import BACKBONES, POLICIES, AnyCase, Case, Report, TimmCase

# The conductor imports neither TensorFlow nor the package: it would hold GPU memory that the measurements need.

HERE = Path(__file__).resolve().parent
ON_SEVERAL = ("cnn", "mobilenetv3small")
TEST_FILES = ("trace", "update", "transfers", "gradients", "precision", "resume")
PARTS = ("tests", "speed", "timm", "several")
XLA = ("on", "parts", "off")
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune", "eager")
VARIED = ("augment.policy", "model.backbone", "train.global_batch_size", "train.xla", "distribute.strategy")
TEST_FILE_S, CASE_S = 1800.0, 1200.0  # what takes longer hangs
LIMIT = "the time limit was reached"


@dataclass(frozen=True)
class Check:
    """What all parts of a call share."""

    options: argparse.Namespace
    report: Report
    clock: Clock
    environment: dict[str, str]

    def child(self, command: Sequence[str]) -> Child:
        return Child(command, self.environment, self.report.folder / "gpu_check.log")


def run_tests(check: Check) -> None:
    """`tests/gpu` file by file: one that hangs or crashes takes nothing along."""
    report = check.report
    if importlib.util.find_spec("pytest") is None:
        report.content["tests_left_out"] = f"pytest is missing for {sys.executable}, pip install pytest brings it"
        return
    for name in TEST_FILES:
        if name in report.content["tests"]:
            continue
        found = None if check.clock.over else run_test_file(check, name)
        if found is None:
            report.leave_out(f"tests/gpu/test_{name}.py", LIMIT)
        else:
            report.add_tests(name, found)


def run_test_file(check: Check, name: str) -> list[dict[str, Any]] | None:
    """Its tests' outcomes; None if the time limit cut it short."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.xml")
        # Neither the project's configuration nor tests/conftest.py, which want plug-ins that may not be there; and
        # JUnit's second format would not take what the tests measure.
        arguments = f"-q -c {os.devnull} --rootdir . --confcutdir tests/gpu --import-mode=importlib -p no:cacheprovider"
        command = [sys.executable, "-m", "pytest", f"tests/gpu/test_{name}.py", *arguments.split()]
        command += ["-o", "junit_family=xunit1", f"--junitxml={results}"]
        command += ["-k", "not mobilenetv3small and not mixed_float16"] if check.options.quick else []
        child = check.child(command)
        collections.deque(child.lines(check.clock.left_s(TEST_FILE_S)), maxlen=0)
        if child.stopped_after_s is not None and check.clock.over:
            return None
        if child.status in (0, 1) and results.exists():
            return read_results(results)
        return [{"name": "all", "outcome": "failed", "seconds": None, "reason": child.ending(), "measured": {}}]


def read_results(path: Path) -> list[dict[str, Any]]:
    """Outcomes from pytest's JUnit file."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        bad = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        found.append(
            {
                "name": case.get("name"),
                "outcome": "passed" if bad is None else "skipped" if bad.tag == "skipped" else "failed",
                "seconds": float(case.get("time", 0)),
                "reason": "" if bad is None else " ".join((bad.get("message") or "").split())[:300],
                "measured": {str(item.get("name")): str(item.get("value")) for item in case.iter("property")},
            }
        )
    return found


def run_cases(check: Check, cases: Sequence[AnyCase]) -> None:
    """Measure cases of one backbone and one way to run, in a process that ends after a failure; then in another one."""
    report, todo = check.report, [case for case in cases if not check.report.has(case)]
    while todo and not check.clock.over:
        command = timm_command if isinstance(todo[0], TimmCase) else worker_command
        child = check.child(command(check, todo))
        running, came = todo[0], False
        for what in told(child.lines(check.clock.left_s(CASE_S * len(todo)))):
            running = next((case for case in todo if asdict(case) == what["case"]), running)
            if "found" in what:
                report.add(running, what["found"])
                todo.remove(running)
                came = True
        if not came and not check.clock.over:
            report.add(running, {"reason": child.ending()})
            todo.remove(running)
    for case in todo:
        report.leave_out(str(case), LIMIT)


def worker_command(check: Check, cases: Sequence[Any]) -> list[str]:
    """How a process that measures the package is started."""
    options = check.options
    plan = _plan(check, cases) | {"cells": str(options.out / "cells"), "settings": options.settings}
    command = [sys.executable, str(HERE / "gpu_measure.py"), json.dumps(plan)]
    launcher = horovodrun()
    if cases[0].strategy == "horovod" and launcher:
        return [launcher, "-np", str(cases[0].replicas), *command]
    return command


def timm_command(check: Check, cases: Sequence[Any]) -> list[str]:
    """How a process that measures PyTorch is started."""
    plan = _plan(check, cases) | {"device": check.options.device}
    return [check.options.torch_python, str(HERE / "gpu_timm.py"), json.dumps(plan)]


def _plan(check: Check, cases: Sequence[Any]) -> dict[str, Any]:
    """What both are told."""
    options, deadline = check.options, check.clock.deadline
    return {
        "cases": [asdict(case) for case in cases],
        "size": options.size,
        "steps": options.steps,
        "until": None if deadline == math.inf else deadline,
    }


def horovodrun() -> str | None:
    """The launcher of this Python's Horovod."""
    beside = Path(sys.executable).with_name("horovodrun")
    return str(beside) if beside.exists() else shutil.which("horovodrun")


def ways_on_several(options: argparse.Namespace, machine: dict[str, Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Ways to run on several devices, with their number of replicas; and why the others are not measured."""
    replicas = options.replicas or machine["num_gpus"]
    if replicas < 2:
        why = f"{machine['num_gpus']} GPU is visible" if machine["num_gpus"] else "no GPU"
        return {}, {"mirrored": why, "horovod": why}
    ways, reasons = {"mirrored": replicas}, {}
    horovod = machine["horovod"]
    if isinstance(horovod, str):
        reasons["horovod"] = horovod
    elif horovodrun() is None:
        reasons["horovod"] = "there is no horovodrun"
    elif options.device == "gpu" and not horovod["nccl"]:
        reasons["horovod"] = "this Horovod was built without NCCL"
    else:
        ways["horovod"] = replicas
    return ways, reasons


def look(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """The machine, seen by a process that then lets go of the GPU. Raises RuntimeError where TensorFlow fails."""
    command = [sys.executable, str(HERE / "gpu_measure.py"), json.dumps({"probe": True})]
    child = Child(command, environment, options.out / "gpu_check.log")
    for what in told(child.lines(None)):
        return what["machine"] | {"driver": driver_version() if options.device == "gpu" else None}
    raise RuntimeError(f"TensorFlow could not be started ({child.ending()}); see {options.out}/gpu_check.log")


def look_for_pytorch(check: Check, machine: dict[str, Any]) -> dict[str, Any] | str:
    """PyTorch and timm on the same device, or why they are not measured."""
    options = check.options
    if "timm" not in options.parts:
        return "--parts leaves it out"
    child = check.child([options.torch_python, str(HERE / "gpu_timm.py"), json.dumps({"probe": True})])
    try:
        found = next((what["pytorch"] for what in told(child.lines(300.0))), None)
    except OSError as error:
        return f"--torch-python {options.torch_python}: {error.strerror}"
    if found is None:
        return f"PyTorch could not be started ({child.ending()})"
    if "missing" in found:  # they are for a Python of their own: TensorFlow wants other CUDA libraries
        return (
            f"PyTorch/timm not installed ({', '.join(found['missing'])} missing for {options.torch_python}); "
            "python3 -m venv torch-env && torch-env/bin/pip install torch timm, "
            "then --torch-python torch-env/bin/python"
        )
    if options.device == "gpu" and not found["sees_gpu"]:
        return f"PyTorch {found['torch']} sees no GPU"
    if options.device == "gpu" and found["device"] not in machine["devices"][0]:
        return f"not the same card: PyTorch takes {found['device']}, TensorFlow {machine['devices'][0]}"
    return found


def driver_version() -> str | None:
    """Of NVIDIA's kernel driver."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout.split()[0]
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return None


def child_environment(device: str) -> dict[str, str]:
    """This process's, with the package importable from anywhere, and the GPUs hidden in a rehearsal."""
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONUNBUFFERED": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # what else this Python has is not ours to meet
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    if device == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "-1", "BLOODCELL_GPU_REHEARSAL": "1"}
    return environment


def speed_cases(options: argparse.Namespace, backbone: str, xla: str) -> list[Case]:
    """Policies side by side. XLA's first setting in all batches; the others in the first, to compare."""
    batches = options.batch if xla == options.xla[0] else options.batch[:1]
    return [Case(backbone, batch, policy, xla) for batch in batches for policy in POLICIES]


def timm_cases(options: argparse.Namespace, backbone: str) -> list[TimmCase]:
    """In all batches."""
    return [TimmCase(backbone, batch, mode) for batch in options.batch for mode in options.torch_modes]


def run_backbones(check: Check, machine: dict[str, Any]) -> None:
    """Ours and PyTorch's one after the other, backbone by backbone, so that they meet the same machine."""
    options, report = check.options, check.report
    pytorch = look_for_pytorch(check, machine)
    parts: list[list[AnyCase]] = []
    for backbone in options.backbones:
        # XLA's settings in processes of their own: TensorFlow cannot take its promise of equal bits back.
        parts += [[*speed_cases(options, backbone, xla)] for xla in options.xla if "speed" in options.parts]
        parts += [] if isinstance(pytorch, str) else [[*timm_cases(options, backbone)]]
    report.planned = list(itertools.chain.from_iterable(parts))
    report.found_pytorch(pytorch)
    for cases in parts:
        run_cases(check, cases)


def run_several(check: Check, machine: dict[str, Any]) -> None:
    """The ways to run on several devices."""
    options = check.options
    ways, check.report.content["several_gpus"] = ways_on_several(options, machine)
    chosen = [backbone for backbone in options.backbones if backbone in ON_SEVERAL]
    for (way, replicas), backbone in itertools.product(ways.items(), chosen):
        run_cases(check, [Case(backbone, max(options.batch), "seed", options.xla[0], way, replicas)])


def conduct(options: argparse.Namespace) -> int:
    """Tests, then speed; returns the exit status."""
    clock, environment = Clock(options.time_limit_s), child_environment(options.device)
    options.out.mkdir(parents=True, exist_ok=True)
    machine = look(options, environment)
    if options.device == "gpu" and not machine["num_gpus"]:
        print("gpu_check: TensorFlow sees no GPU here (extra `gpu`, driver?); --device cpu rehearses without one")
        return 2
    how = {name: getattr(options, name) for name in ("device", "quick", "size", "steps", "settings")}
    report = Report(options.out, machine, how | {"rounds": ROUNDS}, options.afresh)
    check = Check(options, report, clock, environment)
    if "tests" in options.parts:
        run_tests(check)
    run_backbones(check, machine)
    if "several" in options.parts:
        run_several(check, machine)
    report.write()
    print(f"wrote {options.out}/gpu_check.md and gpu_check.json")
    return int(report.failed())


# The command line.


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with their defaults filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), metavar="DIR", help="(runs/gpu-check)")
    parser.add_argument("--backbones", type=_names(BACKBONES), default=list(BACKBONES), metavar="A,B", help="(all six)")
    parser.add_argument("--batch", type=_numbers, metavar="N,N", help="examples per replica and update (64,256)")
    parser.add_argument(
        "--xla", type=_names(XLA), metavar="A,B", help="of on, parts, off; all but the first at one batch (on,off)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help=f"calls of the step in a round, or {ROUND_S:.0f} s (30)")
    parser.add_argument(
        "--set", dest="settings", action="append", type=_setting, default=[], metavar="KEY=VALUE", help="other settings"
    )
    parser.add_argument("--parts", type=_names(PARTS), default=list(PARTS), metavar="A,B", help=f"({','.join(PARTS)})")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PATH", help="Python with PyTorch and timm (this one)"
    )
    parser.add_argument(
        "--torch-modes",
        type=_names(MODES),
        default=["default"],
        metavar="A,B",
        help=f"of torch.compile, the best counts: {', '.join(MODES)} (default)",
    )
    parser.add_argument(
        "--time-limit-s", type=float, metavar="S", help=f"begin nothing later; ends {GRACE_S:.0f} s after"
    )
    parser.add_argument("--afresh", action="store_true", help="measure anew what --out holds already")
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a rehearsal, with --xla parts,off"
    )
    parser.add_argument("--quick", action="store_true", help="pictures of 48 pixels, batch 16, 3 steps; for rehearsals")
    parser.add_argument("--replicas", type=int, metavar="N", help="of mirrored and horovod (all GPUs; on a CPU none)")
    options = parser.parse_args(arguments)
    options.size = 48 if options.quick else 96
    options.batch = options.batch or ([16] if options.quick else [64, 256])
    options.xla = options.xla or (["on", "off"] if options.device == "gpu" else ["parts", "off"])
    options.steps = options.steps or (3 if options.quick else 30)
    options.out = options.out.resolve()
    # Children run in the checkout's folder. Not resolved: a virtual environment's Python is a link to the system's.
    options.torch_python = os.path.abspath(shutil.which(options.torch_python) or options.torch_python)
    return options


def _setting(text: str) -> str:
    """KEY=VALUE of a setting that is not among what is measured."""
    if (key := text.partition("=")[0]) in VARIED:
        raise argparse.ArgumentTypeError(f"{key} is varied here: --backbones, --batch and --xla choose")
    return text


def _names(known: Sequence[str]) -> Any:
    """A reader of lists of these."""

    def read(text: str) -> list[str]:
        found = text.split(",")
        if unknown := set(found) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: expected some of {', '.join(known)}")
        return found

    return read


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Conduct."""
    try:
        return conduct(parse(arguments))
    except RuntimeError as error:
        print(f"gpu_check: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
