"""The Horovod that is installed, and what it was built with."""

from __future__ import annotations

import importlib.util
import json
import mmap
from collections.abc import Callable, Collection
from pathlib import Path

from bloodcell_dist.doctor.facts import Facts
from bloodcell_dist.doctor.findings import Finding, error, ok, warning
from bloodcell_dist.doctor.layout import Layout
from bloodcell_dist.doctor.software import Package, is_right, look_at_extra
from bloodcell_dist.installed import installed_version

PARTS = {"tensorflow": "TensorFlow", "gloo": "Gloo", "mpi": "MPI", "nccl": "NCCL"}
_INSTALL = "scripts/install_horovod.sh"
# Names of C++ classes that a build with the part has in it, as the compiler writes them for run-time type information.
_CLASSES = {
    "gloo": b"N7horovod6common13GlooAllreduceE",
    "mpi": b"N7horovod6common12MPIAllreduceE",
    "nccl": b"N7horovod6common13NCCLAllreduceE",
}


class HorovodBuild(Facts):
    """What there is of it.

    Attributes:
        package: its version and that which is wanted.
        parts: of PARTS, those that it has.
        built_for: TensorFlow's version when it was built; None if it does not say.
        tensorflow: TensorFlow's version now.
        problem: why it cannot be loaded; None as well where that was not tried.
    """

    package: Package
    parts: tuple[str, ...] = ()
    built_for: str | None = None
    tensorflow: str | None = None
    problem: str | None = None


def look_at_horovod(load: Callable[[], Collection[str]] | None = None) -> HorovodBuild:
    """The installed Horovod; `load` imports it and tells its parts, without it they are read from its library."""
    package, spec = look_at_extra("horovod"), importlib.util.find_spec("horovod")
    if package.installed is None or spec is None or spec.origin is None:
        return HorovodBuild(package=package.model_copy(update={"installed": None}))
    folder, problem, parts = Path(spec.origin).parent, None, frozenset[str]()
    library = next(folder.glob("tensorflow/mpi_lib*.so"), None)
    if library is not None:
        parts = parts_in(library)
    if library is not None and load is not None:
        try:
            parts = frozenset(load())
        except ImportError as failure:
            problem = str(failure).splitlines()[0]
    return HorovodBuild(
        package=package,
        parts=tuple(part for part in PARTS if part in parts),
        built_for=_built_for(folder),
        tensorflow=installed_version("tensorflow"),
        problem=problem,
    )


def parts_in(library: Path) -> frozenset[str]:
    """What Horovod's library for TensorFlow was built with, without loading it."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return frozenset({"tensorflow", *(part for part, name in _CLASSES.items() if content.find(name) >= 0)})


def _built_for(folder: Path) -> str | None:
    try:
        version = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["tensorflow"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(version)


def judge_horovod(found: HorovodBuild, layout: Layout, num_gpus: int) -> list[Finding]:
    """What is missing is an error where a node has several tasks, which it has to connect."""
    grave = error if layout.has_several else warning
    why = f"{layout.tasks_per_node} tasks per node need it" if layout.has_several else "several processes would need it"
    version, name = found.package.installed, "horovod"
    if version is None:
        return [grave(name, f"not installed; {why}", _INSTALL)]
    if found.problem is not None:
        return [grave(name, f"{version} does not load ({found.problem}); {why}", f"{_INSTALL} --force")]
    if "tensorflow" not in found.parts:
        return [grave(name, f"{version} was built without TensorFlow; {why}", f"{_INSTALL} --force")]
    lines = []
    if not is_right(found.package):
        lines.append(grave(name, f"{version}, wanted {found.package.required}", _INSTALL))
    if found.built_for != found.tensorflow and None not in (found.built_for, found.tensorflow):
        text = f"{version} was built for TensorFlow {found.built_for}, {found.tensorflow} is installed"
        lines.append(warning(name, text, _INSTALL))
    start = "mpi" if layout.needs_mpi else "gloo"
    by_either = "horovod" in (layout.launcher, layout.start_by.removesuffix("run"))
    if start not in found.parts and not (by_either and "mpi" in found.parts):
        text = f"{version} was built without {PARTS[start]}, by which its processes find one another; {why}"
        lines.append(grave(name, text, _INSTALL if start == "gloo" else f"load an MPI module, then {_INSTALL}"))
    if "nccl" not in found.parts and num_gpus:
        text = f"{version} was built without NCCL: gradients would go through the CPUs"
        lines.append(warning(name, text, f"load a CUDA module, then {_INSTALL}"))
    has = ", ".join(title for part, title in PARTS.items() if part in found.parts)
    lacks = ", ".join(title for part, title in PARTS.items() if part not in found.parts)
    return lines or [ok(name, f"{version} with {has}" + (f"; without {lacks}" if lacks else ""))]
