"""What a GPU shows of this package: its tests on one, and how fast the six backbones train there.

    .venv/bin/python benchmarks/gpu_check.py --out runs/gpu-check           # or: make gpu-check
    .venv/bin/python benchmarks/gpu_check.py --device cpu --quick --backbones cnn,mobilenetv3small     # a rehearsal

First `tests/gpu`, a process for each of its files. Then, for each backbone in a process of its own, updates as a
training makes them (gather, augmentation, forward, backward, clipping, Lion, EMA; drawn cells of 96x96 pixels;
precision and XLA as `auto` chooses them): build, the first update, which compiles, three more, then rounds, each timed
until the device is done. Several GPUs are measured too: MirroredStrategy, and horovodrun if Horovod has NCCL.

Leaves gpu_check.json, gpu_check.md and gpu_check.log in --out, brought up to date after every measurement. Where the
time is limited (`--time-limit-s 540`), run it again with the same --out: it goes on with what is missing. Needs no
make, and no pytest: without it the tests are left out.

Exit status: 0 all done, or left out for a reason that the report tells; 1 something failed; 2 no GPU.

Not run on a GPU yet, for want of one; rehearsed on a CPU, 25 November 2026.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import importlib.util
import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The conductor imports neither TensorFlow nor the package: it would hold GPU memory that the measurements need.

ROOT = Path(__file__).resolve().parents[1]
BACKBONES = ("cnn", "mobilenetv3small", "efficientnetb0", "convnextbase", "efficientnetv2s", "efficientnetv2m")
ON_SEVERAL = ("cnn", "mobilenetv3small")
TEST_FILES = ("trace", "update", "transfers", "gradients", "precision", "resume")
POLICIES = ("none", "seed")
ROUNDS, ROUND_S, WARM_UP = 3, 5.0, 3
GRACE_S = 40.0  # what has begun may take so much longer than the limit
TEST_FILE_S, CASE_S = 1800.0, 1200.0  # what takes longer hangs
MARK = "GPU_CHECK_RESULT "
LIMIT = "the time limit was reached"


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        batch: examples per replica and update.
        strategy: single, mirrored or horovod.
    """

    backbone: str
    batch: int
    policy: str
    strategy: str = "single"
    replicas: int = 1

    def __str__(self) -> str:
        where = "" if self.strategy == "single" else f", {self.strategy} on {self.replicas}"
        return f"{self.backbone}, batch {self.batch}, policy {self.policy}{where}"


class Clock:
    """Says when no new measurement may begin."""

    def __init__(self, limit_s: float | None) -> None:
        self.deadline = math.inf if limit_s is None else time.time() + limit_s

    @property
    def over(self) -> bool:
        return time.time() >= self.deadline

    def left_s(self, at_most: float = math.inf) -> float | None:
        """Until what runs now is stopped; None for never."""
        left = min(at_most, max(0.0, self.deadline + GRACE_S - time.time()))
        return None if left == math.inf else left


