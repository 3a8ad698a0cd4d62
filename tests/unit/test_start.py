"""How a run begins: its folder, its lock, its settings, its cells."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist import start
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.config import load_settings, replace
from bloodcell_dist.data.dataset import ArrayDataset
from bloodcell_dist.data.prepare import Prepared
from bloodcell_dist.errors import UserError
from bloodcell_dist.initial_weights import initial_weights
from bloodcell_dist.resolve import Machine
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import Settings
from bloodcell_dist.start import (
    Opened,
    begin_run,
    check_begun,
    check_same_cells,
    default_cache,
    load_data,
    open_run,
    repeatable,
    run_folder,
    settle,
)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without cells, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("BLOODCELL_DATA", "BLOODCELL_RUNS", "BLOODCELL_RECORD", "BLOODCELL_SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def cells(seed: int) -> Prepared:
    """Twelve small cells as all three sets."""
    images = np.random.default_rng(seed).integers(0, 256, (12, 16, 16, 3), np.uint8)
    dataset = ArrayDataset(images, np.arange(12) % 2, ("a", "b"))
    return Prepared(dataset, dataset, dataset, dataset, None)


CELLS = cells(0)


def settings_of(*overrides: str) -> tuple[Settings, Settings]:
    """As given and as resolved."""
    given = load_settings(None, overrides)
    return given, settle(given, Machine(0))[0]


@contextlib.contextmanager
def begun(path: Path, *overrides: str) -> Iterator[RunDir]:
    """A living run that began with a command."""
    given, settings = settings_of(*overrides)
    run = RunDir(path)
    with contextlib.ExitStack() as stack:
        assert open_run(stack, run, given, settings) == (settings, False)
        begin_run(stack, run, settings, CELLS)
        yield run


def go_on(path: Path, *overrides: str) -> Settings:
    given, settings = settings_of(*overrides)
    with contextlib.ExitStack() as stack:
        settings, had_begun = open_run(stack, RunDir(path), given, settings)
        assert had_begun
        return settings


# ---- the folder


def test_the_folder_asked_for_is_taken() -> None:
    assert run_folder("here/it is", *settings_of(), debug=False).path == Path("here/it is")
    assert run_folder("here", *settings_of(), debug=True).path == Path("here")


def test_the_same_settings_find_the_same_folder() -> None:
    one, same, other = (
        run_folder(None, *settings_of(seed), False) for seed in ("train.seed=1",) * 2 + ("train.seed=2",)
    )
    assert one == same != other
    assert re.fullmatch(r"runs/mobilenetv3small-[0-9a-f]{8}", str(one.path))


def test_another_machine_finds_the_same_folder() -> None:
    given, here = settings_of("data.cache_dir=/scratch/17")
    there = replace(here, {"train.precision": "mixed_bfloat16", "train.xla": "on", "train.epochs": 30})
    moved = replace(given, {"data.cache_dir": "/scratch/18"})
    assert run_folder(None, given, here, False) == run_folder(None, moved, there, False)


@pytest.mark.parametrize(
    "setting",
    ["strategy=mirrored", "strategy=horovod", "devices=2", "gradient_compression=float16", "timeout_s=9"],
)
def test_another_way_to_run_finds_the_same_folder(setting: str) -> None:
    given, here = settings_of()
    elsewhere = load_settings(None, [f"distribute.{setting}"])
    there = replace(here, {"distribute.strategy": "multiworker", "distribute.timeout_s": 9.0})
    assert run_folder(None, elsewhere, there, False) == run_folder(None, given, here, False)


def test_copied_cells_find_the_same_folder(tmp_path: Path) -> None:
    folders = set()
    for job in ("17", "18"):
        (tmp_path / job).mkdir()
        np.savez(tmp_path / job / "cells.npz", images=CELLS.train.images, labels=CELLS.train.labels)
        folders.add(run_folder(None, *settings_of(f"data.path={job}/cells.npz", "data.test_path=t.npz"), False).path)
    assert len(folders) == 1


def test_debug_runs_have_folders_of_their_own() -> None:
    folder = run_folder(None, *settings_of(), debug=True).path
    assert re.fullmatch(r"runs/debug-\d{8}-\d{6}", str(folder))


def test_runs_can_go_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(asked: str | None = None, debug: bool = False) -> Path:
        return run_folder(asked, *settings_of(), debug).path

    here = folder()
    monkeypatch.setenv("BLOODCELL_RUNS", str(tmp_path / "scratch of mine"))
    assert folder() == tmp_path / "scratch of mine" / here.name  # the same name
    assert folder(debug=True).parent == tmp_path / "scratch of mine"
    assert folder("here") == Path("here")
    monkeypatch.setenv("BLOODCELL_RUNS", "")
    assert folder() == here


def test_the_cache_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_cache() == str(tmp_path / "cache" / "bloodcell_dist")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache() == "/home/me/.cache/bloodcell_dist"


# ---- beginning and going on


def test_looking_at_a_new_folder_leaves_nothing(tmp_path: Path) -> None:
    given, settings = settings_of()
    with contextlib.ExitStack() as stack:
        assert open_run(stack, RunDir(tmp_path / "new" / "run"), given, settings) == (settings, False)
    assert not (tmp_path / "new").exists()


def test_a_run_goes_on_with_the_settings_it_began_with(tmp_path: Path) -> None:
    with begun(tmp_path / "run", "train.seed=3") as run:
        assert load_settings(run.config).train.seed == 3
    moved = replace(load_settings(run.config), {"train.precision": "mixed_bfloat16"})  # as on a machine with a GPU
    run.write_config(run.config.read_text().replace("float32", "mixed_bfloat16"))
    assert go_on(tmp_path / "run", "train.seed=3") == moved


def test_a_run_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    with begun(tmp_path / "run", "train.seed=3"):
        pass
    with pytest.raises(UserError, match="run: this run was started with train.seed=3, now train.seed=4; go on with 3"):
        go_on(tmp_path / "run", "train.seed=4")
    assert load_settings(tmp_path / "run" / "config.yaml").train.seed == 3


@pytest.mark.parametrize("setting", ["checkpoint.keep=1", "checkpoint.every_steps=7", "evaluate.bootstrap=0"])
def test_what_does_not_touch_the_training_may_change(tmp_path: Path, setting: str) -> None:
    with begun(tmp_path / "run"):
        pass
    key, value = setting.split("=")
    settings = go_on(tmp_path / "run", setting)
    section, name = key.split(".")
    assert getattr(getattr(settings, section), name) == int(value)
    assert load_settings(tmp_path / "run" / "config.yaml") == settings


def test_other_cells_are_refused_even_before_the_first_checkpoint(tmp_path: Path) -> None:
    with begun(tmp_path / "run") as run:
        check_begun(run, CELLS)
        with pytest.raises(UserError, match="the training cells are not those this run began with .12 examples, SHA"):
            check_begun(run, cells(1))


@pytest.mark.parametrize(("asked", "cached"), [("off", False), ("mine", True)])
def test_the_cache_can_be_turned_off(tmp_path: Path, asked: str, cached: bool) -> None:
    np.savez(tmp_path / "a.npz", images=np.concatenate([CELLS.train.images] * 2) ^ 1, labels=np.arange(24) % 8)
    _, settings = settings_of("data.path=a.npz", "data.image_size=16", f"data.cache_dir={asked}", "data.clean=false")
    load_data(settings)
    assert (tmp_path / "mine").exists() is cached
    assert not (tmp_path / "off").exists() and not (tmp_path / "cache").exists()


def test_a_home_that_cannot_be_written_to_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    np.savez(tmp_path / "a.npz", images=CELLS.train.images, labels=np.arange(12) % 2)
    _, settings = settings_of("data.path=a.npz", "data.class_names=[a, b]", "data.image_size=16")
    assert load_data(settings).train.num_examples > 0
    assert "cannot hold a cache" in caplog.text


def test_a_living_run_is_left_alone(tmp_path: Path) -> None:
    with begun(tmp_path / "run"), pytest.raises(UserError, match="this run is in use by process"):
        go_on(tmp_path / "run")


def test_of_two_that_begin_at_once_one_begins(tmp_path: Path) -> None:
    """Both looked before either had made the folder; loading cells takes minutes."""
    settings = settings_of()[1]
    in_use = pytest.raises(UserError, match="this run is in use by process")
    with begun(tmp_path / "run") as run, contextlib.ExitStack() as stack, in_use:
        begin_run(stack, run, settings, CELLS)
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="another process began this run"):
        begin_run(stack, run, settings, CELLS)


def test_a_folder_with_other_things_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    given, settings = settings_of()
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="is not a run folder, and holds thesis.tex"):
        open_run(stack, RunDir(tmp_path), given, settings)


def test_the_ending_is_written_down(tmp_path: Path) -> None:
    with pytest.raises(UserError), begun(tmp_path / "run") as run:
        assert json.loads(run.status.read_text())["state"] == "running"
        raise UserError("100% wrong")
    assert json.loads(run.status.read_text()) == {"state": "bad input", "exit_status": 2, "message": "100% wrong"}
    assert run.log.read_text().endswith(" ERROR 100% wrong\n")

    go_on(tmp_path / "run")
    assert json.loads(run.status.read_text())["state"] == "done"


def told(tmp_path: Path) -> str:
    return (tmp_path / "jobs" / "12_3.run").read_text()


def test_the_batch_script_is_told_the_folder_of_its_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, as the script looks there from another working folder; and when status.json is no longer the old one."""
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("BLOODCELL_RECORD", str(tmp_path / "jobs" / "12_3"))
    given, settings = settings_of()
    with contextlib.ExitStack() as stack:
        open_run(stack, RunDir(Path("my run")), given, settings)
    assert list((tmp_path / "jobs").iterdir()) == []  # there is no run yet
    with begun(Path("my run")):
        assert told(tmp_path) == str(tmp_path / "my run")
    (tmp_path / "jobs" / "12_3.run").unlink()
    go_on(Path("my run"))
    assert told(tmp_path) == str(tmp_path / "my run")
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["12_3.run"]


