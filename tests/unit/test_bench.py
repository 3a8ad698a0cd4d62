"""What `bench` makes of seconds: figures, the table; how its turns are cut."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from bloodcell_dist.bench import timing
from bloodcell_dist.bench.figures import (
    AllreduceFigures,
    AugmentationFigures,
    Feed,
    Figures,
    InputFigures,
    Skipped,
    Speed,
    Spread,
    StepFigures,
    Sum,
    ratio,
    scaling_figures,
)
from bloodcell_dist.bench.table import heading, lines_of, number
from bloodcell_dist.bench.timing import agreed_calls, calls_per_turn, interleaved, slowest, timed
from bloodcell_dist.cluster.workers import Workers


def test_a_spread_is_median_least_and_greatest() -> None:
    assert Spread.of([3.0, 1.0, 7.0]) == Spread(3.0, 1.0, 7.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_speed_is_pictures_by_seconds_round_by_round() -> None:
    assert Speed.of([0.5, 0.25, 1.0], 64) == Speed(Spread(128, 64, 256), Spread(500, 250, 1000))


def test_ratios_are_taken_within_rounds() -> None:
    """A busy neighbour that halves one round changes no ratio."""
    assert ratio([1.0, 2.0, 1.0], [2.0, 4.0, 2.0]) == Spread(0.5, 0.5, 0.5)


@pytest.mark.parametrize(("replicas", "links"), [(2, 1.0), (4, 1.5), (8, 1.75)])
def test_bandwidths_of_a_sum(replicas: int, links: float) -> None:
    found = Sum.of([0.5, 0.25], 10**9, replicas)
    assert (found.megabytes, found.reduce_ms) == (1000, Spread(375, 250, 500))
    assert found.algorithm_gb_per_s == Spread(3, 2, 4)
    assert found.bus_gb_per_s == Spread(3 * links, 2 * links, 4 * links)


def test_scaling() -> None:
    seconds = {"alone": [0.8, 1.6], "apart": [0.9, 1.8], "together": [1.0, 2.0]}
    found = scaling_figures(seconds, 16, 4, "as told")
    assert found.alone_images_per_s == Spread(15, 10, 20)
    assert found.apart_images_per_s is not None and found.apart_images_per_s.greatest == pytest.approx(4 * 16 / 0.9)
    assert found.together_images_per_s == Spread(48, 32, 64)
    assert found.efficiency == Spread(0.8, 0.8, 0.8)  # 64 / (4 x 20)
    assert found.of_apart == Spread(0.9, 0.9, 0.9)
    without = scaling_figures({"alone": [1.0], "together": [1.0]}, 16, 4, "as told")
    assert (without.apart_images_per_s, without.of_apart) == (None, None)


def test_turns_are_interleaved() -> None:
    called: list[str] = []

    def turn(name: str) -> int:
        called.append(name)
        return len(called)

    assert interleaved({"a": lambda: turn("a"), "b": lambda: turn("b")}, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert called == list("ababab")


@pytest.mark.parametrize(
    ("seconds", "least", "calls"), [(0.25, 1, 4), (0.3, 1, 4), (7.0, 1, 1), (7.0, 3, 3), (0.0, 1, 1000)]
)
def test_how_many_calls_make_a_turn(seconds: float, least: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN_S", 1.0)
    assert calls_per_turn(seconds, least) == calls


class _Two(Workers):
    """This worker, and one that says twice as much."""

    def each(self, value: float) -> list[float]:
        return [value, 2 * value]


def test_the_slowest_worker_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "TURN_S", 1.0)
    assert slowest(_Two(), 0.25) == 0.5
    assert agreed_calls(_Two(), 0.25) == 2
    readings = iter([10.0, 13.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(readings))
    assert timed(_Two(), lambda: None) == 6


SPEED = Speed(Spread(438.2, 431, 441), Spread(146, 145, 148.5))


@pytest.mark.parametrize(
    ("part", "figures", "lines"),
    [
        (
            "step",
            StepFigures("light", 64, SPEED, SPEED, Spread(0.12, 0.1, 0.14), 14.2, 1204.0, "the process"),
            [
                "step: 64 pictures per step",
                "  policy light                   438  (431 to 441)               images/s",
                "                                 146  (145 to 148)               ms per step",
                "  policy none                    438  (431 to 441)               images/s",
                "                                 146  (145 to 148)               ms per step",
                "  augmentation                  12.0  (10.0 to 14.0)             % of the step",
                "  first step                    14.2                             s, with tracing and compiling",
                "  peak memory                  1,204                             MB of the process",
            ],
        ),
        (
            "augmentation",
            AugmentationFigures(32, 40, {"none": SPEED}),
            [
                "augmentation: 32 pictures per batch, 40 batches per round, on one device of each worker",
                "  policy none                    438  (431 to 441)               images/s",
                "                                 146  (145 to 148)               ms per batch",
            ],
        ),
        (
            "input",
            InputFigures(64, {"host": Feed(SPEED, Spread(0.02, 0.02, 0.02))}, "memory map", "device: too large"),
            [
                "input: 64 pictures per batch; host reads from: memory map",
                "  placement host                 438  (431 to 441)               images/s",
                "                                 146  (145 to 148)               ms per batch",
                "    the step waits              2.00                             % of its time",
                "  left out: device: too large",
            ],
        ),
        (
            "allreduce",
            AllreduceFigures(4, 1_000_000, {"float32": Sum.of([0.004], 4_000_000, 4)}),
            [
                "allreduce: 1,000,000 gradients, 4 replicas",
                "  float32, 4.0 MB               4.00                             ms",
                "    algorithm bandwidth         1.00                             GB/s",
                "    bus bandwidth               1.50                             GB/s",
            ],
        ),
        (
            "scaling",
            scaling_figures({"alone": [0.8], "apart": [0.9], "together": [1.0]}, 16, 4, "as told"),
            [
                "scaling: 4 replicas, 16 pictures of each per step",
                "  one alone                     20.0                             images/s",
                "  all, each on its own          71.1                             images/s",
                "  all together                  64.0                             images/s",
                "  efficiency                    80.0                             % of 4 x one alone",
                "  together                      90.0                             % of each on its own",
                "  as told",
            ],
        ),
        ("scaling", Skipped("one replica"), ["scaling: one replica"]),
    ],
)
def test_the_table(part: str, figures: Figures, lines: list[str]) -> None:
    assert lines_of(part, figures) == lines


def test_a_step_without_augmentation_has_nothing_to_compare() -> None:
    lines = lines_of("step", StepFigures("none", 64, SPEED, None, None, 1.0, 1.0, "a GPU"))
    assert not any("augmentation" in line for line in lines) and len(lines) == 5


def test_the_heading_tells_the_rounds() -> None:
    assert (heading(1), heading(5)) == ("one round", "median of 5 rounds (least to greatest)")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.0464, "0.046"), (1.5, "1.50"), (-9.29, "-9.29"), (27.94, "27.9"), (115359.4, "115,359")],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_figures_are_plain_values() -> None:
    """As the JSON file has them."""
    assert asdict(Sum.of([0.5], 10**6, 2)) == {
        "megabytes": 1.0,
        "reduce_ms": {"median": 500.0, "least": 500.0, "greatest": 500.0},
        "algorithm_gb_per_s": {"median": 0.002, "least": 0.002, "greatest": 0.002},
        "bus_gb_per_s": {"median": 0.002, "least": 0.002, "greatest": 0.002},
    }
    assert asdict(Skipped("one replica")) == {"skipped": "one replica"}
