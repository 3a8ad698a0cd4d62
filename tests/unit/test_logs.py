"""The log on standard output and in log.txt."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tqdm

from bloodcell_dist import logs

log = logging.getLogger("bloodcell_dist.some.module")
TIMED = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


@pytest.fixture(autouse=True)
def nothing_stays_attached() -> Iterator[None]:
    package = logging.getLogger(logs.PACKAGE)
    before, level = list(package.handlers), package.level
    yield
    assert package.handlers == before
    package.setLevel(level)


def file_lines(path: Path) -> list[str]:
    """Lines of a log file without their times."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(TIMED.match(line) for line in lines)
    return [TIMED.sub("", line) for line in lines]


def test_plain_lines_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.console():
        log.info("%d cells", 3)
        log.warning("100% odd")
        log.debug("not shown")
        logging.getLogger("elsewhere").warning("not ours")
    log.warning("too late")
    out, _ = capsys.readouterr()
    assert out == "3 cells\nwarning: 100% odd\n"


def test_the_file_has_what_was_said_before_it_was_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    with logs.console():
        log.info("chosen: %s", "b")
        with logs.log_file(path):
            log.warning("größer")
        log.info("after")
    assert file_lines(path) == ["INFO chosen: b", "WARNING größer"]
    assert capsys.readouterr().out == "chosen: b\nwarning: größer\nafter\n"


def test_a_second_life_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    for life in (1, 2):
        with logs.console():
            log.info("early %d", life)
            with logs.log_file(path):
                log.info("late %d", life)
    assert file_lines(path) == ["INFO early 1", "INFO late 1", "INFO early 2", "INFO late 2"]


def test_what_one_command_said_is_not_in_the_next_one_s_file(tmp_path: Path) -> None:
    with logs.console():
        log.info("refused")
    with logs.console(), logs.log_file(tmp_path / "log.txt"):
        log.info("accepted")
    assert file_lines(tmp_path / "log.txt") == ["INFO accepted"]


def test_nor_if_that_command_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), logs.console():
        log.info("refused")
        raise ZeroDivisionError
    with logs.console(), logs.log_file(tmp_path / "log.txt"):
        log.info("accepted")
    assert file_lines(tmp_path / "log.txt") == ["INFO accepted"]


def test_lines_for_the_file_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs.console(), logs.log_file(tmp_path / "log.txt"):
        log.error("the reason", extra=logs.FILE_ONLY)
    assert file_lines(tmp_path / "log.txt") == ["ERROR the reason"]
    assert capsys.readouterr().out == ""


def test_lines_do_not_break_a_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.console(), tqdm.tqdm(total=2, disable=False, leave=False) as bar:
        bar.update()
        log.info("in between")
    out, err = capsys.readouterr()
    assert out == "in between\n"
    assert "in between" not in err


def test_a_silent_rank_says_nothing_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logs.console(), logs.log_file(tmp_path / "log.txt"):
        log.info("before")
        with logs.silence():
            log.info("inside")
            log.critical("inside")
        log.info("after")
    assert capsys.readouterr() == ("before\nafter\n", "")
    assert file_lines(tmp_path / "log.txt") == ["INFO before", "INFO after"]


def test_silence_ends_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with logs.console():
        with pytest.raises(ZeroDivisionError), logs.silence():
            raise ZeroDivisionError
        log.info("after")
    assert capsys.readouterr().out == "after\n"


def test_a_last_line_is_appended_to_a_file_that_is_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log.txt"
    with logs.console(), logs.log_file(path), logs.silence():
        logs.append_error(path, "100% lost: größer")
    logs.append_error(path, "again")
    assert file_lines(path) == ["ERROR 100% lost: größer", "ERROR again"]
    assert capsys.readouterr() == ("", "")


def test_a_file_that_cannot_be_written_to_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        logs.append_error(tmp_path / "gone" / "log.txt", "lost")