class Child:
    """A process whose output goes to the log, with the last lines kept."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = list(command), environment, log
        self._tail: collections.deque[str] = collections.deque(maxlen=40)
        self.status: int | None = None
        self.stopped_after_s: float | None = None

    def lines(self, limit_s: float | None) -> Iterator[str]:
        """What it prints, until it ends or is stopped after so long."""
        self._begun = time.monotonic()
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        timer = threading.Timer(limit_s or 0.0, self._stop, [process])
        if limit_s is not None:
            timer.start()
        try:
            assert process.stdout is not None
            with process.stdout, open(self._log, "a") as log:
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    self._tail.append(line.rstrip())
                    yield line
            self.status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                self._stop(process)

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """SIGTERM, which horovodrun passes on to its ranks, then SIGKILL for what is left of its group."""
        self.stopped_after_s = time.monotonic() - self._begun
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def ending(self) -> str:
        """Why it ended, in a line."""
        if self.stopped_after_s is not None:
            return f"stopped after {self.stopped_after_s:.0f} s"
        last = next((line for line in reversed(self._tail) if line.strip()), "it printed nothing")
        how = f"signal {-self.status}" if self.status is not None and self.status < 0 else f"exit status {self.status}"
        return f"{how}: {last.strip()[:300]}"


class Report:
    """The findings, written after each one."""

    def __init__(self, folder: Path, machine: dict[str, Any], how: dict[str, Any], afresh: bool) -> None:
        self.folder = folder
        self.content: dict[str, Any] = {
            "machine": machine,
            "how": how,
            "tests": {},
            "tests_left_out": None,
            "speed": [],
            "several_gpus": None,
            "not_made": [],
        }
        if not afresh:
            self._take_up()

    def _take_up(self) -> None:
        """Keep what an earlier call found on the same machine in the same way."""
        try:
            before = json.loads((self.folder / "gpu_check.json").read_text())
            same = all(before[name] == self.content[name] for name in ("machine", "how"))
        except (OSError, ValueError, KeyError, TypeError):
            return
        if same:
            self.content |= {name: before[name] for name in ("tests", "speed")}
            print(f"goes on with {self.folder}/gpu_check.json; --afresh measures all anew")
        else:
            print(f"{self.folder}/gpu_check.json is of another machine, version or way to measure: begins anew")

    def has(self, case: Case) -> bool:
        return any(row["case"] == asdict(case) for row in self.content["speed"])

    def add_tests(self, file: str, found: list[dict[str, Any]]) -> None:
        self.content["tests"][file] = found
        for test in found:
            print(f"{file}: {test['name']}: {test['outcome']} {test['reason']}".rstrip())
        self.write()

    def add_speed(self, case: Case, found: dict[str, Any]) -> None:
        self.content["speed"].append({"case": asdict(case), **found})
        print(f"{case}: " + (f"{found['images_per_s']:,.0f} images/s" if "images_per_s" in found else found["reason"]))
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.content["not_made"].append({"what": what, "reason": why})
        print(f"{what}: not made, {why}")
        self.write()

    def failed(self) -> bool:
        """Whether a test or a measurement did; what was left out did not."""
        tests = itertools.chain.from_iterable(self.content["tests"].values())
        bad = [test for test in tests if test["outcome"] == "failed"]
        return bool(bad) or any("reason" in row for row in self.content["speed"])

    def write(self) -> None:
        self.content["date"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        for name, text in (("json", json.dumps(self.content, indent=1) + "\n"), ("md", as_markdown(self.content))):
            unfinished = self.folder / f".gpu_check.{name}"
            unfinished.write_text(text)
            os.replace(unfinished, self.folder / f"gpu_check.{name}")


# The tables.

SPEED_HEAD = (
    *("backbone", "run as", "batch", "policy", "images/s"),
    *("ms/update", "peak MiB", "first update, s", "precision, XLA"),
)


def as_markdown(content: dict[str, Any]) -> str:
    """Everything in the JSON that a person would look for."""
    single = [row for row in content["speed"] if row["case"]["strategy"] == "single"]
    several = [row for row in content["speed"] if row["case"]["strategy"] != "single"]
    rehearsal = ": a rehearsal on a CPU, which says nothing of GPUs" if content["how"]["device"] == "cpu" else ""
    parts = [
        f"# GPU check{rehearsal}\n\n{_machine_line(content)}",
        f"## Speed\n\n{_how_line(content)}\n\n{_speed_table(single)}",
    ]
    reasons = content["several_gpus"] or {}
    lines = [f"{name}: not measured, {why}." for name, why in reasons.items()]
    parts.append("## Several GPUs\n\n" + "\n".join([*lines, *([_speed_table(several)] if several else [])]))
    parts.append(f"## Tests\n\n{_tests_line(content)}\n\n{_tests_table(content)}")
    if content["not_made"]:
        parts.append("## Not made\n\n" + "\n".join(f"- {row['what']}: {row['reason']}" for row in content["not_made"]))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _machine_line(content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = machine["versions"]
    return (
        f"{', '.join(machine['devices'])}; driver {machine['driver'] or 'none'}; TensorFlow {versions['tensorflow']} "
        f"(CUDA {machine['cuda']}, cuDNN {machine['cudnn']}), Keras {versions['keras']}, Python {machine['python']}, "
        f"{machine['cpus']} CPU cores; bloodcell_dist {versions['bloodcell_dist']} ({machine['git']}); "
        f"{content['date']}"
    )


def _how_line(content: dict[str, Any]) -> str:
    how = content["how"]
    extra = f" Settings: {', '.join(how['settings'])}." if how["settings"] else ""
    return (
        f"Drawn cells of {how['size']}x{how['size']} pixels. images/s: median (range) of {how['rounds']} rounds of up "
        f"to {how['steps']} updates. Batch: per replica. The first update traces and compiles.{extra}"
    )


def _speed_table(rows: list[dict[str, Any]]) -> str:
    body = [[*_case_cells(row["case"]), *_speed_cells(row)] for row in rows]
    return _table(SPEED_HEAD, body) if body else "Nothing measured."


def _case_cells(case: dict[str, Any]) -> list[str]:
    run_as = "single" if case["strategy"] == "single" else f"{case['strategy']} x{case['replicas']}"
    return [case["backbone"], run_as, str(case["batch"]), case["policy"]]


def _speed_cells(row: dict[str, Any]) -> list[str]:
    if "reason" in row:
        return [row["reason"], "", "", "", ""]
    low, high = row["images_per_s_range"]
    peak = "not measured" if row["peak_memory_mib"] is None else f"{row['peak_memory_mib']:,.0f}"
    return [
        f"{row['images_per_s']:,.0f} ({low:,.0f}-{high:,.0f})",
        f"{row['update_ms']:.1f}",
        peak,
        f"{row['first_update_s']:.1f}",
        f"{row['precision']}, {row['xla']}",
    ]


def _tests_line(content: dict[str, Any]) -> str:
    if content["tests_left_out"]:
        return f"Not run: {content['tests_left_out']}."
    outcomes = [test["outcome"] for tests in content["tests"].values() for test in tests]
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("passed", "failed", "skipped")]
    return ", ".join(counts) + "." if outcomes else "None run."


def _tests_table(content: dict[str, Any]) -> str:
    """Those that measured something or did not pass."""
    rows = [
        [file, test["name"], test["outcome"], "; ".join(filter(None, _remarks(test)))]
        for file, tests in content["tests"].items()
        for test in tests
        if test["measured"] or test["outcome"] != "passed"
    ]
    return _table(("file", "test", "outcome", "measured, reason"), rows) if rows else ""


def _remarks(test: dict[str, Any]) -> list[str]:
    return [*map(": ".join, test["measured"].items()), test["reason"]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[" ".join(cell.replace("|", "\\|").split()) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# The conductor: what runs when.


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


def run_cases(check: Check, cases: Sequence[Case]) -> None:
    """Measure cases of one backbone and one way to run, in a process that ends after a failure; then in another one."""
    todo = [case for case in cases if not check.report.has(case)]
    while todo and not check.clock.over:
        child = check.child(worker_command(check, todo))
        came = False
        for line in child.lines(check.clock.left_s(CASE_S * len(todo))):
            _, mark, result = line.partition(MARK)
            if mark:
                check.report.add_speed(todo.pop(0), json.loads(result))
                came = True
        if not came and not check.clock.over:
            check.report.add_speed(todo.pop(0), {"reason": child.ending()})
    for case in todo:
        check.report.leave_out(str(case), LIMIT)


def worker_command(check: Check, cases: Sequence[Case]) -> list[str]:
    """How a process that measures is started."""
    options, deadline = check.options, check.clock.deadline
    plan = {
        "cases": [asdict(case) for case in cases],
        "cells": str(options.out / "cells"),
        **{name: getattr(options, name) for name in ("size", "steps", "settings")},
        "until": None if deadline == math.inf else deadline,
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--work", json.dumps(plan)]
    launcher = horovodrun()
    if cases[0].strategy == "horovod" and launcher:
        return [launcher, "-np", str(cases[0].replicas), *command]
    return command


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
    command = [sys.executable, str(Path(__file__).resolve()), "--work", json.dumps({"probe": True})]
    child = Child(command, environment, options.out / "gpu_check.log")
    for line in child.lines(None):
        _, mark, result = line.partition(MARK)
        if mark:
            return json.loads(result) | {"driver": driver_version() if options.device == "gpu" else None}
    raise RuntimeError(f"TensorFlow could not be started ({child.ending()}); see {options.out}/gpu_check.log")


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
    if "speed" in options.parts:
        for backbone in options.backbones:
            run_cases(check, [Case(backbone, batch, policy) for batch in options.batch for policy in POLICIES])
    if "several" in options.parts:
        ways, report.content["several_gpus"] = ways_on_several(options, machine)
        chosen = [backbone for backbone in options.backbones if backbone in ON_SEVERAL]
        for (way, replicas), backbone in itertools.product(ways.items(), chosen):
            run_cases(check, [Case(backbone, max(options.batch), "seed", way, replicas)])
    report.write()
    print(f"wrote {options.out}/gpu_check.md and gpu_check.json")
    return int(report.failed())


# The processes that look and measure. They import TensorFlow.


def probe() -> dict[str, Any]:
    """What TensorFlow sees."""
    from bloodcell_dist import runtime

    # isort: split

    import tensorflow as tf

    runtime.find_devices()
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    names = [
        f"{found.get('device_name')} (compute capability {'.'.join(map(str, found.get('compute_capability', '?')))})"
        for found in details
    ]
    build, environment = tf.sysconfig.get_build_info(), runtime.describe_environment()
    return {
        "num_gpus": len(gpus),
        "devices": names or [cpu_name()],
        "cuda": build.get("cuda_version"),
        "cudnn": build.get("cudnn_version"),
        "horovod": horovod_built(),
        **{name: environment[name] for name in ("versions", "python", "platform", "cpus", "git")},
    }


def cpu_name() -> str:
    """As the kernel calls it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return "CPU"