def test_the_folder_is_told_after_the_last_ending_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the script of a rank that is killed then would take the exit status of the life before for this one's."""
    monkeypatch.setenv("BLOODCELL_RECORD", str(tmp_path / "record"))
    states = []
    write = start.atomic_write_text

    def look(path: str, text: str) -> None:
        states.append(json.loads((tmp_path / "run" / "status.json").read_text())["state"])
        write(path, text)

    monkeypatch.setattr(start, "atomic_write_text", look)
    with begun(tmp_path / "run"):
        pass
    go_on(tmp_path / "run")
    assert states == ["running", "running"]


def test_a_record_that_cannot_be_written_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOODCELL_RECORD", str(tmp_path / "nowhere" / "12"))
    with begun(tmp_path / "run") as run:
        assert json.loads(run.status.read_text())["state"] == "running"
    assert not (tmp_path / "nowhere").exists()


# ---- the cells


@pytest.mark.parametrize("given", ["it's fast", ""])
def test_the_cells_are_read_from_the_scratch_of_the_node(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLOODCELL_SCRATCH", given and str(tmp_path / given))
    np.savez(tmp_path / "a.npz", images=np.concatenate([CELLS.train.images] * 2), labels=np.arange(24) % 8)
    load_data(settings_of("data.path=a.npz", "data.image_size=16", "data.clean=false")[1])
    copied = list((tmp_path / "it's fast").glob("bloodcell_dist/*/images.npy"))
    assert len(copied) == (1 if given else 0)
    assert len(list((tmp_path / "cache" / "bloodcell_dist").glob("*/images.npy"))) == 1


def test_every_setting_of_the_cells_is_used(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (90, 24, 24, 3), np.uint8)
    images[80:] = images[0]
    patients = np.arange(90) // 3
    for name, kept in (("a", slice(None)), ("t", slice(0, 20))):
        shift = 0 if name == "a" else 1
        np.savez(
            tmp_path / f"{name}.npz",
            images=images[kept] + np.uint8(shift),
            labels=np.arange(90)[kept] % 3,
            patients=patients[kept],
        )
    common = ("data.path=a.npz", "data.test_path=t.npz", "data.class_names=[x, y, z]", "data.image_size=16")
    _, settings = settings_of(*common, "data.crop=20", "data.group_column=patients", "data.clean=false")
    data = load_data(settings)
    assert data.cleaning is None and data.loaded.num_examples == 90
    assert data.train.images.shape[1:] == (16, 16, 3)
    assert data.train.class_names == ("x", "y", "z")
    assert data.test is not None and data.test.num_examples == 20
    assert data.train.groups is not None and data.val.groups is not None
    assert not set(data.train.groups) & set(data.val.groups)
    assert (tmp_path / "cache" / "bloodcell_dist").is_dir()

    _, settings = settings_of(*common, "data.max_examples=16", "data.cache_dir=mine")
    data = load_data(settings)
    assert data.cleaning is not None and len(data.cleaning.removed) == 11
    assert (data.train.num_examples, data.test and data.test.num_examples) == (16, 16)
    assert len(list((tmp_path / "mine").glob("*/images.npy"))) == 2


def test_the_seed_decides_the_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    images = np.random.default_rng(0).integers(0, 256, (80, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(80) % 8)
    prints = [
        load_data(settings_of("data.path=a.npz", "data.image_size=16", f"train.seed={seed}")[1]).val.fingerprint()
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


# ---- what the other workers are told


@pytest.mark.parametrize(("had_begun", "finished"), [(False, False), (True, False), (True, True)])
def test_what_the_chief_has_found_arrives_as_it_was(had_begun: bool, finished: bool, tmp_path: Path) -> None:
    settings = settings_of(
        "train.seed=3",
        "optimizer.learning_rate=0.1",
        "data.class_names=[größer, b]",
        "finetune.stages=[{share: 0.5, train: head}, {share: 0.5}]",
    )[1]
    opened = Opened(settings, RunDir(tmp_path / "größer"), had_begun, finished)
    assert Opened.from_json(json.loads(json.dumps(opened.to_json()))) == opened


class Told(Workers):
    """A worker that is told what others have, and notes what it tells itself."""

    def __init__(self, *others: Any) -> None:
        super().__init__()
        self._others = list(others)
        self.said: list[Any] = []

    def each(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [*self._others[:1], value, *self._others[1:]]


def said_of(data: Prepared) -> Any:
    worker = Told()
    check_same_cells(worker, data)
    return worker.said[0]


def test_workers_with_the_same_cells_agree() -> None:
    check_same_cells(Workers(), CELLS)
    check_same_cells(Told(said_of(cells(0)), said_of(cells(0))), CELLS)


def test_workers_with_other_cells_are_named() -> None:
    ours, theirs = said_of(CELLS), said_of(cells(1))
    fewer = said_of(dataclasses.replace(CELLS, test=None))
    for others, ranks in [((ours, theirs), "2"), ((theirs, ours), "1, 2"), ((theirs, theirs), "1"), ((ours, fewer), 2)]:
        with pytest.raises(UserError, match=f"the cells that rank {ranks} reads are not those of rank 0; put the same"):
            check_same_cells(Told(*others), CELLS)


# ---- initial weights


def weights_of(*overrides: str) -> Path | None:
    return initial_weights(settings_of(*overrides)[1], lambda backbone, folder: Path(f"/{backbone}-{folder}.h5"))


def test_weights_are_found_by_name_by_file_and_by_run(tmp_path: Path) -> None:
    assert weights_of("model.weights=none") is None
    assert weights_of("model.weights=imagenet", "model.backbone=efficientnetb0") == Path("/efficientnetb0-None.h5")
    (tmp_path / "run").mkdir()
    for name in ("a.weights.h5", "run/model.keras"):
        (tmp_path / name).write_bytes(b"")
    assert weights_of("model.weights=a.weights.h5") == tmp_path / "a.weights.h5"
    assert weights_of("model.weights=run") == tmp_path / "run" / "model.keras"


@pytest.mark.parametrize(("given", "named"), [("gone.h5", "gone.h5"), ("empty", "empty/model.keras")])
def test_weights_that_are_not_there(tmp_path: Path, given: str, named: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"there is no file {tmp_path / named}; expected a Keras .h5, .weights.h5 or"):
        weights_of(f"model.weights={given}")


def test_other_initial_weights_are_refused_while_there_is_no_checkpoint(tmp_path: Path) -> None:
    weights = tmp_path / "a.h5"
    weights.write_bytes(b"1")
    given, settings = settings_of()
    run = RunDir(tmp_path / "run")
    with contextlib.ExitStack() as stack:
        open_run(stack, run, given, settings)
        begin_run(stack, run, settings, CELLS, weights)
        check_begun(run, CELLS, weights)
        check_begun(run, CELLS)  # goes on from a checkpoint: the file may be gone
        weights.write_bytes(b"2")
        with pytest.raises(UserError, match="the initial weights are not those this run began with .a.h5, SHA-256 6b8"):
            check_begun(run, CELLS, weights)


def test_the_name_of_a_run_does_not_depend_on_where_its_weights_lie() -> None:
    def name(*overrides: str) -> Path:
        return run_folder(None, *settings_of(*overrides), debug=False).path

    assert name("model.weights=/one/a.h5") == name("model.weights=/two/a.h5") != name("model.weights=/one/b.h5")
    assert name("model.weights_dir=/one") == name("model.weights_dir=/two") == name()


def test_a_resumed_run_refuses_another_weight_file_and_can_do_without_one(tmp_path: Path) -> None:
    """Every export is called model.keras: the name of the run does not tell them apart."""
    for name, content in (("a", b"1"), ("b", b"2"), ("copy", b"1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.keras").write_bytes(content)
    first = tmp_path / "a" / "model.keras"
    given, settings = settings_of(f"model.weights={first}")
    run = RunDir(tmp_path / "run")
    with contextlib.ExitStack() as stack:
        open_run(stack, run, given, settings)
        begin_run(stack, run, settings, CELLS, first)
    before = run.config.read_bytes()
    with pytest.raises(
        UserError, match="the initial weights are not those this run began with .model.keras, SHA-256 6b"
    ):
        go_on(run.path, f"model.weights={tmp_path / 'b'}")
    assert run.config.read_bytes() == before
    assert go_on(run.path, f"model.weights={tmp_path / 'gone' / 'model.keras'}").model.weights == str(first)
    assert go_on(run.path, f"model.weights={tmp_path / 'copy'}").model.weights == str(tmp_path / "copy")


def test_a_finished_run_keeps_its_config(tmp_path: Path) -> None:
    with begun(tmp_path / "run", "data.cache_dir=/scratch/1") as run:
        run.result.write_text("{}")
    before = run.config.read_bytes()
    assert go_on(run.path, "data.cache_dir=/scratch/2").data.cache_dir == "/scratch/2"
    assert run.config.read_bytes() == before


def test_stages_on_top_of_untrained_layers_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    assert weights_of("model.weights=none", "finetune.stages=[{share: 0.5, train: head}, {share: 0.5}]") is None
    assert "layers that have learned nothing yet" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "num_gpus", "expected"),
    [
        ([], 0, True),
        (["train.xla=on"], 1, True),
        (["train.xla=off"], 1, False),
        (["train.xla=off", "model.backbone=cnn"], 1, True),
        (["train.deterministic=false"], 0, False),
        (["augment.engine=kerascv"], 0, False),
    ],
)
def test_where_bits_are_promised(overrides: list[str], num_gpus: int, expected: bool) -> None:
    assert repeatable(settings_of(*overrides)[1], num_gpus) is expected
