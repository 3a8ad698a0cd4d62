"""What `auto` becomes, and what a run that goes on keeps."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.cluster.environment import Launcher, ProcessInfo
from bloodcell_dist.config import load_settings
from bloodcell_dist.errors import UserError
from bloodcell_dist.resolve import EPOCHS_ON_CPU, EPOCHS_ON_GPU, Machine, keep_choices, resolve
from bloodcell_dist.settings import Settings

CPU, OLD_GPU, NEW_GPU = Machine(0), Machine(1), Machine(1, bfloat16=True)


def cells(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, images=np.zeros((1, 2, 2, 3), np.uint8), labels=np.zeros(1, int))
    return path


def settle(
    folder: Path, *overrides: str, machine: Machine = CPU, data: str | None = None
) -> tuple[Settings, list[str]]:
    environ = {} if data is None else {"BLOODCELL_DATA": data}
    return resolve(load_settings(None, overrides), machine, environ, folder)


@pytest.mark.parametrize(
    ("machine", "epochs", "precision", "xla"),
    [
        (CPU, EPOCHS_ON_CPU, "float32", "parts"),
        (OLD_GPU, EPOCHS_ON_GPU, "mixed_float16", "on"),
        (NEW_GPU, EPOCHS_ON_GPU, "mixed_bfloat16", "on"),
    ],
)
def test_auto_follows_the_machine(tmp_path: Path, machine: Machine, epochs: int, precision: str, xla: str) -> None:
    settings, lines = settle(tmp_path, machine=machine)
    train = settings.train
    assert (train.epochs, train.precision, train.xla) == (epochs, precision, xla)
    backbone = "convnextbase" if machine.num_gpus else "mobilenetv3small"
    assert (settings.distribute.strategy, settings.model.backbone) == ("single", backbone)
    assert settings.data.placement == "auto"  # goes by the memory that is free at each start
    assert settings.model_dump_json().count("auto") == 1
    assert len(lines) == 7 and all(" = " in line and ": " in line for line in lines)


def test_what_is_given_is_not_chosen(tmp_path: Path) -> None:
    given = (
        "train.epochs=9",
        "train.precision=float32",
        "train.xla=off",
        "model.backbone=cnn",
        "data.source=synthetic",
    )
    settings, lines = settle(tmp_path, *given, "distribute.strategy=single", machine=NEW_GPU)
    assert (settings.train.epochs, settings.train.precision, settings.train.xla) == (9, "float32", "off")
    assert lines == []


def test_imagenet_weights_are_taken_where_they_are_staged(tmp_path: Path) -> None:
    asked = []

    def staged(backbone: str, weights_dir: str | None) -> Path | None:
        asked.append((backbone, weights_dir))
        return Path("/weights/file.h5") if weights_dir else None

    options = ["model.backbone=efficientnetb0", "data.source=synthetic"]
    settings, lines = resolve(load_settings(None, options), CPU, {}, tmp_path, staged)
    assert settings.model.weights == "none"
    assert any("FROM SCRATCH; `bloodcell-dist weights fetch efficientnetb0` gets them" in line for line in lines)
    settings, lines = resolve(load_settings(None, [*options, "model.weights_dir=w"]), CPU, {}, tmp_path, staged)
    assert (settings.model.weights, settings.model.weights_dir) == ("imagenet", str(tmp_path / "w"))
    assert "model.weights = imagenet: /weights/file.h5" in lines
    assert asked == [("efficientnetb0", None), ("efficientnetb0", str(tmp_path / "w"))]


@pytest.mark.parametrize("given", ["imagenet", "none"])
def test_weights_asked_for_by_name_stay_as_they_are(tmp_path: Path, given: str) -> None:
    assert settle(tmp_path, f"model.weights={given}")[0].model.weights == given


def test_resolving_twice_changes_nothing(tmp_path: Path) -> None:
    first, _ = settle(tmp_path, machine=NEW_GPU)
    assert resolve(first, CPU, {}, tmp_path / "elsewhere") == (first, [])


def test_the_order_in_which_cells_are_looked_for(tmp_path: Path) -> None:
    settings, lines = settle(tmp_path)
    assert (settings.data.source, settings.data.path) == ("synthetic", None)
    assert "DRAWN cells, not real ones" in lines[0]

    here = cells(tmp_path / "training_set.npz")
    settings, lines = settle(tmp_path)
    assert (settings.data.source, settings.data.path) == ("npz", str(here))
    assert "found in the working folder" in lines[0]

    there = cells(tmp_path / "there" / "a.npz")
    settings, lines = settle(tmp_path, data=str(there))
    assert settings.data.path == str(there)
    assert "from $BLOODCELL_DATA" in lines[0]

    named = cells(tmp_path / "named" / "b.npz")
    settings, lines = settle(tmp_path, f"data.path={named}", data=str(there))
    assert settings.data.path == str(named)
    assert "told by its content" in lines[0]


def test_an_empty_variable_is_no_variable(tmp_path: Path) -> None:
    assert settle(tmp_path, data="")[0].data.source == "synthetic"


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.npz: no such file or folder \(from \$BLOODCELL_DATA\)"):
        settle(tmp_path, data="nowhere.npz")


def test_paths_start_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    cells(tmp_path / "sub" / "a.npz")
    settings, _ = settle(tmp_path, "data.path=sub/../sub/a.npz", "data.test_path=~/t.npz", "data.cache_dir=c")
    assert settings.data.path == str(tmp_path / "sub" / "a.npz")
    assert settings.data.test_path == str(tmp_path / "home" / "t.npz")
    assert settings.data.cache_dir == str(tmp_path / "c")


def test_a_home_that_is_not_known_is_a_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="~nobody.knows/a.npz: no such file or folder"):
        settle(tmp_path, "data.path=~nobody.knows/a.npz")


# ---- the way to run


def among(launcher: Launcher, world_size: int, num_gpus: int = 0) -> Machine:
    """The first of so many processes."""
    return Machine(num_gpus, process=ProcessInfo(launcher, 0, world_size, 0, 1, 0, world_size, "n1"))


@pytest.mark.parametrize(
    ("launcher", "world_size", "num_gpus", "asked", "chosen", "why"),
    [
        ("none", 1, 0, "auto", "single", "one process on one device"),
        ("none", 1, 1, "auto", "single", "one process on one device"),
        ("none", 1, 4, "auto", "mirrored", "one process with 4 GPUs"),
        ("horovod", 4, 1, "auto", "horovod", "4 processes, started by horovodrun"),
        ("horovod", 4, 0, "auto", "horovod", "4 processes, started by horovodrun"),
        ("openmpi", 2, 1, "auto", "horovod", "2 processes, started by mpirun"),
        ("tf_config", 2, 4, "auto", "multiworker", "TF_CONFIG names 2 workers"),
        # one process by whatever launcher
        ("horovod", 1, 0, "auto", "single", "one process on one device"),
        ("openmpi", 1, 2, "auto", "mirrored", "one process with 2 GPUs"),
        ("tf_config", 1, 2, "auto", "mirrored", "one process with 2 GPUs"),
        ("slurm", 1, 1, "auto", "single", "one process on one device"),
        ("horovod", 1, 1, "horovod", "single", "horovod names this one process only"),
        ("openmpi", 1, 2, "horovod", "mirrored", "openmpi names this one process only"),
        ("tf_config", 1, 0, "multiworker", "single", "tf_config names this one process only"),
        # asked for, and fitting
        ("none", 1, 4, "single", "single", None),
        ("none", 1, 4, "mirrored", "mirrored", None),
        ("none", 1, 0, "mirrored", "mirrored", None),
        ("horovod", 1, 4, "single", "single", None),
        ("horovod", 2, 1, "horovod", "horovod", None),
        ("openmpi", 2, 1, "horovod", "horovod", None),
        ("tf_config", 2, 1, "multiworker", "multiworker", None),
        # under srun both fit
        ("slurm", 4, 1, "auto", "horovod", "4 processes, started by srun"),
        ("slurm", 2, 4, "auto", "multiworker", "2 processes, started by srun, with 4 GPUs each"),
        ("slurm", 2, 1, "multiworker", "multiworker", None),
        ("slurm", 2, 4, "horovod", "horovod", None),
    ],
)
def test_the_way_to_run(
    launcher: Launcher, world_size: int, num_gpus: int, asked: str, chosen: str, why: str | None, tmp_path: Path
) -> None:
    machine = among(launcher, world_size, num_gpus)
    settings, lines = settle(tmp_path, f"distribute.strategy={asked}", machine=machine)
    assert settings.distribute.strategy == chosen
    told = [line for line in lines if line.startswith("distribute.strategy")]
    assert told == ([] if why is None else [f"distribute.strategy = {chosen}: {why}"])


@pytest.mark.parametrize(
    ("launcher", "world_size", "num_gpus", "asked", "message"),
    [
        (
            *("none", 1, 0, "horovod"),
            "distribute.strategy=horovod does not fit: one process on one device; start it with `horovodrun -np N "
            "python -m bloodcell_dist.train` or with srun, or set distribute.strategy=single or auto",
        ),
        (
            "none",
            1,
            2,
            "multiworker",
            "multiworker does not fit: one process with 2 GPUs; start one process per node w",
        ),
        ("none", 1, 2, "horovod", "or set distribute.strategy=mirrored or auto"),
        ("tf_config", 1, 0, "horovod", "horovod does not fit: one process on one device"),
        ("horovod", 1, 0, "multiworker", "multiworker does not fit: one process on one device"),
        ("horovod", 4, 1, "single", "does not fit: 4 processes, started by horovodrun; start one process, or set dis"),
        (
            "openmpi",
            4,
            1,
            "mirrored",
            "4 processes, started by mpirun; start one process, it uses all GPUs of its node",
        ),
        ("horovod", 4, 1, "multiworker", "or set distribute.strategy=horovod or auto"),
        ("tf_config", 2, 1, "horovod", "distribute.strategy=horovod does not fit: TF_CONFIG names 2 workers; start it"),
        ("tf_config", 2, 1, "mirrored", "or set distribute.strategy=multiworker or auto"),
        (
            "slurm",
            2,
            1,
            "single",
            "does not fit: 2 processes, started by srun; start one process, or set distribute.str",
        ),
        ("slurm", 2, 4, "mirrored", "or set distribute.strategy=multiworker or auto"),
    ],
)
def test_a_way_to_run_that_does_not_fit(
    launcher: Launcher, world_size: int, num_gpus: int, asked: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        settle(tmp_path, f"distribute.strategy={asked}", machine=among(launcher, world_size, num_gpus))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (CPU, among("horovod", 4)),
        (among("horovod", 4), CPU),
        (among("tf_config", 2), among("openmpi", 2)),
        (among("horovod", 2), among("horovod", 4)),
    ],
)
def test_a_run_goes_on_under_another_launcher(
    first: Machine, again: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    saved, _ = settle(tmp_path, machine=first)
    now, _ = settle(tmp_path, machine=again)
    kept = keep_choices(load_settings(), now, saved, Path("runs/a"))
    assert kept == saved.model_copy(update={"distribute": now.distribute})
    before, after = saved.distribute.strategy, now.distribute.strategy
    assert (f"distribute.strategy is now {after}, it was {before}" in caplog.text) == (before != after)


def test_how_the_replicas_work_together_follows_the_command(tmp_path: Path) -> None:
    first = ["distribute.strategy=mirrored", "distribute.devices=2", "distribute.gradient_compression=float16"]
    again = ["distribute.strategy=single", "distribute.timeout_s=9"]
    assert keep(tmp_path, first, again) == settle(tmp_path, *again)[0]


# ---- going on


def keep(folder: Path, first: list[str], again: list[str], machine: Machine = CPU, data: str | None = None) -> Settings:
    """The settings a second command goes on with, after a first one on a CPU machine."""
    saved, _ = settle(folder, *first, data=None)
    given = load_settings(None, again)
    environ = {} if data is None else {"BLOODCELL_DATA": data}
    return keep_choices(given, resolve(given, machine, environ, folder)[0], saved, Path("runs/a"))


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    assert keep(tmp_path, ["train.seed=3"], ["train.seed=3"]) == settle(tmp_path, "train.seed=3")[0]


def test_another_machine_does_not_change_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = keep(tmp_path, [], [], machine=NEW_GPU)
    assert (settings.train.precision, settings.train.epochs) == ("float32", EPOCHS_ON_CPU)
    assert (
        "train.precision = float32, chosen when the run began, is kept; it would now be mixed_bfloat16" in caplog.text
    )


@pytest.mark.parametrize(
    ("first", "again", "expected"),
    [
        (["train.epochs=3"], ["train.epochs=5"], "started with train.epochs=3, now train.epochs=5; go on with 3, or"),
        (["train.seed=1"], [], "this run was started with train.seed=1, now train.seed=0"),
        ([], ["train.precision=mixed_float16"], "with train.precision='float32', now train.precision='mixed_float16'"),
        (
            [],
            ["data.path=training_set.npz"],
            "started with data.source='synthetic', now|data.path=None, now data.path=",
        ),
    ],
)
def test_a_different_command_is_refused(tmp_path: Path, first: list[str], again: list[str], expected: str) -> None:
    if any("data.path" in text for text in again):
        saved, _ = settle(tmp_path)
        cells(tmp_path / "training_set.npz")
        given = load_settings(None, again)
        with pytest.raises(UserError, match=f"runs/a: this run was {expected}"):
            keep_choices(given, resolve(given, CPU, {}, tmp_path)[0], saved, Path("runs/a"))
    else:
        with pytest.raises(UserError, match=expected):
            keep(tmp_path, first, again)


def test_a_cache_elsewhere_is_used(tmp_path: Path) -> None:
    """Node-local scratch has another name for each job."""
    settings = keep(tmp_path, ["data.cache_dir=/scratch/1"], ["data.cache_dir=/scratch/2"])
    assert settings.data.cache_dir == "/scratch/2"


def test_weights_at_another_place_are_used(tmp_path: Path) -> None:
    again = ["model.weights=/scratch/2/w.h5", "model.weights_dir=/scratch/2"]
    settings = keep(tmp_path, ["model.weights=/scratch/1/w.h5", "model.weights_dir=/scratch/1"], again)
    assert (settings.model.weights, settings.model.weights_dir) == ("/scratch/2/w.h5", "/scratch/2")


@pytest.mark.parametrize(("first", "again"), [("none", "imagenet"), ("imagenet", "w.h5"), ("w.h5", "none")])
def test_other_weights_are_another_run(tmp_path: Path, first: str, again: str) -> None:
    with pytest.raises(UserError, match="this run was started with model.weights="):
        keep(tmp_path, [f"model.weights={first}"], [f"model.weights={again}"])


def test_weights_that_were_staged_later_do_not_change_a_run(tmp_path: Path) -> None:
    saved, _ = settle(tmp_path)
    given = load_settings()
    now, _ = resolve(given, CPU, {}, tmp_path, lambda *_: Path("/weights/file.h5"))
    assert now.model.weights == "imagenet"
    assert keep_choices(given, now, saved, Path("runs/a")).model.weights == "none"


def test_cells_given_at_another_place_are_used(tmp_path: Path) -> None:
    one, two = cells(tmp_path / "job1" / "a.npz"), cells(tmp_path / "job2" / "a.npz")
    assert keep(tmp_path, [f"data.path={one}"], [f"data.path={two}"]).data.path == str(two)


def test_cells_that_were_found_are_kept_while_they_are_there(tmp_path: Path) -> None:
    """The variable names another set, but the command leaves the choice open and the run has made it."""
    found, other = cells(tmp_path / "training_set.npz"), cells(tmp_path / "other" / "a.npz")
    assert keep(tmp_path, [], [], data=str(other)).data.path == str(found)

    saved, _ = settle(tmp_path)
    found.unlink()
    given = load_settings()
    moved, _ = resolve(given, CPU, {"BLOODCELL_DATA": str(other)}, tmp_path)
    assert keep_choices(given, moved, saved, Path("runs/a")).data.path == str(other)


def test_drawn_cells_stay_drawn_cells(tmp_path: Path) -> None:
    saved, _ = settle(tmp_path)
    cells(tmp_path / "training_set.npz")
    given = load_settings()
    kept = keep_choices(given, resolve(given, CPU, {}, tmp_path)[0], saved, Path("runs/a"))
    assert (kept.data.source, kept.data.path) == ("synthetic", None)