def horovod_built() -> dict[str, bool] | str:
    """What Horovod was built with, or why it is not there."""
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # a Horovod that does not fit TensorFlow fails in several ways
        return f"Horovod for TensorFlow is not installed ({first_line(error)})"
    return {"nccl": bool(hvd.nccl_built()), "mpi": bool(hvd.mpi_built()), "gloo": bool(hvd.gloo_built())}


def first_line(error: BaseException) -> str:
    """What it is and the beginning of what it says."""
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}"


def work(plan: dict[str, Any]) -> None:
    """Measure cases one after the other; stops after one that failed, whose memory may be lost."""
    from bloodcell_dist import runtime
    from bloodcell_dist.launch import ending_together, launched, this_process
    from bloodcell_dist.training.replication import replicate

    cases = [Case(**case) for case in plan["cases"]]
    until = math.inf if plan["until"] is None else plan["until"]
    with launched(this_process()) as joined, ending_together(joined):
        machine = runtime.look_at_machine(joined.workers.process)
        replication = replicate(joined, cases[0].strategy, devices=cases[0].replicas)
        for case in cases:
            if joined.workers.any(time.time() >= until):
                return
            try:
                found = measure(case, plan, machine, replication)
            except Exception as error:
                if joined.workers.world_size > 1:
                    raise  # the other ranks wait in a collective
                print(MARK + json.dumps({"reason": first_line(error)}), flush=True)
                return
            if joined.workers.is_chief:
                print(MARK + json.dumps(found), flush=True)
            gc.collect()  # networks are cycles; the next one is to find the memory free


