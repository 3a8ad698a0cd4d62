"""The learning rate of each update."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloodcell_dist.training.schedule import Schedule


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.2), (1, 0.4), (3, 0.8), (4, 1.0), (5, 1.0 / 2 + math.cos(math.pi / 8) / 2), (8, 0.5), (12, 0.0), (99, 0.0)],
)
def test_cosine(step: int, expected: float) -> None:
    assert Schedule(peak=1.0, total_steps=12, warmup_steps=4)(step) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("step", "expected"), [(0, 1.0), (1, 2.0), (2, 3.0), (3, 3.0), (1000, 3.0)])
def test_constant(step: int, expected: float) -> None:
    assert Schedule(peak=3.0, total_steps=10, warmup_steps=2, shape="constant")(step) == pytest.approx(expected)


def test_without_warm_up_the_first_rate_is_the_peak() -> None:
    assert Schedule(peak=0.1, total_steps=5, warmup_steps=0)(0) == 0.1


def test_the_second_half_mirrors_the_first() -> None:
    schedule = Schedule(peak=2.0, total_steps=20, warmup_steps=0)
    assert [schedule(step) + schedule(20 - step) for step in range(21)] == pytest.approx([2.0] * 21)


@given(
    total=st.integers(1, 500),
    warmup=st.integers(0, 600),
    shape=st.sampled_from(["cosine", "constant"]),
)
def test_rises_then_falls_and_is_never_zero(total: int, warmup: int, shape: Literal["cosine", "constant"]) -> None:
    schedule = Schedule(peak=1e-3, total_steps=total, warmup_steps=warmup, shape=shape)
    rates = [schedule(step) for step in range(total)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    top = min(warmup, total - 1)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
