"""The figures as lines of a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bloodcell_dist.bench.figures import (
    AllreduceFigures,
    AugmentationFigures,
    Figures,
    InputFigures,
    ScalingFigures,
    Skipped,
    Speed,
    Spread,
    StepFigures,
)


def heading(rounds: int) -> str:
    """What the columns are."""
    return "one round" if rounds == 1 else f"median of {rounds} rounds (least to greatest)"


def lines_of(part: str, figures: Figures) -> list[str]:
    """The part's title and a line for each figure: median, least to greatest, unit."""
    if isinstance(figures, Skipped):
        return [f"{part}: {figures.skipped}"]
    title, *lines = _LINES[type(figures)](figures)
    return [f"{part}: {title}", *lines]


def _step(of: StepFigures) -> Iterator[str]:
    yield f"{of.global_batch_size} pictures per step"
    yield from _speed(f"policy {of.policy}", of.augmented, "ms per step")
    if of.plain is not None and of.augmentation_share is not None:
        yield from _speed("policy none", of.plain, "ms per step")
        yield _line("augmentation", _percent(of.augmentation_share), "% of the step")
    yield _line("first step", of.first_step_s, "s, with tracing and compiling")
    yield _line("peak memory", of.peak_memory_mb, f"MB of {of.peak_memory_of}")


def _augmentation(of: AugmentationFigures) -> Iterator[str]:
    yield f"{of.batch_size} pictures per batch, {of.draws} batches per round, on one device of each worker"
    for policy, speed in of.policies.items():
        yield from _speed(f"policy {policy}", speed, "ms per batch")


def _input(of: InputFigures) -> Iterator[str]:
    yield f"{of.global_batch_size} pictures per batch; host reads from: {of.host_reads_from}"
    for placement, feed in of.placements.items():
        yield from _speed(f"placement {placement}", feed.alone, "ms per batch")
        yield _line("  the step waits", _percent(feed.waiting_share), "% of its time")
    if of.left_out:
        yield f"  left out: {of.left_out}"


def _allreduce(of: AllreduceFigures) -> Iterator[str]:
    yield f"{of.parameters:,} gradients, {of.replicas} replicas"
    for name, found in of.formats.items():
        yield _line(f"{name}, {found.megabytes:.1f} MB", found.reduce_ms, "ms")
        yield _line("  algorithm bandwidth", found.algorithm_gb_per_s, "GB/s")
        yield _line("  bus bandwidth", found.bus_gb_per_s, "GB/s")


def _scaling(of: ScalingFigures) -> Iterator[str]:
    yield f"{of.replicas} replicas, {of.replica_batch_size} pictures of each per step"
    yield _line("one alone", of.alone_images_per_s, "images/s")
    if of.apart_images_per_s is not None:
        yield _line("all, each on its own", of.apart_images_per_s, "images/s")
    yield _line("all together", of.together_images_per_s, "images/s")
    yield _line("efficiency", _percent(of.efficiency), f"% of {of.replicas} x one alone")
    if of.of_apart is not None:
        yield _line("together", _percent(of.of_apart), "% of each on its own")
    yield f"  {of.how}"


_LINES: dict[type, Any] = {
    StepFigures: _step,
    AugmentationFigures: _augmentation,
    InputFigures: _input,
    AllreduceFigures: _allreduce,
    ScalingFigures: _scaling,
}


def _speed(name: str, speed: Speed, unit: str) -> Iterator[str]:
    yield _line(name, speed.images_per_s, "images/s")
    yield _line("", speed.batch_ms, unit)


def _percent(share: Spread) -> Spread:
    return Spread(100 * share.median, 100 * share.least, 100 * share.greatest)


def _line(name: str, value: Spread | float, unit: str) -> str:
    median, spread = (value.median, _range(value)) if isinstance(value, Spread) else (value, "")
    return f"  {name:<24}{number(median):>10}  {spread:<26} {unit}"


def _range(of: Spread) -> str:
    """Nothing where there is only one round."""
    return "" if of.least == of.greatest else f"({number(of.least)} to {number(of.greatest)})"


def number(value: float) -> str:
    """Three digits or more, no more decimals than that takes."""
    digits = next((decimals for limit, decimals in ((100, 0), (10, 1), (1, 2)) if abs(value) >= limit), 3)
    return f"{value:,.{digits}f}"
