"""How a process begins and ends among others, with a lifeline that only notes what is asked of it."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from bloodcell_dist import launch
from bloodcell_dist.cluster.environment import ALONE
from bloodcell_dist.cluster.lifeline import Ending
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.errors import Preempted, TrainingFailed, UserError
from bloodcell_dist.training.replication import Joined


class Lifeline:
    """Of a rank among two."""

    world_size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.calls: list[Any] = []
        self.on_end: Any = None

    def exchange(self, data: bytes) -> list[bytes]:
        return [data, data]

    def leave(self) -> None:
        self.calls.append("leave")

    def fail(self, ending: Ending) -> None:
        self.calls.append(ending)


def joined_with(lifeline: Lifeline | None, problem: UserError | None = None) -> Joined:
    return Joined(Workers(ALONE, lifeline), problem=problem)  # type: ignore[arg-type]


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device", "/runs/a")


# ---- all end for one reason


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("100% wrong"), Ending(2, "100% wrong")),
        (TrainingFailed("diverged"), Ending(3, "diverged")),
        (KeyboardInterrupt(), Ending(130, "KeyboardInterrupt")),
        (full_disk(), Ending(3, "[Errno 28] No space left on device: '/runs/a'")),
    ],
)
def test_a_clear_error_is_told_to_the_others_and_raised(
    rank: int, error: BaseException, expected: Ending, monkeypatch: pytest.MonkeyPatch
) -> None:
    lifeline = Lifeline(rank)
    joined = joined_with(lifeline)
    with (
        pytest.raises(type(error) if rank == 0 else SystemExit) as caught,
        launched(monkeypatch, joined),
        launch.ending_together(joined),
    ):
        raise error
    assert error in (caught.value, caught.value.__cause__)
    assert lifeline.calls == [expected]


def test_the_chief_writes_its_ending_down_before_the_others_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launchers end the chief when another rank has left with an error."""
    lifeline = Lifeline(0)
    joined = joined_with(lifeline)
    with pytest.raises(UserError), launched(monkeypatch, joined):
        try:
            with launch.ending_together(joined):
                raise UserError("wrong")
        finally:
            lifeline.calls.append("written")
    assert lifeline.calls == ["written", Ending(2, "wrong")]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by 0"), PermissionError(errno.EACCES, "no"), RuntimeError(), SystemExit(5)]
)
def test_an_error_that_nobody_expects_may_be_an_echo_and_is_told_with_its_traceback(error: BaseException) -> None:
    lifeline = Lifeline(0)
    with pytest.raises(type(error)), launch.ending_together(joined_with(lifeline)):
        raise error
    (ending,) = lifeline.calls
    assert (ending.exit_status, ending.clear) == (1, False)
    first, *_, last = ending.message.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith(type(error).__name__) and str(error) in last
    assert "raise error" in ending.message


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_stop_on_request_leave_together(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lifeline = Lifeline(rank)
    joined = joined_with(lifeline)
    with (
        pytest.raises(Preempted if rank == 0 else SystemExit),
        launched(monkeypatch, joined),
        launch.ending_together(joined),
    ):
        raise Preempted("saved")
    assert lifeline.calls == ["leave"]


def test_what_ends_well_tells_nobody() -> None:
    lifeline = Lifeline(0)
    with launch.ending_together(joined_with(lifeline)):
        pass
    assert lifeline.calls == []


@pytest.mark.parametrize("error", [UserError("wrong"), ZeroDivisionError(), Preempted("saved")])
def test_alone_an_error_is_just_raised(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, launch.ending_together(joined_with(None)):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("among_others", [True, False])
def test_a_problem_with_the_devices_ends_all_before_anything_is_done(among_others: bool) -> None:
    lifeline = Lifeline(1)
    joined = joined_with(lifeline if among_others else None, UserError("3 processes, 2 GPUs"))
    with pytest.raises(UserError, match="3 processes, 2 GPUs"), launch.ending_together(joined):
        pytest.fail("got in")
    assert lifeline.calls == ([Ending(2, "3 processes, 2 GPUs")] if among_others else [])


# ---- joined while inside


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The chief ignores SIGTERM on its way out."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def launched(monkeypatch: pytest.MonkeyPatch, joined: Joined) -> Any:
    monkeypatch.setattr(launch, "join", lambda process, environ, asked: joined)
    with launch.launched(ALONE) as found:
        assert found is joined
        yield


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_leave_together(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lifeline = Lifeline(rank)
    with launched(monkeypatch, joined_with(lifeline)):
        assert lifeline.calls == []
    assert lifeline.calls == ["leave"]


def test_the_last_words_go_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lifeline = Lifeline(0)
    with launched(monkeypatch, joined_with(lifeline)):
        lifeline.on_end(Ending(3, "rank 1 was lost"))
    assert capsys.readouterr() == ("", "bloodcell-dist: rank 1 was lost\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("wrong"), 2),
        (TrainingFailed("diverged"), 3),
        (Preempted("saved"), 75),
        (KeyboardInterrupt(), 130),
        (full_disk(), 3),
        (ZeroDivisionError(), 1),
    ],
)
def test_only_the_chief_raises_the_error(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chief, other = Lifeline(0), Lifeline(1)
    with pytest.raises(type(error)) as raised, launched(monkeypatch, joined_with(chief)):
        raise error
    assert raised.value is error
    with pytest.raises(SystemExit) as ended, launched(monkeypatch, joined_with(other)):
        raise error
    assert (ended.value.code, ended.value.__cause__) == (status, error)
    assert other.calls == (["leave"] if status == 75 else [])  # `ending_together` has told the rest


def test_alone_there_is_nobody_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    with launched(monkeypatch, joined_with(None)):
        pass
    with pytest.raises(UserError, match="wrong"), launched(monkeypatch, joined_with(None)):
        raise UserError("wrong")


def test_who_this_process_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE"):
        monkeypatch.setenv(f"HOROVOD_{name}", "3" if name.endswith("SIZE") else "2")
    process = launch.this_process()
    assert (process.launcher, process.rank, process.world_size) == ("horovod", 2, 3)
    monkeypatch.delenv("HOROVOD_SIZE")
    with pytest.raises(UserError, match="HOROVOD_SIZE is not set, though others of its launcher are"):
        launch.this_process()


# ---- what a run tells of the others


def test_a_run_is_told_what_ends_it_after_the_terminal() -> None:
    told: list[Any] = []
    lifeline = Lifeline(0)
    lifeline.on_end = lambda ending: told.append(("terminal", ending.message))
    joined_with(lifeline).go_by(7.0, lambda ending: told.append(("run", ending.exit_status)))
    lifeline.on_end(Ending(3, "rank 1 was lost"))
    assert told == [("terminal", "rank 1 was lost"), ("run", 3)]
    assert lifeline.timeout_s == 7.0  # type: ignore[attr-defined]


def test_alone_there_is_nothing_to_go_by() -> None:
    joined_with(None).go_by(7.0, lambda ending: pytest.fail("told"))