def settings_for(case: Case, plan: dict[str, Any], machine: Any) -> Any:
    """A training's settings, what is left to the machine resolved."""
    from bloodcell_dist.config import load_settings
    from bloodcell_dist.start import settle

    global_batch = case.batch * case.replicas
    overrides = [
        "data.source=synthetic",
        f"data.synthetic_examples={max(600, math.ceil(global_batch * 1.2))}",  # a tenth is for validation
        f"data.image_size={plan['size']}",
        "data.clean=false",
        "data.group_near_duplicates=false",
        f"data.cache_dir={plan['cells']}",
        f"augment.policy={case.policy}",
        f"model.backbone={case.backbone}",
        "model.weights=none",
        f"train.global_batch_size={global_batch}",
        "train.epochs=1000",
        f"distribute.strategy={case.strategy}",
        *plan["settings"],
    ]
    return settle(load_settings(None, overrides), machine)[0]


def measure(case: Case, plan: dict[str, Any], machine: Any, replication: Any) -> dict[str, Any]:
    """Build, compile, warm up, time."""
    from bloodcell_dist import runtime
    from bloodcell_dist.rundir import RunDir
    from bloodcell_dist.session import Session
    from bloodcell_dist.start import load_data, repeatable

    settings = settings_for(case, plan, machine)
    data = load_data(settings)
    deterministic = repeatable(settings, machine.num_gpus)
    runtime.configure(precision=settings.train.precision, deterministic=deterministic, eager=False)
    held = reset_memory()
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        session = Session(settings, RunDir(Path(folder)), data, replication)
        session.resume(None)
        built = time.perf_counter() - begun
    updates = Updates(session)
    first = updates.seconds_of(1)
    warm = updates.seconds_of(WARM_UP) / WARM_UP
    calls = replication.share(max(2, min(plan["steps"], math.ceil(ROUND_S / warm))))
    rounds = [updates.seconds_of(calls) for _ in range(ROUNDS)]
    rates = [calls * updates.per_call * case.batch * case.replicas / seconds for seconds in rounds]
    return {
        "images_per_s": round(statistics.median(rates), 1),
        "images_per_s_range": [round(min(rates), 1), round(max(rates), 1)],
        "update_ms": round(1000 * statistics.median(rounds) / calls / updates.per_call, 3),
        "updates_per_round": calls * updates.per_call,
        "first_update_s": round(first, 2),
        "build_s": round(built, 2),
        "peak_memory_mib": peak_memory_mib(),
        "held_before_mib": held,
        "loss": round(session.record.last_loss(), 4),
        "precision": settings.train.precision,
        "xla": settings.train.xla,
        "deterministic": deterministic,
    }


