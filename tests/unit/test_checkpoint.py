"""Checkpoints: whole or not at all, verified, the newest intact one is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.training.checkpoint import BackgroundSaves, Checkpoints

SAVING = """
import sys
from pathlib import Path
import numpy as np
from bloodcell_dist.training.checkpoint import Checkpoints

checkpoints = Checkpoints(Path(sys.argv[1]), keep=2)
for step in range(1, 1000):
    checkpoints.save(step, {"weights": np.full(2_000_000, step, np.float32)}, {"step": step})
    print(step, flush=True)
"""


def state(step: int) -> dict[str, np.ndarray]:
    return {"dense/kernel": np.full((2, 3), step, np.float32), "step": np.array(step, np.int64)}


def saved(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)
    for step in steps:
        checkpoints.save(step, state(step), {"best": step / 2, "note": None})
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest_step(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.newest()
    return None if found is None else found.step


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    found = saved(tmp_path, 7).newest()
    assert found is not None
    assert (found.step, found.progress) == (7, {"best": 3.5, "note": None})
    assert found.arrays.keys() == state(7).keys()
    for name, value in state(7).items():
        np.testing.assert_array_equal(found.arrays[name], value, strict=True)


def test_the_layout_of_a_checkpoint(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, 1).save(1234, state(1), {}) == tmp_path / "step-00001234"
    assert names(tmp_path) == ["step-00001234"]
    assert names(tmp_path / "step-00001234") == ["arrays.npz", "manifest.json", "progress.json"]
    manifest = json.loads((tmp_path / "step-00001234" / "manifest.json").read_text())
    assert manifest["step"] == 1234
    assert manifest["sha256"].keys() == {"arrays.npz", "progress.json"}


def test_without_any_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "step-1").mkdir()
    (tmp_path / ".tmp-0123").mkdir()
    assert Checkpoints(tmp_path, 1).newest() is None
    assert caplog.text == ""


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])])
def test_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    saved(tmp_path, 10, 20, 30, 40, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    assert newest_step(saved(tmp_path, 99_999_999, 100_000_000)) == 100_000_000


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    checkpoints.save(20, state(21), {})
    found = checkpoints.newest()
    assert found is not None and found.arrays["step"] == 21
    assert names(tmp_path) == ["step-00000010", "step-00000020"]


def flip_a_byte(folder: Path) -> None:
    path = folder / "arrays.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder: Path) -> None:
    with open(folder / "arrays.npz", "r+b") as file:
        file.truncate(100)


def change_progress(folder: Path) -> None:
    (folder / "progress.json").write_text("{}")


def remove(name: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / name).unlink()

    harm.__name__ = f"remove_{name}"
    return harm


def write_manifest(text: str) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        (folder / "manifest.json").write_text(text)

    harm.__name__ = f"manifest_{text}"
    return harm


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (flip_a_byte, "arrays.npz does not have the SHA-256 of the manifest"),
        (truncate, "arrays.npz does not have the SHA-256 of the manifest"),
        (change_progress, "progress.json does not have the SHA-256 of the manifest"),
        (remove("arrays.npz"), "No such file or directory"),
        (remove("progress.json"), "No such file or directory"),
        (remove("manifest.json"), "No such file or directory"),
        (write_manifest(""), "JSONDecodeError"),
        (write_manifest("[]"), "TypeError"),
        (write_manifest("{}"), "KeyError"),
        (write_manifest('{"sha256": {}}'), "KeyError"),
        (write_manifest('{"sha256": 3}'), "TypeError"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_damaged_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, harm: Callable[[Path], None], reason: str
) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    harm(tmp_path / "step-00000020")
    found = checkpoints.newest()
    assert found is not None and found.step == 10
    np.testing.assert_array_equal(found.arrays["dense/kernel"], state(10)["dense/kernel"])
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{tmp_path / 'step-00000020'} is damaged and not used: " in warning.getMessage()
    assert reason in warning.getMessage()


def test_if_none_is_intact_the_log_says_what_follows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = saved(tmp_path, 10, 20)
    for folder in tmp_path.iterdir():
        flip_a_byte(folder)
    assert checkpoints.newest() is None
    assert caplog.text.count("is damaged and not used") == 2
    assert "is intact: the run starts from the beginning" in caplog.text


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_one_does_not_cost_the_new_one_its_place(tmp_path: Path, keep: int) -> None:
    """A run goes on from step 10, since 30 is damaged; what it saves at 20 must stay."""
    checkpoints = saved(tmp_path, 10, keep=keep)
    Checkpoints(tmp_path, 9).save(30, state(30), {})
    flip_a_byte(tmp_path / "step-00000030")
    assert newest_step(checkpoints) == 10
    checkpoints.save(20, state(20), {})
    assert newest_step(checkpoints) == 20
    assert names(tmp_path) == [f"step-{step:08d}" for step in ([20] if keep == 1 else [10, 20])]


def test_a_failed_save_leaves_the_older_one(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10, keep=1)
    with pytest.raises(TypeError, match="not JSON serializable"):
        checkpoints.save(20, state(20), {"odd": object()})
    assert names(tmp_path) == ["step-00000010"]


def test_a_kill_in_the_middle_leaves_an_intact_one(tmp_path: Path) -> None:
    """A child saves 8 MB states as fast as it can and is killed at moments spread over a save."""
    unfinished = 0
    for delay_ms in (0, 3, 6, 10, 15, 21, 28, 36):
        folder = tmp_path / str(delay_ms)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", SAVING, str(folder)], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert [child.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
            time.sleep(delay_ms / 1000)
            child.kill()
            told = [2, *map(int, child.stdout.read().split())]
        found = Checkpoints(folder, keep=2).newest()
        assert found is not None and found.step >= told[-1]
        assert (found.arrays["weights"] == found.step).all()
        assert found.progress == {"step": found.step}
        unfinished += any(name.startswith(".tmp-") for name in names(folder))
    assert unfinished, "no kill hit a save: the test shows nothing"


# ---- in the background


class Held(Checkpoints):
    """Writes when it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, keep=3)
        self.go = threading.Event()

    def save(self, step: int, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
        assert self.go.wait(30)
        return super().save(step, arrays, progress)


def test_saving_does_not_wait_and_settling_does(tmp_path: Path) -> None:
    checkpoints = Held(tmp_path)
    saves = BackgroundSaves(checkpoints)
    saves.save(1, state(1), {})
    assert names(tmp_path) == []
    checkpoints.go.set()
    saves.settle()
    assert names(tmp_path) == ["step-00000001"]
    saves.settle()  # nothing is left to wait for


def test_one_checkpoint_is_written_at_a_time_and_in_order(tmp_path: Path) -> None:
    saves = BackgroundSaves(Checkpoints(tmp_path, keep=2))
    for step in range(1, 6):
        saves.save(step, state(step), {"step": step})
    saves.settle()
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    assert newest_step(Checkpoints(tmp_path, 2)) == 5


@pytest.mark.parametrize("next_call", ["save", "settle"])
def test_what_stops_a_save_is_raised_at_the_next_call(tmp_path: Path, next_call: str) -> None:
    class Full(Checkpoints):
        def save(self, step: int, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
            raise OSError(28, "No space left on device")

    saves = BackgroundSaves(Full(tmp_path, keep=1))
    saves.save(1, state(1), {})
    with pytest.raises(OSError, match="No space left"):
        saves.settle() if next_call == "settle" else saves.save(2, state(2), {})
    saves.settle()  # it is told once


def test_the_hash_is_that_of_the_file(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, 1).save(3, {"a": np.arange(100_000), "b": np.zeros((0, 3))}, {})
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["a"], np.arange(100_000))
        assert file["b"].shape == (0, 3)


def test_writing_gives_way_to_the_training(tmp_path: Path) -> None:
    seen: list[int] = []

    class Asking(Checkpoints):
        def save(self, step: int, arrays: Mapping[str, Any], progress: Mapping[str, Any]) -> Path:
            seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
            return tmp_path

    before = os.getpriority(os.PRIO_PROCESS, 0)
    saves = BackgroundSaves(Asking(tmp_path, keep=1))
    saves.save(1, {}, {})
    saves.settle()
    assert seen == [10]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before  # of this thread, not of the process
