"""The last act of a run: measure the best and the last model, export, report."""

from __future__ import annotations

import logging

import numpy as np

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.evaluation.finish import draw_plots, make_result, measure, summary, write_run_report
from bloodcell_dist.runtime import describe_environment
from bloodcell_dist.serving.export import export_model
from bloodcell_dist.session import Session
from bloodcell_dist.settings import Settings

log = logging.getLogger(__name__)


def conclude(session: Session) -> None:
    """Leave model.keras, the plots, report.html and, last, result.json, which says that the run is finished."""
    settings, run, data = session.settings, session.run, session.data
    log.info("measures the best and the last model")
    resamples, seed = settings.evaluate.bootstrap, settings.train.seed
    measured = measure(run, session.model, session.evaluation, data, session.standing, resamples=resamples, seed=seed)
    export_model(session.model, run.model)
    session.age()
    environment = describe_environment()
    result = make_result(
        run,
        data,
        measured,
        session.standing,
        backbone=settings.model.backbone,
        seed=seed,
        select_by=settings.evaluate.select_by,
        versions=environment["versions"],
    )
    counts = class_counts(session)
    write_run_report(
        run,
        data,
        result,
        class_counts=counts,
        pictures=draw_plots(run, data, measured, counts),
        environment=environment,
        test_source=_test_source(settings),
        test_is_same_source=True if settings.data.source in ("synthetic", "medmnist") else None,
        notes=notes(session),
    )
    atomic_write_json(run.result, result)
    log.info(summary(result))
    log.info("report: %s", run.report)


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


def notes(session: Session) -> list[str]:
    """What a reader of the report must know besides the figures."""
    settings, length = session.settings, session.arithmetic.length
    lines = []
    if settings.data.source == "synthetic":
        lines.append("The cells are drawn by a program. The figures say nothing about real blood.")
    if settings.data.max_examples is not None:
        lines.append(f"Each set was cut to {settings.data.max_examples} examples.")
    if length.total_steps < length.steps_per_epoch * int(settings.train.epochs):
        lines.append(f"Training was cut short by train.max_steps={settings.train.max_steps}.")
    return lines


def _test_source(settings: Settings) -> str | None:
    if settings.data.test_path is not None:
        return settings.data.test_path
    return {"synthetic": "drawn cells", "medmnist": "the source's own test part"}.get(settings.data.source)
