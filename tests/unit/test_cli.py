"""The command line: what is answered without TensorFlow, and how mistakes end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bloodcell_dist
from bloodcell_dist import cli

ROOT = Path(bloodcell_dist.__file__).resolve().parents[1]


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bloodcell_dist.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, check=False, cwd=cwd
    )


def stopped(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(status, out, err) of a command that argparse answers itself."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("train", "evaluate", "predict", "settings", "data")),
        (("train",), ("--config", "--set KEY=VALUE", "--run-dir", "--debug", "--eager", "--traceback")),
        (("evaluate",), ("RUN", "--data PATH", "--out DIR", "--traceback")),
        (("predict",), ("RUN", "INPUT", "--out CSV", "--traceback")),
        (("data",), ("report", "preview")),
        (("data", "report"), ("--out DIR", "--set KEY=VALUE", "--traceback")),
        (("data", "preview"), ("--out PNG", "--set KEY=VALUE", "--traceback")),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    status, out, err = stopped(capsys, *arguments, "--help")
    assert (status, err) == (0, "")
    assert all(word in out for word in words)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert stopped(capsys, "--version") == (0, f"bloodcell-dist {bloodcell_dist.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required: COMMAND"),
        (("tarin",), "invalid choice: 'tarin'"),
        (("data",), "required: COMMAND"),
        (("predict", "run"), "required: INPUT, --out"),
        (("evaluate", "run"), "required: --data"),
        (("train", "--epochs", "3"), "unrecognized arguments: --epochs 3"),
        (("train", "--set", "a=1", "b=2"), "unrecognized arguments: b=2"),
    ],
)
def test_a_wrong_command_line_is_bad_input(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    status, out, err = stopped(capsys, *arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_a_mistake_is_one_message_and_exit_status_2(tmp_path: Path) -> None:
    ended = run("data", "report", "--out", "report", "--set", "data.path=nowhere.npz", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"bloodcell-dist: {tmp_path / 'nowhere.npz'}: no such file or folder\n"
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    """The exit status stays what it is."""
    ended = run("data", "report", "--out", "report", "--set", "train.epoch=3", "--traceback", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("Traceback (most recent call last):\n")
    assert ended.stderr.endswith(
        "\nbloodcell-dist: --set train.epoch=3: unknown key train.epoch; did you mean train.epochs?\n"
    )


def test_data_report(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (44, 16, 16, 3), np.uint8)
    images[40:] = images[0]
    np.savez(tmp_path / "training_set.npz", images=images, labels=np.arange(44) % 4)
    options = ("data.class_names=[ax, b, c, d]", "data.image_size=16", "data.cache_dir=cache")
    settings = [part for option in options for part in ("--set", option)]
    ended = run("data", "report", "--out", "out/report", *settings, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "ax" in ended.stdout and "cleaning keeps 39 of 44 pictures" in ended.stdout
    assert sorted(path.name for path in (tmp_path / "out" / "report").iterdir()) == ["cleaning.json", "cleaning.png"]


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "bloodcell_dist.cli", "nonsense"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "invalid choice: 'nonsense'" in ended.stderr


def test_a_reader_that_has_had_enough_gets_no_traceback() -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from bloodcell_dist.cli import main; sys.exit(main())"
    pipe = f"'{sys.executable}' -c \"$0\" settings | true"
    done = subprocess.run(["bash", "-c", pipe, program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr == ""
