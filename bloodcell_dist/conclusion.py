"""The last act of a run: measure the best and the last model, export, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from bloodcell_dist.arithmetic import Arithmetic
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.data.cleaning import REASONS, TITLES
from bloodcell_dist.evaluation.finish import Measured, draw_plots, measure, predict_last_and_best
from bloodcell_dist.evaluation.report import Removed, ReportInputs, write_report
from bloodcell_dist.evaluation.result import build_result, summary
from bloodcell_dist.history import read_metrics
from bloodcell_dist.serving.export import export_model
from bloodcell_dist.session import Session
from bloodcell_dist.settings import Data, Settings

log = logging.getLogger(__name__)


def conclude(session: Session) -> None:
    """Leave model.keras, the plots, report.html and, last, result.json, which says that the run is finished.

    A collective: all workers predict, the chief does the rest.
    """
    settings, run, data = session.settings, session.run, session.data
    log.info("measuring the best and the last model")
    last, best = predict_last_and_best(session.evaluation, data)
    if not session.replication.is_chief:
        return
    resamples, seed = settings.evaluate.bootstrap, settings.train.seed
    measured = measure(run, data, session.standing, last, best, resamples=resamples, seed=seed)
    export_model(session.model, run.model, data.train.class_names)
    session.age()
    result = _result(session, measured)
    counts = class_counts(session)
    pictures = draw_plots(run, data, measured, counts)
    write_report(run.report, _report_inputs(session, result, counts, pictures))
    atomic_write_json(run.result, result)
    log.info(summary(result))
    log.info("report: %s", run.report)


def _result(session: Session, measured: Measured) -> dict[str, Any]:
    """The content of result.json."""
    settings, standing = session.settings, session.standing
    return build_result(
        run_id=session.run.run_id,
        created=datetime.now(UTC),
        backbone=settings.model.backbone,
        class_names=session.data.train.class_names,
        seed=settings.train.seed,
        epochs=len(read_metrics(session.run.metrics)),
        select_by=settings.evaluate.select_by,
        best=measured.best,
        last=measured.last,
        images_per_s=standing.examples / max(standing.train_seconds, 1e-9),
        wall_s=standing.wall_seconds,
        replicas=session.replication.num_replicas,
        gpu_hours=standing.gpu_seconds / 3600,
        versions=session.environment["versions"],
    )


def _report_inputs(
    session: Session,
    result: Mapping[str, Any],
    counts: Mapping[str, list[int]],
    pictures: Mapping[str, Path],
) -> ReportInputs:
    """What report.html shows."""
    run, cleaning = session.run, session.data.cleaning
    removed = cleaning.counts() if cleaning else {}
    test_source, same_source = origin_of_test(session.settings.data)
    return ReportInputs(
        result=result,
        settings_yaml=run.config.read_text(encoding="utf-8"),
        environment=session.environment,
        commands=[f"bloodcell-dist train --config {run.config} --run-dir NEW_FOLDER"],
        class_counts=counts,
        removed=[Removed(TITLES[reason], count, REASONS[reason]) for reason, count in removed.items() if count],
        cleaned=cleaning is not None,
        near_groups=[len(group) for group in cleaning.near_groups()] if cleaning else [],
        dropped=session.data.dropped,
        pictures=pictures,
        test_source=test_source,
        test_is_same_source=same_source,
        notes=notes(session.settings, session.arithmetic),
        beginnings=beginnings(session.settings, session.arithmetic),
    )


def class_counts(session: Session) -> dict[str, list[int]]:
    """Examples of each class [C] at each stage, from the source to the epoch."""
    data, plan = session.data, session.arithmetic.plan
    counts = {"as found": data.loaded.class_counts()}
    if data.cleaning is not None:
        kept = data.loaded.labels[data.cleaning.kept_indices]
        counts["after cleaning"] = np.bincount(kept, minlength=len(data.loaded.class_names))
    counts |= {"training": data.train.class_counts(), "validation": data.val.class_counts()}
    stage = "one epoch, balanced" if plan.balance == "oversample" else "one epoch"
    counts[stage] = np.bincount(data.train.labels[plan.epoch_order(0)], minlength=len(data.train.class_names))
    if data.test is not None:
        counts["test"] = data.test.class_counts()
    return {name: values.tolist() for name, values in counts.items()}


def notes(settings: Settings, arithmetic: Arithmetic) -> list[str]:
    """What a reader of the report must be warned of."""
    length, stages = arithmetic.length, arithmetic.stages
    lines = []
    if settings.data.source == "synthetic":
        lines.append("The cells are drawn by a program. The figures say nothing about real blood.")
    if settings.data.max_examples is not None:
        lines.append(f"Each set was cut to {settings.data.max_examples} examples.")
    if length.total_steps < length.steps_per_epoch * int(settings.train.epochs):
        lines.append(f"Training was cut short by train.max_steps={settings.train.max_steps}.")
    never = [stage.train for stage in stages.stages if stage.first_step >= length.total_steps]
    if never:
        lines.append(f"It ended before these stages of finetune.stages began: {', '.join(never)}.")
    return lines


def beginnings(settings: Settings, arithmetic: Arithmetic) -> dict[str, str]:
    """Where the network came from and what was trained when, by name."""
    weights = {"none": "drawn at random", "imagenet": "ImageNet"}.get(settings.model.weights, settings.model.weights)
    stages = arithmetic.stages
    return {"Initial weights": weights} | ({"Stages": str(stages)} if len(stages.stages) > 1 else {})


def origin_of_test(data: Data) -> tuple[str | None, bool | None]:
    """What the test set is, None without one; and whether it is the training cells' own source, None if not known."""
    if data.test_path is not None:
        return data.test_path, None
    own = {"synthetic": "drawn cells", "medmnist": "the source's own test part"}.get(data.source)
    return own, True if own else None
