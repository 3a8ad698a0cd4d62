"""The lines of a log file and the bar of a terminal."""

from __future__ import annotations

import logging
import os
import pty
import sys
import termios

import pytest

from bloodcell_dist.training.progress import LINE_EVERY_S, EpochProgress


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def unasked() -> str:
    raise AssertionError("described a step that is not shown")


@pytest.fixture(autouse=True)
def listen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_a_line_comes_when_it_is_time(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = EpochProgress(2, 5, done=0, steps=100, examples_per_step=64, clock=clock)
    for _ in range(9):
        clock.now += LINE_EVERY_S / 10
        progress.advance(1, unasked)
    assert lines(caplog) == []
    clock.now += LINE_EVERY_S / 10
    progress.advance(1, lambda: "loss 0.5000")
    progress.advance(1, unasked)
    # ten steps in 15 s, then 90 are left at that pace
    assert lines(caplog) == ["epoch 2/5 step 10/100, loss 0.5000, 43 images/s, 2:15 left"]


def test_time_left_counts_only_the_steps_made_now(caplog: pytest.LogCaptureFixture) -> None:
    """After a restart the steps made before cost nothing."""
    clock = Clock()
    progress = EpochProgress(1, 1, done=90, steps=100, examples_per_step=64, clock=clock)
    clock.now += 20
    progress.advance(1, lambda: "loss 1.0000")
    assert lines(caplog) == ["epoch 1/1 step 91/100, loss 1.0000, 3 images/s, 3:00 left"]


def test_compiling_is_left_out_of_the_pace(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = EpochProgress(1, 1, done=0, steps=102, examples_per_step=64, clock=clock)
    clock.now += 500
    progress.leave_out(2)
    progress.advance(2, unasked)
    for _ in range(9):
        clock.now += 1
        progress.advance(1, unasked)
    clock.now += 11
    progress.advance(1, lambda: "loss 1.0000")
    assert lines(caplog) == ["epoch 1/1 step 12/102, loss 1.0000, 32 images/s, 3:00 left"]


def test_only_the_chief_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    progress = EpochProgress(1, 1, done=0, steps=100, examples_per_step=64, shown=False, clock=clock)
    clock.now += 500
    progress.advance(1, unasked)
    assert lines(caplog) == []


@pytest.mark.parametrize(("steps", "left"), [(2, "0:20"), (4, "1:00"), (400, "133:00")])
def test_minutes_and_seconds(caplog: pytest.LogCaptureFixture, steps: int, left: str) -> None:
    clock = Clock()
    progress = EpochProgress(1, 1, done=0, steps=steps, examples_per_step=64, clock=clock)
    clock.now += 20
    progress.advance(1, str)
    assert lines(caplog)[0].endswith(f"{left} left")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with EpochProgress(3, 5, done=1, steps=4, examples_per_step=64) as progress:
            for _ in range(3):
                progress.advance(1, lambda: "loss 0.2500")
        monkeypatch.undo()
        os.set_blocking(ours, False)
        text = os.read(ours, 65536).decode()
    os.close(ours)
    assert "epoch 3/5:  25%" in text and "1/4" in text
    assert lines(caplog) == []