class Updates:
    """Makes updates as the training loop does."""

    def __init__(self, session: Any) -> None:
        self._session, self._done = session, 0
        self.per_call: int = session.settings.train.steps_per_call

    def seconds_of(self, calls: int) -> float:
        """Of so many calls of the step, until the device is done. The feed is opened before and closed after."""
        import numpy as np

        session, count = self._session, self.per_call
        steps = range(self._done, self._done + calls * count)
        batches = np.stack([session.arithmetic.plan.batch_at(step) for step in steps])
        feed = iter(session.assembly.cells.feed(batches, [count] * calls))
        feed = itertools.chain([next(feed)], feed)
        begun = time.perf_counter()
        for _, indices in zip(range(calls), feed, strict=False):  # does not ask the feed for its end
            rates = [session.arithmetic.stages.learning_rate(self._done + number) for number in range(count)]
            outputs = session.assembly.step(indices, self._done, rates)
            session.record.add(outputs)  # which copies predictions to the host every 20 updates
            self._done += count
        session.replication.local(outputs[-1].gradient_norm)
        return time.perf_counter() - begun


def reset_memory() -> float | None:
    """Forget the peak so far; MiB that are held now. None without a GPU."""
    import tensorflow as tf

    held = [tf.config.experimental.get_memory_info(name)["current"] for name in gpu_names()]
    for name in gpu_names():
        tf.config.experimental.reset_memory_stats(name)
    return round(max(held) / 2**20, 1) if held else None


def peak_memory_mib() -> float | None:
    """Of the GPU that needed most, as TensorFlow's allocator counts."""
    import tensorflow as tf

    peaks = [tf.config.experimental.get_memory_info(name)["peak"] for name in gpu_names()]
    return round(max(peaks) / 2**20, 1) if peaks else None


def gpu_names() -> list[str]:
    """Of those that this process uses."""
    import tensorflow as tf

    return [f"GPU:{number}" for number, _ in enumerate(tf.config.list_logical_devices("GPU"))]


# The command line.


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with their defaults filled in."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), metavar="DIR", help="(runs/gpu-check)")
    parser.add_argument("--backbones", type=_names(BACKBONES), default=list(BACKBONES), metavar="A,B", help="(all six)")
    parser.add_argument("--batch", type=_numbers, metavar="N,N", help="examples per replica and update (64,256)")
    parser.add_argument("--steps", type=int, metavar="N", help=f"calls of the step in a round, or {ROUND_S:.0f} s (30)")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="other settings"
    )
    parser.add_argument("--parts", type=_names(("tests", "speed", "several")), default=["tests", "speed", "several"])
    parser.add_argument(
        "--time-limit-s", type=float, metavar="S", help=f"begin nothing later; ends {GRACE_S:.0f} s after"
    )
    parser.add_argument("--afresh", action="store_true", help="measure anew what --out holds already")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="cpu: a rehearsal")
    parser.add_argument("--quick", action="store_true", help="pictures of 48 pixels, batch 16, 3 steps; for rehearsals")
    parser.add_argument("--replicas", type=int, metavar="N", help="of mirrored and horovod (all GPUs; on a CPU none)")
    parser.add_argument("--work", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.size = 48 if options.quick else 96
    options.batch = options.batch or ([16] if options.quick else [64, 256])
    options.steps = options.steps or (3 if options.quick else 30)
    options.out = options.out.resolve()
    return options


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
    """Conduct, or be one of the processes that look and measure."""
    options = parse(arguments)
    if options.work is None:
        try:
            return conduct(options)
        except RuntimeError as error:
            print(f"gpu_check: {error}")
            return 1
    if "probe" in options.work:
        print(MARK + json.dumps(probe()), flush=True)
    else:
        work(options.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
