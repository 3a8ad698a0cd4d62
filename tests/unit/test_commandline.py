"""Options that commands share, and endings as messages and exit statuses."""

from __future__ import annotations

import argparse
import errno
import os

import pytest

from bloodcell_dist.commandline import add_train_options, overrides_of, run_command
from bloodcell_dist.config import load_settings
from bloodcell_dist.errors import Preempted, RunEnded, TrainingFailed, UserError
from bloodcell_dist.settings import Settings


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_options(parser)
    return parser.parse_args(arguments)


def settings_of(*arguments: str) -> Settings:
    options = parse(*arguments)
    return load_settings(options.config, overrides_of(options))


def test_without_options_nothing_is_changed() -> None:
    assert settings_of() == Settings()


def test_debug_is_small_exact_and_checked() -> None:
    settings = settings_of("--debug")
    assert (settings.data.max_examples, settings.train.epochs) == (256, 2)
    assert (settings.train.xla, settings.train.precision, settings.train.checks) == ("off", "float32", True)
    assert not settings.train.eager
    assert settings_of("--debug", "--eager").train.eager


def test_what_the_user_sets_wins_over_debug() -> None:
    settings = settings_of("--set", "train.epochs=1", "--debug", "--set", "train.xla=on")
    assert (settings.train.epochs, settings.train.xla, settings.train.checks) == (1, "on", True)


def ended_by(ending: BaseException, show_traceback: bool = False) -> int:
    def command() -> None:
        raise ending

    return run_command(command, show_traceback)


@pytest.mark.parametrize(("ending", "status"), [(RunEnded, 1), (UserError, 2), (TrainingFailed, 3), (Preempted, 75)])
@pytest.mark.parametrize("show_traceback", [False, True])
def test_an_ending_is_a_message_and_a_status(
    ending: type[RunEnded], status: int, show_traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--traceback` adds to the message and leaves the status, which batch scripts act on."""
    assert ended_by(ending("so it goes"), show_traceback) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("bloodcell-dist: so it goes\n")
    assert ("Traceback" in err) == show_traceback


def test_success_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda: None, False) == 0
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_is_what_shells_expect() -> None:
    assert ended_by(KeyboardInterrupt()) == 130


def test_mistakes_in_the_program_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        ended_by(ZeroDivisionError())


def test_a_full_disk_is_a_failed_training_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "arrays.npz")

    assert run_command(write, False) == 3
    message = capsys.readouterr().err
    assert "No space left on device: 'arrays.npz'; free some space and run the same command again" in message


def test_other_errors_of_the_system_are_not_hidden() -> None:
    def read() -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "somewhere")

    with pytest.raises(PermissionError):
        run_command(read, False)
