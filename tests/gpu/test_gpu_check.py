"""What runs these tests and the measurements on a GPU, `benchmarks/gpu_check.py`; needs no GPU itself."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MARK = "GPU_CHECK_RESULT "
MACHINE = {
    "num_gpus": 1,
    "devices": ["NVIDIA H100 (compute capability 9.0)"],
    "driver": "580.1",
    "cuda": "12.5.1",
    "cudnn": "9",
    "versions": {"tensorflow": "2.18.1", "keras": "3.15.1", "bloodcell_dist": "0.1.0"},
    "python": "3.12.3",
    "cpus": 16,
    "git": None,
    "horovod": {"nccl": True, "mpi": False, "gloo": True},
}
FOUND = {
    "images_per_s": 12345.6,
    "images_per_s_range": [12000.0, 13000.0],
    "update_ms": 5.184,
    "peak_memory_mib": 2048.0,
    "first_update_s": 33.3,
    "weights": 390_952,
    "precision": "mixed_bfloat16",
    "xla": "on",
    "deterministic": True,
    "beside": ["none", "seed"],
    "rounds_ms": [5.0, 5.2, 5.3],
}
TIMM = FOUND | {"precision": "bfloat16", "model": "convnext_base", "images_per_s": 10000.0}
PYTORCH = {"torch": "2.6.0", "timm": "1.0", "python": "3.12.3", "cuda": "12.4", "cudnn": 90100, "device": "NVIDIA H100"}
PYTORCH |= {"sees_gpu": True}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_check")


def check_in(script: ModuleType, folder: Path, *arguments: str, limit_s: float | None = None) -> Any:
    options = script.parse(["--out", str(folder), *arguments])
    how = {"device": options.device, "size": 96, "steps": 30, "rounds": 3, "settings": []}
    return script.Check(options, script.Report(folder, MACHINE, how, False), script.Clock(limit_s), {})


def written(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu_check.json").read_text())


def lines_of(folder: Path) -> list[str]:
    return (folder / "gpu_check.md").read_text().splitlines()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def says(case: Any, found: dict[str, Any] | None = None) -> str:
    """Code of a process that begins a case, or has measured it."""
    what = {"case": asdict(case)} | ({} if found is None else {"found": found})
    return f"print({MARK + json.dumps(what)!r}, flush=True); "


def test_a_case_that_kills_its_process_is_named_and_the_others_are_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [script.Case("cnn", batch, "none") for batch in (64, 128, 256)]

    def command(check: Any, todo: list[Any]) -> list[str]:
        result = says(todo[0]) + says(todo[0], FOUND)
        dies = "import os; print('Check failed: out of luck', flush=True); os.abort()"
        return python((result if todo[0].batch != 128 else "") + (dies if len(todo) > 1 else ""))

    monkeypatch.setattr(script, "worker_command", command)
    check = check_in(script, tmp_path)
    script.run_cases(check, cases)
    rows = written(tmp_path)["speed"]
    assert [row["case"]["batch"] for row in rows] == [64, 128, 256]
    assert [row.get("reason") for row in rows] == [None, "signal 6: Check failed: out of luck", None]
    assert check.report.failed()


def test_of_two_that_run_by_turns_the_one_that_had_begun_is_to_blame(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none, seed = (script.Case("cnn", 64, policy) for policy in ("none", "seed"))

    def command(check: Any, todo: list[Any]) -> list[str]:
        both = says(none) + says(seed) + "raise SystemExit('no')"
        return python(both if len(todo) > 1 else says(none, FOUND | {"beside": []}))

    monkeypatch.setattr(script, "worker_command", command)
    script.run_cases(check_in(script, tmp_path), [none, seed])
    found = written(tmp_path)
    assert [(row["case"]["policy"], row.get("reason")) for row in found["speed"]] == [
        ("seed", "exit status 1: no"),
        ("none", None),
    ]
    assert found["augmentation"][0]["reason"] == "seed: exit status 1: no"


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("bad news\nmore of it", "ValueError: bad news"),
        ("", "ValueError: no message"),
        (
            "Graph execution error:\n\nDetected at node Conv defined at (most recent call last):\n"
            '  File "/x/step.py", line 186, in _on_replica\n\n2 root error(s) found.\n  (0) INTERNAL:  out of luck\n',
            "ValueError: (0) INTERNAL:  out of luck",
        ),
    ],
)
def test_an_error_is_told_in_a_line(script: ModuleType, message: str, line: str) -> None:
    assert importlib.import_module("gpu_common").first_line(ValueError(message)) == line


def test_all_files_of_tests_are_run(script: ModuleType) -> None:
    files = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(script.TEST_FILES) == files - {"gpu_check"}


def test_what_hangs_is_stopped_and_said_so(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "worker_command", lambda check, todo: python("import time; time.sleep(60)"))
    monkeypatch.setattr(script, "CASE_S", 0.2)
    check = check_in(script, tmp_path)
    script.run_cases(check, [script.Case("cnn", 64, "none")])
    assert check.report.content["speed"][0]["reason"] == "stopped after 0 s"


def test_nothing_begins_after_the_time_limit(script: ModuleType, tmp_path: Path) -> None:
    check = check_in(script, tmp_path, limit_s=0.0)
    script.run_tests(check)
    script.run_cases(check, [script.Case("cnn", 64, "none")])
    left_out = [row["what"] for row in written(tmp_path)["not_made"]]
    assert left_out == [
        *(f"tests/gpu/test_{name}.py" for name in script.TEST_FILES),
        str(script.Case("cnn", 64, "none")),
    ]
    assert not check.report.failed()


def test_what_runs_when_the_limit_has_passed_is_stopped_and_left_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "worker_command", lambda check, todo: python("import time; time.sleep(60)"))
    monkeypatch.setattr("gpu_common.GRACE_S", 0.1)
    check = check_in(script, tmp_path, limit_s=0.1)
    script.run_cases(check, [script.Case("cnn", 64, "none")])
    assert check.report.content["speed"] == []
    assert check.report.content["not_made"] == [{"what": "cnn, batch 64, policy none, XLA on", "reason": script.LIMIT}]


def test_another_call_goes_on_where_the_machine_is_the_same(script: ModuleType, tmp_path: Path) -> None:
    case = script.Case("cnn", 64, "none")
    check = check_in(script, tmp_path)
    check.report.add(case, FOUND)
    check.report.leave_out("something", script.LIMIT)
    again = check_in(script, tmp_path).report
    assert again.has(case) and not again.has(script.Case("cnn", 64, "seed"))
    assert again.content["not_made"] == []
    other = script.Report(tmp_path, MACHINE | {"driver": "581"}, again.content["how"], False)
    assert not other.has(case)
    assert not script.Report(tmp_path, MACHINE, again.content["how"], True).has(case)


def test_outcomes_and_figures_are_read_from_pytest(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(record_property): record_property('bytes', 4)\n"
        "def test_bad(): assert 1 == 2, 'no | way'\n"
        "def test_absent(): pytest.skip('no GPU')\n"
    )
    arguments = ["-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    arguments += ["-o", "junit_family=xunit1", f"--junitxml={tmp_path}/r.xml", str(tmp_path / "test_some.py")]
    child = script.Child([sys.executable, *arguments], {}, tmp_path / "log")
    assert any("1 failed, 1 passed, 1 skipped" in line for line in child.lines(None))
    found = script.read_results(tmp_path / "r.xml")
    assert [(test["name"], test["outcome"]) for test in found] == [
        ("test_good", "passed"),
        ("test_bad", "failed"),
        ("test_absent", "skipped"),
    ]
    assert found[0]["measured"] == {"bytes": "4"}
    assert found[1]["reason"].startswith("AssertionError: no | way")
    assert found[2]["reason"] == "no GPU"

    report = check_in(script, tmp_path).report
    report.add_tests("some", found)
    text = (tmp_path / "gpu_check.md").read_text()
    assert "1 passed, 1 failed, 1 skipped." in text
    assert "| some | test_bad | failed | AssertionError: no \\| way" in text
    assert report.failed()


def test_the_table_holds_figures_and_reasons(script: ModuleType, tmp_path: Path) -> None:
    report = check_in(script, tmp_path).report
    report.add(script.Case("cnn", 64, "seed"), FOUND)
    report.add(script.Case("efficientnetv2m", 256, "seed", "off"), {"reason": "ResourceExhaustedError: Out of memory"})
    report.add(script.Case("cnn", 64, "seed", "on", "mirrored", 2), FOUND | {"peak_memory_mib": None})
    lines = lines_of(tmp_path)
    figures = "12,346 (12,000-13,000) | 5.2 | 2,048 | 33.3 | mixed_bfloat16, repeatable |"
    assert f"| cnn | single | 64 | seed | on | {figures}" in lines
    assert (
        "| efficientnetv2m | single | 256 | seed | off | ResourceExhaustedError: Out of memory |  |  |  |  |" in lines
    )
    assert "| cnn | mirrored x2 | 64 | seed | on | " + figures.replace("2,048", "not measured") in lines
    assert lines.index("## Several GPUs") < lines.index(next(line for line in lines if "mirrored x2" in line))
    assert any("NVIDIA H100" in line and "driver 580.1" in line and "CUDA 12.5.1" in line for line in lines)


@pytest.mark.parametrize(
    ("rounds", "cell"),
    [
        ([5.2, 5.4, 5.5], "3.7% (3.6% to 3.8%) | under 5%, met |"),
        ([5.5, 5.4, 5.9], "9.1% (3.7% to 10.2%) | under 5%, missed |"),
    ],
)
def test_augmentations_share_is_taken_round_by_round(
    script: ModuleType, tmp_path: Path, rounds: list[float], cell: str
) -> None:
    report = check_in(script, tmp_path).report
    report.add(script.Case("convnextbase", 64, "none"), FOUND)
    assert "| convnextbase | 64 | on |  | not measured, seed: not measured yet | under 5%, open |" in lines_of(tmp_path)
    report.add(script.Case("convnextbase", 64, "seed"), FOUND | {"rounds_ms": rounds, "update_ms": 5.4})
    assert f"| convnextbase | 64 | on | 5.2, 5.4 | {cell}" in lines_of(tmp_path)
    [found] = written(tmp_path)["augmentation"]
    assert found["share"] == pytest.approx(float(cell.split("%")[0]) / 100, abs=1e-3)


def test_what_was_not_measured_by_turns_has_no_share(script: ModuleType, tmp_path: Path) -> None:
    report = check_in(script, tmp_path).report
    for policy in ("none", "seed"):
        report.add(script.Case("cnn", 64, policy), FOUND | {"beside": []})
    assert written(tmp_path)["augmentation"][0]["reason"] == "the two were not measured by turns"


@pytest.mark.parametrize(
    ("ours", "theirs", "cells"),
    [
        ([11000.0, 12500.0], [10000.0, 9000.0], "12,500 (XLA off) | 10,000 (default) | 0.39, 0.39 | 1.25 | {}, met |"),
        ([11000.0, 9000.0], [8000.0, 10000.0], "11,000 (XLA on) | 10,000 (eager) | 0.39, 0.39 | 1.10 | {}, missed |"),
    ],
)
def test_the_best_of_ours_is_set_against_the_best_of_pytorchs(
    script: ModuleType, tmp_path: Path, ours: list[float], theirs: list[float], cells: str
) -> None:
    report = check_in(script, tmp_path).report
    report.found_pytorch(PYTORCH)
    for xla, rate in zip(("on", "off"), ours, strict=True):
        report.add(script.Case("cnn", 64, "none", xla), FOUND | {"images_per_s": rate, "xla": xla})
    report.add(script.Case("cnn", 64, "seed"), FOUND | {"images_per_s": 99999.0})
    for mode, rate in zip(("default", "eager"), theirs, strict=True):
        report.add(script.TimmCase("cnn", 64, mode), TIMM | {"images_per_s": rate})
    assert "| cnn | 64 | " + cells.format("at least 1.2") in lines_of(tmp_path)
    assert any(line.startswith("PyTorch 2.6.0 (CUDA 12.4") for line in lines_of(tmp_path))


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (FOUND, {"reason": "OutOfMemoryError: no"}, "PyTorch: OutOfMemoryError: no"),
        ({"reason": "InternalError: no"}, TIMM, "ours: InternalError: no"),
        (FOUND | {"precision": "float32"}, TIMM, "ours computed in float32, PyTorch in bfloat16"),
    ],
)
def test_without_one_of_the_two_there_is_no_ratio(
    script: ModuleType, tmp_path: Path, ours: dict[str, Any], theirs: dict[str, Any], reason: str
) -> None:
    report = check_in(script, tmp_path).report
    report.found_pytorch(PYTORCH)
    report.add(script.Case("cnn", 64, "none"), ours)
    report.add(script.TimmCase("cnn", 64, "default"), theirs)
    assert f"| cnn | 64 |  |  |  | not measured, {reason} | at least 1.2, open |" in lines_of(tmp_path)


def test_a_rehearsal_meets_no_goal(script: ModuleType, tmp_path: Path) -> None:
    report = check_in(script, tmp_path, "--device", "cpu").report
    report.found_pytorch(PYTORCH)
    for policy in ("none", "seed"):
        report.add(script.Case("convnextbase", 64, policy), FOUND)
    report.add(script.TimmCase("convnextbase", 64, "default"), TIMM)
    lines = lines_of(tmp_path)
    assert any(line.endswith("| 0.0% (0.0% to 0.0%) | under 5%, open |") for line in lines)
    assert any(line.endswith("| 1.23 | at least 1.2, open |") for line in lines)


def pytorch_that_says(folder: Path, found: dict[str, Any]) -> list[str]:
    """The option for a Python that does."""
    program = folder / "torch-python"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{MARK}{json.dumps({'pytorch': found})}\nEND\n")
    program.chmod(0o755)
    return ["--torch-python", str(program)]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"missing": ["torch", "timm"]}, "PyTorch/timm not installed (torch, timm missing for"),
        (PYTORCH | {"sees_gpu": False}, "PyTorch 2.6.0 sees no GPU"),
        (PYTORCH | {"device": "NVIDIA T400"}, "not the same card: PyTorch takes NVIDIA T400, TensorFlow NVIDIA H100"),
    ],
)
def test_without_a_pytorch_that_sees_the_card_the_report_says_so(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], reason: str
) -> None:
    monkeypatch.setattr(script, "worker_command", lambda check, todo: python(says(todo[0], FOUND)))
    options = ["--backbones", "cnn", "--batch", "64", "--xla", "on"]
    check = check_in(script, tmp_path, *options, *pytorch_that_says(tmp_path, found))
    script.run_backbones(check, MACHINE)
    lines = lines_of(tmp_path)
    assert any(line.startswith(f"Not measured: {reason}") for line in lines)
    assert any(line.startswith(f"| cnn | 64 |  |  |  | not measured, PyTorch: {reason}") for line in lines)
    assert ("torch-env/bin/pip install torch timm" in "".join(lines)) == ("missing" in found)
    assert not check.report.failed()


def test_what_another_pytorch_did_is_given_up(script: ModuleType, tmp_path: Path) -> None:
    case = script.TimmCase("cnn", 64, "default")
    report = check_in(script, tmp_path).report
    report.found_pytorch(PYTORCH)
    report.add(case, TIMM)
    again = check_in(script, tmp_path).report
    again.found_pytorch("PyTorch/timm not installed")
    assert again.has(case)
    again.found_pytorch(PYTORCH | {"torch": "2.7.0"})
    assert not again.has(case)


def test_without_xla_one_batch_is_measured(script: ModuleType) -> None:
    options = script.parse(())
    cases = [case for xla in options.xla for case in script.speed_cases(options, "cnn", xla)]
    assert [(case.xla, case.batch, case.policy) for case in cases] == [
        *(("on", batch, policy) for batch in (64, 256) for policy in ("none", "seed")),
        *(("off", 64, policy) for policy in ("none", "seed")),
    ]


def test_settings_that_are_varied_cannot_be_set(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--set", "train.xla=off"])
    assert "train.xla is varied here: --backbones, --batch and --xla choose" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "changes", "ways", "reasons"),
    [
        ((), {}, {}, {"mirrored": "1 GPU is visible", "horovod": "1 GPU is visible"}),
        ((), {"num_gpus": 4}, {"mirrored": 4, "horovod": 4}, {}),
        ((), {"num_gpus": 4, "horovod": "not there"}, {"mirrored": 4}, {"horovod": "not there"}),
        (
            (),
            {"num_gpus": 2, "horovod": {"nccl": False}},
            {"mirrored": 2},
            {"horovod": "this Horovod was built without NCCL"},
        ),
        (("--device", "cpu"), {"num_gpus": 0}, {}, {"mirrored": "no GPU", "horovod": "no GPU"}),
        (
            ("--device", "cpu", "--replicas", "2"),
            {"num_gpus": 0, "horovod": {"nccl": False}},
            {"mirrored": 2, "horovod": 2},
            {},
        ),
    ],
)
def test_several_gpus_are_used_where_they_can_be(
    script: ModuleType,
    arguments: tuple[str, ...],
    changes: dict[str, Any],
    ways: dict[str, int],
    reasons: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(script, "horovodrun", lambda: "/usr/bin/horovodrun")
    assert script.ways_on_several(script.parse(arguments), MACHINE | changes) == (ways, reasons)


def test_without_a_gpu_it_says_so(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "look", lambda options, environment: MACHINE | {"num_gpus": 0})
    assert script.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().out.startswith("gpu_check: TensorFlow sees no GPU here")


def test_a_tensorflow_that_does_not_start_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho ImportError: libcudnn\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(script.sys, "executable", str(python))
    assert script.main(["--out", str(tmp_path)]) == 1
    assert "could not be started (exit status 1: ImportError: libcudnn)" in capsys.readouterr().out
