"""Packages against pins, and what Horovod was built with."""

from __future__ import annotations

import importlib.metadata
import py_compile
import sys
from pathlib import Path
from typing import Any

import pytest

from bloodcell_dist.doctor import horovod_build, software
from bloodcell_dist.doctor.findings import Finding
from bloodcell_dist.doctor.horovod_build import HorovodBuild, judge_horovod, look_at_horovod, parts_in
from bloodcell_dist.doctor.layout import Layout
from bloodcell_dist.doctor.software import Package, Software, judge_software, look_at_extra, look_at_software

KERAS = Package(name="keras", required=">=3.15,<3.16", installed="3.15.1")
NUMPY = Package(name="numpy", required=">=2.0", installed="2.0.2")
PYTHON = {"python": "3.11.7", "python_required": ">=3.11,<3.13"}


def told(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    return [(finding.name, finding.level, finding.text, finding.fix) for finding in findings]


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            Software(**PYTHON, packages=(KERAS, NUMPY)),
            [("python", "ok", "3.11.7", ""), ("packages", "ok", "2 as required: keras 3.15.1, numpy 2.0.2", "")],
        ),
        (
            Software(**PYTHON, packages=(Package(name="tqdm", required="", installed="4"),)),
            [("python", "ok", "3.11.7", ""), ("packages", "ok", "1 as required", "")],
        ),
        (
            Software(**PYTHON | {"python": "3.13.0"}, packages=(NUMPY,)),
            [
                (
                    *("python", "error", "3.13.0, wanted >=3.11,<3.13"),
                    "a new environment: make venv PYTHON=python3.11, or load such a module before",
                ),
                ("packages", "ok", "1 as required: numpy 2.0.2", ""),
            ],
        ),
        (
            Software(
                **PYTHON,
                packages=(
                    KERAS.model_copy(update={"installed": "3.9.0"}),
                    NUMPY,
                    Package(name="h5py", required=">=3.11", installed=None),
                ),
            ),
            [
                ("python", "ok", "3.11.7", ""),
                (
                    *("packages", "error", "keras 3.9.0, wanted >=3.15,<3.16, h5py is missing, wanted >=3.11"),
                    "pip install 'keras>=3.15,<3.16' 'h5py>=3.11'",
                ),
            ],
        ),
        (
            Software(python="3.11.7"),
            [
                ("python", "ok", "3.11.7", ""),
                (
                    *(
                        "packages",
                        "warning",
                        "bloodcell_dist is not installed as a distribution, so the versions of its ",
                    ),
                    "pip install -e . in the checkout",
                ),
            ],
        ),
    ],
)
def test_versions_against_pins(found: Software, expected: list[tuple[str, ...]]) -> None:
    lines = told(judge_software(found))
    assert [line[:2] + line[3:] for line in lines] == [line[:2] + line[3:] for line in expected]
    assert all(line[2].startswith(wanted[2]) for line, wanted in zip(lines, expected, strict=True))


def test_the_pins_are_those_of_the_metadata() -> None:
    found = look_at_software()
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    by_name = {package.name: package for package in found.packages}
    assert {"tensorflow", "keras", "keras-cv", "numpy", "pydantic"} <= set(by_name)
    assert not {"horovod", "pytest"} & set(by_name)  # of extras
    assert by_name["tensorflow"].required == "==2.18.*"
    assert by_name["tensorflow"].installed == importlib.metadata.version("tensorflow")
    assert [line.level for line in judge_software(found.model_copy(update={"to_compile": None}))] == ["ok", "ok"]
    assert look_at_extra("horovod").required == "==0.28.1"
    assert look_at_extra("nothing-of-this-name") == Package(name="nothing-of-this-name", required="", installed=None)


@pytest.mark.parametrize(
    ("compiled", "forbidden", "slow"), [(True, True, False), (False, False, False), (False, True, True)]
)
def test_packages_that_every_process_would_compile(
    compiled: bool, forbidden: bool, slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "a_package/__init__.py"
    source.parent.mkdir()
    source.touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
    if compiled:
        py_compile.compile(str(source))
    found = software.lacks_bytecode("a_package")
    assert found == (str(tmp_path) if slow else None)
    lines = judge_software(Software(**PYTHON, packages=(NUMPY,), to_compile=found))
    assert [line.fix.split(",")[0] for line in lines[2:]] == [f"python -m compileall -q {tmp_path}"] * slow


def test_what_is_not_there_needs_no_compiling() -> None:
    assert software.lacks_bytecode("nothing_of_this_name") is None


def test_a_source_tree_that_is_not_installed_has_no_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "DISTRIBUTION", "nothing-of-this-name")
    assert look_at_software().packages == ()
    assert look_at_extra("horovod").required == ""


RIGHT = Package(name="horovod", required="==0.28.1", installed="0.28.1")
ALL = ("tensorflow", "gloo", "mpi", "nccl")
CPU = ("tensorflow", "gloo")


def build(**changes: Any) -> HorovodBuild:
    known = {"package": RIGHT, "parts": ALL, "built_for": "2.18.1", "tensorflow": "2.18.1"}
    return HorovodBuild.model_validate(known | changes)


def without_horovod() -> HorovodBuild:
    return HorovodBuild(package=RIGHT.model_copy(update={"installed": None}))


