"""What runs these tests and the measurements on a GPU, `benchmarks/gpu_check.py`; needs no GPU itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
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
    "precision": "mixed_bfloat16",
    "xla": "on",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "gpu_check", module)  # where dataclasses look for it
    specification.loader.exec_module(module)
    return module


def check_in(script: ModuleType, folder: Path, *arguments: str, limit_s: float | None = None) -> Any:
    options = script.parse(["--out", str(folder), *arguments])
    report = script.Report(
        folder, MACHINE, {"device": "gpu", "size": 96, "steps": 30, "rounds": 3, "settings": []}, False
    )
    return script.Check(options, report, script.Clock(limit_s), {})


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_case_that_kills_its_process_is_named_and_the_others_are_measured(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [script.Case("cnn", batch, "none") for batch in (64, 128, 256)]

    def command(check: Any, todo: list[Any]) -> list[str]:
        result = f"print({script.MARK!r} + {json.dumps(FOUND)!r}, flush=True); "
        dies = "import os; print('Check failed: out of luck', flush=True); os.abort()"
        return python((result if todo[0].batch != 128 else "") + (dies if len(todo) > 1 else ""))

    monkeypatch.setattr(script, "worker_command", command)
    check = check_in(script, tmp_path)
    script.run_cases(check, cases)
    rows = json.loads((tmp_path / "gpu_check.json").read_text())["speed"]
    assert [row["case"]["batch"] for row in rows] == [64, 128, 256]
    assert [row.get("reason") for row in rows] == [None, "signal 6: Check failed: out of luck", None]
    assert check.report.failed()


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
    written = json.loads((tmp_path / "gpu_check.json").read_text())
    left_out = [row["what"] for row in written["not_made"]]
    assert left_out == [*(f"tests/gpu/test_{name}.py" for name in script.TEST_FILES), "cnn, batch 64, policy none"]
    assert not check.report.failed()


def test_what_runs_when_the_limit_has_passed_is_stopped_and_left_out(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "worker_command", lambda check, todo: python("import time; time.sleep(60)"))
    monkeypatch.setattr(script, "GRACE_S", 0.1)
    check = check_in(script, tmp_path, limit_s=0.1)
    script.run_cases(check, [script.Case("cnn", 64, "none")])
    assert check.report.content["speed"] == []
    assert check.report.content["not_made"] == [{"what": "cnn, batch 64, policy none", "reason": script.LIMIT}]


def test_another_call_goes_on_where_the_machine_is_the_same(script: ModuleType, tmp_path: Path) -> None:
    case = script.Case("cnn", 64, "none")
    check = check_in(script, tmp_path)
    check.report.add_speed(case, FOUND)
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
    report.add_speed(script.Case("cnn", 64, "seed"), FOUND)
    report.add_speed(script.Case("efficientnetv2m", 256, "seed"), {"reason": "ResourceExhaustedError: Out of memory"})
    report.add_speed(script.Case("cnn", 64, "seed", "mirrored", 2), FOUND | {"peak_memory_mib": None})
    lines = (tmp_path / "gpu_check.md").read_text().splitlines()
    figures = "12,346 (12,000-13,000) | 5.2 | 2,048 | 33.3 | mixed_bfloat16, on |"
    assert f"| cnn | single | 64 | seed | {figures}" in lines
    assert "| efficientnetv2m | single | 256 | seed | ResourceExhaustedError: Out of memory |  |  |  |  |" in lines
    assert "| cnn | mirrored x2 | 64 | seed | " + figures.replace("2,048", "not measured") in lines
    assert lines.index("## Several GPUs") < lines.index(next(line for line in lines if "mirrored x2" in line))
    assert any("NVIDIA H100" in line and "driver 580.1" in line and "CUDA 12.5.1" in line for line in lines)


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
