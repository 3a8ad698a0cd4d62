"""What `bloodcell-dist data report` and `bloodcell-dist data preview` do."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bloodcell_dist.atomic import atomic_file
from bloodcell_dist.config import load_settings
from bloodcell_dist.data.cleaning_report import write_cleaning_report
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.outputs import check_folder_of, writing
from bloodcell_dist.resolve import Machine
from bloodcell_dist.settings import Settings
from bloodcell_dist.start import load_data, settle

log = logging.getLogger(__name__)

PREVIEW_CELLS = 8


def report_data(config: str | None, overrides: Sequence[str], out: str) -> None:
    """`bloodcell-dist data report`: clean and split, show the counts, write cleaning.json and cleaning.png."""
    _, data = _load(config, overrides)
    sets = {"as found": data.loaded, "training": data.train, "validation": data.val, "test": data.test}
    width = max(map(len, data.train.class_names))
    log.info("%-*s %s", width, "", " ".join(f"{name:>10}" for name in sets))
    for label, class_name in enumerate(data.train.class_names):
        counts = [0 if cells is None else int(cells.class_counts()[label]) for cells in sets.values()]
        log.info("%-*s %s", width, class_name, " ".join(f"{count:>10}" for count in counts))
    for reason, count in data.dropped.items():
        log.info("left out: %d %s", count, reason)
    if data.cleaning is None:
        log.info("data.clean=false: nothing was cleaned")
        return
    log.info(data.cleaning.summary())
    folder = Path(out)
    with writing(out):
        folder.mkdir(parents=True, exist_ok=True)
        write_cleaning_report(data.cleaning, data.loaded, folder)
    log.info("details in %s", folder)


def preview_policy(config: str | None, overrides: Sequence[str], out: str) -> None:
    """`bloodcell-dist data preview`: training cells before and after the policy, with their mixed labels, as a PNG."""
    check_folder_of(out)
    settings, data = _load(config, overrides)
    from bloodcell_dist import runtime
    from bloodcell_dist.augment.preview import draw_preview

    runtime.look_at_machine()
    chosen = _one_of_each_class(data.train.labels)
    with writing(out), atomic_file(out) as path:
        draw_preview(
            data.train.images[chosen],
            data.train.labels[chosen],
            data.train.class_names,
            settings.augment.policy,
            settings.train.seed,
            path,
            engine=settings.augment.engine,
            magnitude=settings.augment.magnitude,
        )
    log.info("policy %s on %d training cells: %s", settings.augment.policy, len(chosen), out)


def _load(config: str | None, overrides: Sequence[str]) -> tuple[Settings, Prepared]:
    """Settings and cells as a run would have them on a machine without GPUs, which the cells do not depend on."""
    settings, _ = settle(load_settings(config, overrides), Machine(num_gpus=0))
    return settings, load_data(settings)


def _one_of_each_class(labels: np.ndarray) -> np.ndarray:
    """The first cells of each class in turn, int64 [PREVIEW_CELLS]."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return np.lexsort((labels, rank))[:PREVIEW_CELLS]