ONE, TWO = {"tasks_per_node": 1}, {"tasks_per_node": 2}


@pytest.mark.parametrize(
    ("found", "layout", "gpus", "level", "text"),
    [
        (build(), TWO, 2, "ok", "0.28.1 with TensorFlow, Gloo, MPI, NCCL"),
        (build(parts=CPU), TWO, 0, "ok", "0.28.1 with TensorFlow, Gloo; without MPI, NCCL"),
        (build(parts=CPU), ONE, 1, "warning", "0.28.1 was built without NCCL"),
        (build(parts=CPU), TWO, 2, "warning", "0.28.1 was built without NCCL"),
        (without_horovod(), ONE, 0, "warning", "not installed; several processes would need it"),
        (without_horovod(), TWO, 0, "error", "not installed; 2 tasks per node need it"),
        (build(problem="undefined symbol"), ONE, 0, "warning", "0.28.1 does not load (undefined symbol)"),
        (build(problem="undefined symbol"), TWO, 0, "error", "0.28.1 does not load (undefined symbol)"),
        (build(parts=()), ONE, 0, "warning", "0.28.1 was built without TensorFlow"),
        (build(parts=()), TWO, 0, "error", "0.28.1 was built without TensorFlow"),
        (build(built_for="2.17.0"), TWO, 0, "warning", "0.28.1 was built for TensorFlow 2.17.0, 2.18.1 is installed"),
        (build(built_for=None), TWO, 0, "ok", "0.28.1 with"),
        (build(package=RIGHT.model_copy(update={"installed": "0.27.0"})), ONE, 0, "warning", "0.27.0, wanted ==0.28.1"),
        (build(package=RIGHT.model_copy(update={"installed": "0.27.0"})), TWO, 0, "error", "0.27.0, wanted ==0.28.1"),
        (build(parts=("tensorflow", "mpi")), TWO, 0, "error", "0.28.1 was built without Gloo"),
        (build(parts=("tensorflow", "mpi")), ONE, 0, "warning", "0.28.1 was built without Gloo"),
        (build(parts=("tensorflow", "mpi")), TWO | {"launcher": "horovod"}, 0, "ok", "0.28.1 with TensorFlow, MPI"),
        (build(parts=("tensorflow", "mpi")), TWO | {"start_by": "horovodrun"}, 0, "ok", "0.28.1 with TensorFlow, MPI"),
        (build(parts=("tensorflow", "mpi")), TWO | {"start_by": "pmix"}, 0, "ok", "0.28.1 with TensorFlow, MPI"),
        (build(parts=("tensorflow",)), TWO | {"launcher": "horovod"}, 0, "error", "0.28.1 was built without Gloo"),
        (build(parts=CPU), TWO | {"start_by": "pmix"}, 0, "error", "0.28.1 was built without MPI"),
        (build(parts=CPU), TWO | {"launcher": "openmpi"}, 0, "error", "0.28.1 was built without MPI"),
    ],
)
def test_horovod_against_what_needs_it(
    found: HorovodBuild, layout: dict[str, Any], gpus: int, level: str, text: str
) -> None:
    (finding,) = judge_horovod(found, Layout(**layout), gpus)
    assert (finding.name, finding.level) == ("horovod", level)
    assert finding.text.startswith(text)
    assert level == "ok" or "scripts/install_horovod.sh" in finding.fix


def test_parts_are_read_from_the_library(tmp_path: Path) -> None:
    library = tmp_path / "mpi_lib.so"
    library.write_bytes(b"\0N7horovod6common13GlooAllreduceE\0N7horovod6common13NCCLAllreduceE\0")
    assert parts_in(library) == {"tensorflow", "gloo", "nccl"}
    library.write_bytes(b"\0N7horovod6common12MPIAllreduceE\0")
    assert parts_in(library) == {"tensorflow", "mpi"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Horovod that is only a folder."""
    folder = tmp_path / "horovod"
    (folder / "tensorflow").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is not to be imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "horovod", raising=False)
    monkeypatch.setattr(horovod_build, "look_at_extra", lambda name: RIGHT)
    return folder


def test_a_horovod_is_looked_at_without_importing_it(installed: Path) -> None:
    (installed / "tensorflow/mpi_lib.cpython.so").write_bytes(b"N7horovod6common13GlooAllreduceE")
    (installed / "metadata.json").write_text('{"tensorflow": "2.18.0"}')
    found = look_at_horovod()
    assert (found.parts, found.built_for, found.problem) == (("tensorflow", "gloo"), "2.18.0", None)


def test_a_horovod_that_does_not_load(installed: Path) -> None:
    (installed / "tensorflow/mpi_lib.cpython.so").write_bytes(b"N7horovod6common13GlooAllreduceE")

    def load() -> list[str]:
        raise ImportError("undefined symbol: _ZN\nmore")

    assert look_at_horovod(load).problem == "undefined symbol: _ZN"
    assert look_at_horovod(lambda: ["nccl", "tensorflow"]).parts == ("tensorflow", "nccl")


def test_a_horovod_without_tensorflow_is_not_loaded(installed: Path) -> None:
    def load() -> list[str]:
        raise AssertionError("there is nothing to load")

    assert look_at_horovod(load).parts == ()


def test_no_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_build.importlib.util, "find_spec", lambda name: None)
    assert look_at_horovod().package.installed is None
