import errno
import fcntl
import json
import logging
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.data.cache import cached
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.pairs_cache import find_pairs
from bloodcell_dist.data.similarity import near_duplicates
from bloodcell_dist.data.sources import load_dataset
from bloodcell_dist.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


class Builder:
    """Builds a small set with every column and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, allocate):
        self.calls += 1
        images = allocate(IMAGES.shape)
        images[:] = IMAGES
        return ArrayDataset(
            images,
            np.array([0, 1, 1, 0, 1]),
            ("a", "b"),
            groups=np.array([4, 4, 5, 6, 7]),
            names=("v", "w", "x", "y", "z/ü\udcff"),
            partition=np.array([0, 0, 1, 2, 0], np.int8),
        )


def the_files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_built_once_and_mapped_afterwards(tmp_path):
    build = Builder()
    first, second = (cached(tmp_path, {"k": 1}, build) for _ in range(2))
    assert build.calls == 1
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert second.fingerprint() == first.fingerprint() == build(lambda shape: np.empty(shape, np.uint8)).fingerprint()
    for column in ("labels", "groups", "partition"):
        assert np.array_equal(getattr(second, column), getattr(first, column))
    assert second.names == ("v", "w", "x", "y", "z/ü\udcff") and second.class_names == ("a", "b")
    assert the_files(tmp_path) == ["dataset.json", "images.npy", "lock"]


def test_the_key_tells_sets_apart(tmp_path):
    build = Builder()
    for key in ({"k": 1}, {"k": 2}, {"k": 1, "j": None}):
        cached(tmp_path, key, build)
    assert build.calls == 3


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = cached(None, {}, Builder())
    assert not isinstance(dataset.images, np.memmap)
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


def drop_key(path: Path) -> None:
    about = json.loads(path.read_text())
    del about["labels"]
    path.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("images.npy", cut),
        ("images.npy", flip),
        ("images.npy", Path.unlink),
        ("dataset.json", cut),
        ("dataset.json", drop_key),
        ("dataset.json", Path.unlink),
        ("dataset.json", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_copy_is_built_anew(tmp_path, name, harm):
    build = Builder()
    whole = cached(tmp_path, {}, build).fingerprint()
    harm(next(tmp_path.rglob(name)))
    assert cached(tmp_path, {}, build).fingerprint() == whole
    assert build.calls == 2
    cached(tmp_path, {}, build)
    assert build.calls == 2


def test_a_build_that_fails_leaves_no_set(tmp_path):
    def fail(allocate):
        allocate((4, 8, 8, 3))
        raise UserError("cell.jpg: truncated")

    with pytest.raises(UserError, match="^cell.jpg: truncated$"):
        cached(tmp_path, {}, fail)
    assert the_files(tmp_path) == ["lock"]


def test_what_a_killed_build_left_is_swept(tmp_path):
    build = Builder()
    cached(tmp_path, {}, build)
    folder = next(tmp_path.iterdir())
    (folder / "dataset.json").unlink()
    (folder / ".tmp-123.npy").write_bytes(b"half")
    cached(tmp_path, {}, build)
    assert the_files(tmp_path) == ["dataset.json", "images.npy", "lock"]


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(UserError, match=f"data.cache_dir={tmp_path} cannot be used .No space left on device"):
        cached(tmp_path, {}, Builder())
    assert the_files(tmp_path) == ["lock"]


def test_a_quota_is_blamed_on_the_cache_not_on_the_cells(tmp_path, monkeypatch):
    def over_quota(*_, **__):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    np.savez(tmp_path / "a.npz", images=IMAGES, labels=[0, 1, 2, 3, 4])
    monkeypatch.setattr(np.lib.format, "open_memmap", over_quota)
    expected = r"^data.cache_dir=.*/c cannot be used .Disk quota exceeded.; set data.cache_dir to .*, or to off$"
    with pytest.raises(UserError, match=expected):
        load_dataset("npz", tmp_path / "a.npz", image_size=8, cache_dir=tmp_path / "c")
    assert the_files(tmp_path / "c") == ["lock"]


@pytest.mark.parametrize("with_cache", [True, False])
def test_cells_that_cannot_be_read_are_not_blamed_on_the_cache(tmp_path, with_cache):
    def build(allocate):
        allocate((4, 8, 8, 3))
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/data/cells")

    with pytest.raises(UserError, match="^/data/cells: cannot be read .Input/output error.; check data.path"):
        cached(tmp_path if with_cache else None, {}, build)


def test_waiting_for_another_process_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    build = Builder()
    cached(tmp_path, {}, build)
    (lock,) = tmp_path.rglob("lock")
    with ThreadPoolExecutor() as pool:
        with lock.open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            waiting = pool.submit(cached, tmp_path, {}, build)
            deadline = time.monotonic() + 10
            while "waits" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not waiting.done()
        assert waiting.result(10).num_examples == 5
    assert f"waits for another process that decodes into {lock.parent}" in caplog.text


def test_an_impossible_folder_is_one_message(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="data.cache_dir=.*/file/cache cannot be used .Not a directory"):
        cached(tmp_path / "file" / "cache", {}, Builder())


def _build_slowly(folder: Path, log: Path) -> None:
    def build(allocate):
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.5)
        return Builder()(allocate)

    assert np.array_equal(cached(folder, {}, build).images, IMAGES)


def test_processes_that_start_together_build_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    arguments = (tmp_path / "cache", tmp_path / "log")
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


def test_a_folder_is_decoded_again_when_a_picture_or_a_setting_changes(tmp_path):
    root, cache = tmp_path / "cells", tmp_path / "cache"
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0]).save(root / name / "x.png")

    def load(**settings):
        return load_dataset("folder", root, cache_dir=cache, **{"image_size": 8, **settings})

    first = load()
    assert isinstance(first.images, np.memmap)
    assert len(list(cache.iterdir())) == 1
    assert load().fingerprint() == first.fingerprint() and len(list(cache.iterdir())) == 1
    Image.fromarray(IMAGES[1]).save(root / "b" / "x.png")
    assert np.array_equal(load().images[1], IMAGES[1])
    load(image_size=6)
    load(crop=4)
    load(class_names=("b", "a"))
    assert len(list(cache.iterdir())) == 5


def test_npz_and_drawn_cells_are_cached_too(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=[0, 1, 2, 3, 4])
    for source, path in (("npz", tmp_path / "a.npz"), ("synthetic", None)):
        load = partial(load_dataset, source, path, image_size=8, synthetic_examples=8)
        plain = load()
        twice = [load(cache_dir=tmp_path / "c") for _ in range(2)]
        assert all(isinstance(found.images, np.memmap) for found in twice)
        assert {found.fingerprint() for found in twice} == {plain.fingerprint()}


# ---- a copy on the node's own disk


def lies_in(folder: Path, dataset: ArrayDataset) -> bool:
    """Whether its images are read from there."""
    assert isinstance(dataset.images, np.memmap)
    return Path(str(dataset.images.filename)).is_relative_to(folder)


def copies(scratch: Path) -> list[str]:
    return [str(path.relative_to(scratch).parent.parent) for path in scratch.rglob("images.npy")]


def test_from_scratch_is_read_what_the_shared_cache_has(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    build, cache, scratch = Builder(), tmp_path / "cache", tmp_path / "node" / "it's fast"
    first, second = (cached(cache, {"k": 1}, build, scratch) for _ in range(2))
    assert build.calls == 1
    for found in (first, second):
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        assert lies_in(scratch, found)
    assert caplog.text.count("copying the decoded cells to") == 1
    assert copies(scratch) == ["bloodcell_dist"]  # a folder that others use too
    assert first.fingerprint() == second.fingerprint() == cached(cache, {"k": 1}, build).fingerprint()
    assert build.calls == 1
    assert the_files(cache) == the_files(scratch) == ["dataset.json", "images.npy", "lock"]


def test_another_node_copies_from_the_shared_cache_and_does_not_decode(tmp_path):
    build, cache = Builder(), tmp_path / "cache"
    prints = {cached(cache, {}, build, tmp_path / node).fingerprint() for node in ("n1", "n2")}
    assert build.calls == 1 and len(prints) == 1
    assert all(the_files(tmp_path / node) == the_files(cache) for node in ("n1", "n2"))


def test_scratch_keeps_sets_apart(tmp_path):
    for key in ({"k": 1}, {"k": 2}):
        cached(tmp_path / "cache", key, Builder(), tmp_path / "scratch")
    assert len(copies(tmp_path / "scratch")) == 2


@pytest.mark.parametrize(
    ("name", "harm"),
    [("images.npy", cut), ("images.npy", flip), ("images.npy", Path.unlink), ("dataset.json", drop_key)],
)
def test_a_damaged_copy_on_scratch_is_copied_anew(tmp_path, name, harm):
    build, cache, scratch = Builder(), tmp_path / "cache", tmp_path / "scratch"
    whole = cached(cache, {}, build, scratch).fingerprint()
    harm(next(scratch.rglob(name)))
    (next(scratch.rglob("lock")).parent / ".tmp-123.npy").write_bytes(b"half")
    assert cached(cache, {}, build, scratch).fingerprint() == whole
    assert build.calls == 1
    (kept,), (copied,) = (list(folder.rglob(name)) for folder in (cache, scratch))
    assert copied.read_bytes() == kept.read_bytes()
    assert the_files(scratch) == ["dataset.json", "images.npy", "lock"]


def test_a_copy_that_is_cut_short_is_no_set(tmp_path):
    """The images are there, the JSON is not: as after a node was lost."""
    build, cache, scratch = Builder(), tmp_path / "cache", tmp_path / "scratch"
    cached(cache, {}, build, scratch)
    next(scratch.rglob("dataset.json")).unlink()
    assert lies_in(scratch, cached(cache, {}, build, scratch))
    assert build.calls == 1


def test_a_scratch_that_cannot_be_used_is_a_warning(tmp_path, caplog):
    build, cache = Builder(), tmp_path / "cache"
    (tmp_path / "file").write_text("")
    found = cached(cache, {}, build, tmp_path / "file" / "scratch")
    assert lies_in(cache, found)
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == f"{tmp_path}/file/scratch cannot be used (Not a directory); reads from {cache}"
    assert the_files(cache) == ["dataset.json", "images.npy", "lock"]


def test_a_scratch_that_is_full_is_a_warning_and_keeps_nothing_half(tmp_path, monkeypatch, caplog):
    def no_room(source, to):
        Path(to).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(to))

    monkeypatch.setattr(shutil, "copyfile", no_room)
    build, cache, scratch = Builder(), tmp_path / "cache", tmp_path / "scratch"
    found = cached(cache, {}, build, scratch)
    assert lies_in(cache, found)
    assert f"{scratch} cannot be used (No space left on device); reads from {cache}" in caplog.messages
    assert the_files(scratch) == ["lock"]
    assert build.calls == 1


def test_a_shared_cache_that_cannot_be_used_is_no_fault_of_the_scratch(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="^data.cache_dir=.*/file/cache cannot be used .Not a directory"):
        cached(tmp_path / "file" / "cache", {}, Builder(), tmp_path / "scratch")
    assert caplog.messages == []


def test_without_a_cache_there_is_no_copy_on_scratch(tmp_path):
    assert not isinstance(cached(None, {}, Builder(), tmp_path / "scratch").images, np.memmap)
    assert not (tmp_path / "scratch").exists()


def _copy_slowly(cache: Path, scratch: Path, log: Path) -> None:
    """One of the ranks of a node, where copying takes a while."""
    copy = shutil.copyfile

    def slowly(source, to):
        with log.open("a") as file:
            file.write(f"{Path(source).name}\n")
        time.sleep(0.3)
        return copy(source, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "copyfile", slowly)
        found = cached(cache, {}, Builder(), scratch)
    assert np.array_equal(found.images, IMAGES)
    assert lies_in(scratch, found)


def test_processes_that_start_together_copy_once(tmp_path):
    context = multiprocessing.get_context("forkserver")
    arguments = (tmp_path / "cache", tmp_path / "scratch", tmp_path / "log")
    processes = [context.Process(target=_copy_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "images.npy\ndataset.json\n"


def test_all_sources_go_over_scratch(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=[0, 1, 2, 3, 4])
    for source, path in (("npz", tmp_path / "a.npz"), ("synthetic", None)):
        places = {"cache_dir": tmp_path / "c", "scratch_dir": tmp_path / "s"}
        found = load_dataset(source, path, image_size=8, synthetic_examples=8, **places)
        assert lies_in(tmp_path / "s", found)
    assert len(copies(tmp_path / "s")) == 2


# ---- near-duplicates


def similar() -> np.ndarray:
    """Four pictures, the last a turned copy of the second."""
    pictures = np.random.default_rng(3).integers(0, 256, (4, 24, 24, 3)).astype(np.uint8)
    pictures[3] = np.rot90(pictures[1])
    return pictures


def test_pairs_are_kept_for_exactly_these_pictures(tmp_path):
    pictures = similar()
    for arguments in ((pictures,), (pictures, pictures[1:]), (pictures[1:], pictures), (pictures[1:],)):
        fresh, kept = (find_pairs(tmp_path, *arguments) for _ in range(2))
        assert kept == fresh == near_duplicates(*arguments) != []
    assert len(the_files(tmp_path)) == 4


def swap_pair(path: Path) -> None:
    path.write_text(path.read_text().replace("1,", "2,", 1))


@pytest.mark.parametrize("harm", [cut, swap_pair, lambda path: path.write_text("[]"), lambda path: path.write_text("")])
def test_damaged_pairs_are_found_anew(tmp_path, caplog, harm):
    find_pairs(tmp_path, similar())
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_bytes()
    harm(path)
    assert find_pairs(tmp_path, similar()) == near_duplicates(similar())
    assert f"{path} is damaged" in caplog.text
    assert path.read_bytes() == whole


def test_pairs_that_cannot_be_kept_are_a_warning(tmp_path, caplog):
    (tmp_path / "near_duplicates").write_text("in the way")
    assert find_pairs(tmp_path, similar()) == near_duplicates(similar())
    assert "the next start will look again" in caplog.text
