"""What `bloodcell-dist bench` does: measures this machine with the settings of a training, alone or with all ranks."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bloodcell_dist import logs, runtime  # runtime before all others: it imports TensorFlow quietly
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.bench import PARTS
from bloodcell_dist.bench.allreduce import measure_allreduce
from bloodcell_dist.bench.augmentation import measure_augmentation
from bloodcell_dist.bench.figures import Figures
from bloodcell_dist.bench.input import measure_input
from bloodcell_dist.bench.scaling import measure_scaling
from bloodcell_dist.bench.step import measure_step
from bloodcell_dist.bench.table import heading, lines_of
from bloodcell_dist.bench.workbench import Workbench
from bloodcell_dist.config import from_text, load_settings, replace, settings_or_defaults, to_text
from bloodcell_dist.errors import UserError, is_disk_full
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.resolve import Machine
from bloodcell_dist.settings import Settings
from bloodcell_dist.start import check_same_cells, load_data, repeatable, settle
from bloodcell_dist.training.replication import Joined, replicate

log = logging.getLogger(__name__)

_MEASURE: Mapping[str, Callable[[Workbench], Figures]] = {
    "step": measure_step,
    "augmentation": measure_augmentation,
    "input": measure_input,
    "allreduce": measure_allreduce,
    "scaling": measure_scaling,
}


def run_bench(options: argparse.Namespace) -> None:
    """Measure, print, and write the JSON file if one is asked for; among the other processes of the launcher."""
    if options.rounds < 1:
        raise UserError(f"--rounds {options.rounds}: expected a number from 1")
    process, given = this_process(), settings_or_defaults(options.config, options.overrides)
    runtime.set_up_xla(given.train.xla_cache_dir)
    quiet = contextlib.nullcontext() if process.is_chief else logs.silence()
    with quiet, launched(process, given.distribute.strategy) as joined, ending_together(joined):
        machine = runtime.look_at_machine(process)
        mine = to_text(_settle(options, machine)) if process.is_chief else None
        settings = from_text(joined.workers.share(mine))
        joined.go_by(settings.distribute.timeout_s, lambda ending: None)
        with runtime.memory_explained():
            bench = _set_up(settings, joined, machine, options.rounds)
            found = _measure(bench, [part for part in PARTS if part in (options.parts or PARTS)])
        if process.is_chief and options.json is not None:
            _write(options.json, found)


def _settle(options: argparse.Namespace, machine: Machine) -> Settings:
    """The settings, on the chief; what keeps the file from being written is found before anything is measured."""
    if options.json is not None:
        check_place(options.json)
    given = replace(load_settings(options.config, options.overrides), {"model.weights": "none"})  # speed is the same
    settings, choices = settle(given, machine)
    for line in choices:
        if not line.startswith("train.epochs"):
            log.info(line)
    return settings


def _set_up(settings: Settings, joined: Joined, machine: Machine, rounds: int) -> Workbench:
    """As a training begins. A collective."""
    replication = replicate(
        joined,
        settings.distribute.strategy,
        devices=settings.distribute.devices,
        gradient_compression=settings.distribute.gradient_compression,
    )
    data = load_data(settings)
    check_same_cells(joined.workers, data)
    runtime.configure(
        precision=settings.train.precision,
        deterministic=repeatable(settings, machine.num_gpus),
        eager=settings.train.eager,
    )
    return Workbench(settings, data, replication, rounds)


def _measure(bench: Workbench, parts: Sequence[str]) -> dict[str, Any]:
    """All that was found, for the file; each part is printed as soon as it is measured. A collective."""
    facts = runtime.describe_environment(bench.replication.process) | {"replicas": bench.replication.num_replicas}
    found: dict[str, Any] = {"environment": facts, "settings": bench.settings.model_dump(), "rounds": bench.rounds}
    _say(bench, [_title(bench, facts), heading(bench.rounds)])
    for part in parts:
        figures = _MEASURE[part](bench)
        found[part] = asdict(figures)
        _say(bench, ["", *lines_of(part, figures)])
    return found


def _title(bench: Workbench, facts: Mapping[str, Any]) -> str:
    """One line about the machine and what runs on it."""
    settings, gpus = bench.settings, sum("GPU" in name for name in facts["devices"])
    machine = f"{facts['host']}, {facts['cpus']} CPUs" + (f", {gpus} GPUs" if gpus else "")
    size, replicas = settings.model.input_size or settings.data.image_size, bench.replication.num_replicas
    return (
        f"{machine}, TensorFlow {facts['versions']['tensorflow']}; {bench.replication.name}, {replicas} "
        f"{'replica' if replicas == 1 else 'replicas'}; {settings.model.backbone}, {size} pixels, "
        f"{settings.train.precision}, xla {settings.train.xla}"
    )


def _say(bench: Workbench, lines: Sequence[str]) -> None:
    if bench.replication.is_chief:
        print("\n".join(lines), flush=True)


def check_place(path: str) -> None:
    """UserError if the JSON file cannot come there."""
    place = Path(path).absolute()
    if not place.parent.is_dir():
        raise UserError(f"--json {path}: its folder does not exist; make it or give another file")
    if place.is_dir():
        raise UserError(f"--json {path}: is a folder; give a file")


def _write(path: str, found: Mapping[str, Any]) -> None:
    try:
        atomic_write_json(path, found)
    except OSError as error:
        if is_disk_full(error):
            raise
        raise UserError(f"--json {path}: cannot be written ({error.strerror or error}); give another place") from None
