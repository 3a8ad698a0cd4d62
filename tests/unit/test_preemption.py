"""Signals, sent for real: to this process and to a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bloodcell_dist.training.preemption import StopRequest

WAITING = """
import time
from bloodcell_dist.training.preemption import StopRequest

stop = StopRequest()
with stop.listening("USR1", "TERM", "INT"):
    print("listening", flush=True)
    while not stop.is_set:
        time.sleep(0.005)
    print(stop.signal_name, flush=True)
    time.sleep(0.2 if stop.signal_name != "SIGINT" else 60)
"""


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (("USR1",), signal.SIGUSR1),
        (("USR2", "TERM"), signal.SIGUSR2),
        (("USR1", "TERM"), signal.SIGTERM),
        (("TERM", "TERM"), signal.SIGTERM),
    ],
)
def test_a_signal_is_noted(names: tuple[str, ...], number: signal.Signals) -> None:
    stop = StopRequest()
    with stop.listening(*names):
        assert not stop.is_set and stop.signal_name is None
        os.kill(os.getpid(), number)
        assert stop.is_set
    assert stop.signal_name == number.name


def test_a_second_interrupt_ends_at_once() -> None:
    stop = StopRequest()
    with stop.listening("USR1", "TERM", "INT"), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_after_another_signal_is_polite_too() -> None:
    stop = StopRequest()
    with stop.listening("USR1", "TERM", "INT"):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set


def test_the_handlers_of_before_come_back() -> None:
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ZeroDivisionError), StopRequest().listening("USR1", "TERM", "INT"):
        assert [signal.getsignal(number) for number in numbers] != before
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in numbers] == before


ENDING = """
import os, signal
from bloodcell_dist.errors import Preempted
from bloodcell_dist.training.preemption import StopRequest

interrupt = signal.getsignal(signal.SIGINT)
try:
    with StopRequest().listening("USR1", "TERM", "INT"):
        raise Preempted("stopped")
except Preempted:
    assert signal.getsignal(signal.SIGINT) is interrupt
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        os.kill(os.getpid(), number)
    print("last words")
"""


def test_a_signal_that_comes_again_does_not_cut_the_last_words_short() -> None:
    """Slurm sends TERM to a preempted job more than once; a rank that died of the second looked lost to the others."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "last words\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_child_process_lives_on_to_save(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "listening\n"
        child.send_signal(number)
        assert child.stdout.readline() == f"{number.name}\n"
        assert child.wait(30) == 0


def test_a_child_process_can_be_interrupted_twice() -> None:
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline() == "listening\n"
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "SIGINT\n"
        child.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in child.stderr.read()
        assert child.wait(30) == -signal.SIGINT
