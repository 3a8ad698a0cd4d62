"""Everything that one process can see by itself, gathered in one place; and what follows from it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from bloodcell_dist.cluster.environment import ProcessInfo
from bloodcell_dist.doctor.asked import Asked
from bloodcell_dist.doctor.between import Node
from bloodcell_dist.doctor.cells import Cells, judge_cells, judge_checksum, look_at_cells
from bloodcell_dist.doctor.devices import Cores, Gpus, judge_cores, judge_gpus, look_at_cores, number_seen
from bloodcell_dist.doctor.facts import Facts, in_words
from bloodcell_dist.doctor.findings import Finding, explained, ok, warning
from bloodcell_dist.doctor.horovod_build import HorovodBuild, judge_horovod, look_at_horovod
from bloodcell_dist.doctor.layout import Layout, judge_layout
from bloodcell_dist.doctor.places import Place, judge_file_clock, judge_place, look_at_place
from bloodcell_dist.doctor.slurm import Slurm, judge_slurm, look_at_slurm
from bloodcell_dist.doctor.software import Software, judge_software, look_at_software
from bloodcell_dist.doctor.weights import Weights, judge_weights, look_at_weights
from bloodcell_dist.errors import UserError
from bloodcell_dist.resolve import WEIGHTS_BY_NAME
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.start import default_cache

_SCRATCH = "BLOODCELL_SCRATCH"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Deep:
    """What takes TensorFlow to know; `--quick` does without.

    Attributes:
        horovod_parts: loads Horovod and tells what it was built with.
        has_right_hash: whether a file is a backbone's ImageNet weights, by the hash that Keras has.
    """

    horovod_parts: Callable[[], Collection[str]]
    has_right_hash: Callable[[str, Path], bool]


class Examination(Facts):
    """The facts of one process; None for what others look at, or what could not be looked at (`failures`).

    Rank 0 looks at the run folder, the weights and Slurm, the first process of each node at what all of it share.
    """

    node: str
    layout: Layout
    strategy: str
    gpus: Gpus
    cores: Cores | None = None
    software: Software | None = None
    horovod: HorovodBuild | None = None
    data: Cells | None = None
    test: Cells | None = None
    cache: Place | None = None
    scratch: Place | None = None
    run: Place | None = None
    run_problem: str | None = None
    weights: Weights | None = None
    slurm: Slurm | None = None
    failures: dict[str, str] = Field(default_factory=dict)


def examine(
    asked: Asked,
    layout: Layout,
    process: ProcessInfo,
    environ: Mapping[str, str],
    gpus: Gpus,
    *,
    deep: Deep | None = None,
    show_traceback: bool = False,
) -> Examination:
    """Look at everything but the GPUs, which are given; where looking fails, that is told in `failures`."""
    failures: dict[str, str] = {}
    settings = asked.settings

    def attempt(name: str, look: Callable[[], Found]) -> Found | None:
        try:
            return look()
        except Exception as failure:  # a check that fails is a finding too
            if show_traceback:
                traceback.print_exc(file=sys.stderr)
            failures[name] = in_words(failure)
            return None

    seen: dict[str, Any] = {"gpus": gpus, "cores": attempt("cores", look_at_cores)}
    if process.local_rank == 0:
        thorough, names = deep is not None, settings.data.class_names
        test_source = "auto" if settings.data.test_path else settings.data.source
        seen |= {
            "software": attempt("packages", look_at_software),
            "horovod": attempt("horovod", lambda: look_at_horovod(deep.horovod_parts if deep else None)),
            "data": attempt("data", lambda: _training_cells(asked, thorough)),
            "test": attempt(
                "test data",
                lambda: look_at_cells(settings.data.test_path, test_source, names, all_of_it=thorough),
            ),
            "scratch": attempt(
                "scratch", lambda: look_at_place(environ[_SCRATCH], needed=False) if environ.get(_SCRATCH) else None
            ),
            "cache": attempt("cache", lambda: _cache(settings.data.cache_dir)),
        }
    if process.is_chief:
        model = settings.model
        weights = asked.weights if asked.weights in WEIGHTS_BY_NAME else model.weights
        seen |= {
            "run": attempt("run folder", lambda: look_at_place(asked.run)),
            "run_problem": attempt("run folder", lambda: _problem_of_run(asked.run)),
            "weights": attempt(
                "weights",
                lambda: look_at_weights(
                    weights, model.backbone, model.weights_dir, environ, deep.has_right_hash if deep else None
                ),
            ),
            "slurm": attempt("slurm", lambda: look_at_slurm(environ)),
        }
    about = {"node": process.hostname, "layout": layout, "strategy": asked.strategy, "failures": failures}
    return Examination.model_validate(about | seen)


def _training_cells(asked: Asked, all_of_it: bool) -> Cells:
    data = asked.settings.data
    if asked.data_problem is not None:
        return Cells(problem=asked.data_problem)
    found = look_at_cells(data.path, data.source, data.class_names, all_of_it=all_of_it)
    return found.model_copy(update={"drawn_for_want": not asked.source_given})


def _cache(asked: str | None) -> Place | None:
    """A cache that nobody asked for is done without where it cannot be written."""
    if asked == "off":
        return None
    return look_at_place(asked or default_cache(), needed=asked is not None)


def _problem_of_run(path: str) -> str | None:
    """Why no run can be made or continued there."""
    try:
        RunDir(Path(path)).check()
    except UserError as failure:
        return str(failure)
    return None


def judge(found: Examination) -> list[Finding]:
    """The lines about one process, in the order in which they are read."""
    layout, gpus = found.layout, number_seen(found.gpus, found.layout)
    lines = judge_layout(layout, gpus, found.strategy)
    lines += judge_software(found.software) if found.software else []
    lines += judge_horovod(found.horovod, layout, max(gpus, layout.gpus_asked or 0)) if found.horovod else []
    lines += judge_gpus(found.gpus, layout)
    lines += judge_cores(found.cores, layout) if found.cores else []
    for name, cells, key in (("data", found.data, "data.path"), ("test data", found.test, "data.test_path")):
        lines += judge_cells(name, cells, key) if cells else []
    for cells in (found.data, found.test):
        lines += judge_checksum(cells) if cells else []
    lines += judge_weights(found.weights) if found.weights else []
    lines += _judge_places(found)
    lines += judge_slurm(found.slurm) if found.slurm else []
    fix = "run it with --traceback, which shows where it failed"
    return [*lines, *(warning(name, f"could not be checked ({why})", fix) for name, why in found.failures.items())]


def _judge_places(found: Examination) -> list[Finding]:
    lines, elsewhere = [], "--run-dir DIR, or BLOODCELL_RUNS in slurm/site.env"
    if found.run is not None and found.run.problem is None and found.run_problem is not None:
        lines.append(explained("run folder", found.run_problem, elsewhere))
    elif found.run is not None:
        lines += judge_place("run folder", found.run, elsewhere)
    if found.scratch is not None:
        lines += judge_place("scratch", found.scratch, f"{_SCRATCH} in slurm/site.env")
    elif found.data is not None and "scratch" not in found.failures:
        lines.append(ok("scratch", f"none: ${_SCRATCH} is not set"))
    if found.cache is not None:
        lines += judge_place("cache", found.cache, "--set data.cache_dir=DIR or off")
    if found.run is not None and found.run.problem is None:
        lines += judge_file_clock(found.run)
    return lines


def as_node(found: Examination) -> Node:
    """What has to be the same on all nodes."""
    software, sets = found.software, {"data": found.data, "test data": found.test}
    packages = software.packages if software else ()
    versions = {"Python": software.python} if software else {}
    versions |= {each.name: each.installed or "missing" for each in packages}
    if found.horovod is not None:
        versions["horovod"] = found.horovod.package.installed or "missing"
    return Node(
        name=found.node,
        versions=versions,
        gpus=number_seen(found.gpus, found.layout),
        driver=found.gpus.driver or "none",
        cores=found.cores.all if found.cores else 0,
        checksums={name: cells.sha256 for name, cells in sets.items() if cells and cells.sha256},
    )
