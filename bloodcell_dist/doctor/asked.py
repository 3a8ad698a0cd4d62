"""What a run with these options would use: settings without `auto`, and its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bloodcell_dist.config import load_settings, replace
from bloodcell_dist.doctor.facts import Facts, in_words
from bloodcell_dist.doctor.findings import Finding, explained, ok
from bloodcell_dist.doctor.weights import find_weights
from bloodcell_dist.errors import UserError
from bloodcell_dist.resolve import Machine, resolve
from bloodcell_dist.settings import Settings
from bloodcell_dist.start import run_folder

_NO_CELLS = {"data.source": "synthetic", "data.path": None}


class Asked(Facts):
    """The options, read.

    Attributes:
        told: the file and the number of changes, in words.
        settings: resolved; the defaults where they cannot be read.
        weights: model.weights as given.
        strategy: distribute.strategy as given.
        source_given: whether the cells are named.
        run: the run's folder.
        problem: why the settings cannot be used.
        data_problem: why the cells cannot.
    """

    told: str
    settings: Settings
    weights: str
    strategy: str
    source_given: bool
    run: str
    problem: str | None = None
    data_problem: str | None = None


def read_asked(
    config: str | None,
    overrides: Sequence[str],
    run_dir: str | None,
    machine: Machine,
    environ: Mapping[str, str],
    folder: Path,
) -> Asked:
    """The settings as a run would resolve them; one that cannot be read or does not fit is told, not raised.

    At the head of a job, where the processes are still to be started, distribute.strategy is not compared with them.
    """
    problem = None
    try:
        given = load_settings(config, overrides)
    except UserError as failure:
        given, problem = Settings(), str(failure)

    def staged(backbone: str, weights_dir: str | None) -> Path | None:
        return find_weights(backbone, weights_dir, environ)

    fitting = given
    if machine.process.world_size == 1:
        fitting = replace(given, {"distribute.strategy": "auto"})
    try:
        without_cells, _ = resolve(replace(fitting, _NO_CELLS), machine, environ, folder, staged)
    except UserError as failure:
        problem, fitting = problem or str(failure), replace(given, {"distribute.strategy": "auto"})
        without_cells, _ = resolve(replace(fitting, _NO_CELLS), machine, environ, folder, staged)
    settings, data_problem = without_cells, None
    try:
        settings, _ = resolve(fitting, machine, environ, folder, staged)
    except (UserError, OSError) as failure:
        data_problem = in_words(failure) if isinstance(failure, OSError) else str(failure)
    source = f"{config}" if config else "the defaults"
    return Asked(
        told=f"{source}{f', {len(overrides)} changed by --set' if overrides else ''}",
        settings=settings,
        weights=given.model.weights,
        strategy=given.distribute.strategy,
        source_given=given.data.source != "auto" or settings.data.source != "synthetic",
        run=str(run_folder(run_dir, given, settings, debug=False).path.absolute()),
        problem=problem,
        data_problem=data_problem,
    )


def judge_asked(asked: Asked) -> list[Finding]:
    """Whether the settings can be used."""
    if asked.problem is not None:
        return [explained("settings", asked.problem, "`bloodcell-dist settings` lists all keys")]
    return [ok("settings", f"{asked.told}: {asked.settings.model.backbone}, {asked.settings.train.epochs} epochs")]
