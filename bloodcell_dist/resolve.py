"""What `auto` means here and now: choices from the machine, the environment and the working folder.

Each choice is one line that says what and why. A run keeps the choices of its first start for life, so that it goes on
the same after moving to another machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloodcell_dist.cluster.environment import ALONE, ProcessInfo
from bloodcell_dist.cluster.fitting import fitting_strategy, remedy
from bloodcell_dist.config import differences, replace
from bloodcell_dist.data.sources import detect_source
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Settings

log = logging.getLogger(__name__)

_CELLS = ("data.path", "data.test_path")
_FREE = (
    *("checkpoint.every_steps", "checkpoint.keep", "checkpoint.on_signal"),
    *("train.checks", "train.steps_per_call", "train.xla_cache_dir", "evaluate.bootstrap", "data.placement"),
)
"""Settings that change nothing about the training, so a run may go on with others."""

WEIGHTS_BY_NAME = ("auto", "imagenet", "none")
"""What model.weights may be besides a path."""

EPOCHS_ON_GPU = 30
EPOCHS_ON_CPU = 4


@dataclass(frozen=True)
class Machine:
    """What the choices depend on.

    Attributes:
        num_gpus: GPUs TensorFlow sees.
        bfloat16: whether they compute in bfloat16 natively (compute capability 8.0 and newer).
        process: this one among those of its launcher.
        horovod: whether Horovod is installed.
    """

    num_gpus: int
    bfloat16: bool = False
    process: ProcessInfo = ALONE
    horovod: bool = True


@dataclass
class _Choices:
    """Changes to the settings and the reason for each."""

    changes: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def take(self, key: str, value: Any, why: str) -> None:
        """Set a key and tell why."""
        self.changes[key] = value
        self.lines.append(f"{key} = {value}: {why}")


def resolve(
    settings: Settings,
    machine: Machine,
    environ: Mapping[str, str],
    folder: Path,
    staged: Callable[[str, str | None], Path | None] = lambda *_: None,
) -> tuple[Settings, list[str]]:
    """Settings without `auto`, with absolute paths, and one line for each choice.

    data.placement stays: it goes by the size of the set and the memory that is free at each start.

    Args:
        settings: as given by the user.
        machine: what TensorFlow sees.
        environ: environment variables; `BLOODCELL_DATA` is looked at.
        folder: the working folder.
        staged: the file with the ImageNet weights of (backbone, model.weights_dir), None if it is not on this machine.
    """
    choices = _Choices()
    _choose_data(settings, environ, folder, choices)
    _choose_model(settings, machine, folder, staged, choices)
    if settings.train.epochs == "auto":
        epochs = EPOCHS_ON_GPU if machine.num_gpus else EPOCHS_ON_CPU
        why = "the usual length" if machine.num_gpus else "no GPU here, so a short run; set train.epochs for a real one"
        choices.take("train.epochs", epochs, why)
    _choose_numerics(settings, machine, choices)
    _choose_strategy(settings, machine, choices)
    return replace(settings, choices.changes), choices.lines


def keep_choices(given: Settings, resolved: Settings, saved: Settings, run_folder: Path) -> Settings:
    """The saved settings of a run, if the command given agrees with them; UserError names what differs.

    Where the command leaves a choice open (`auto`), the run keeps the one it made at its start, and a line in the log
    tells what it would be now. What does not touch the training follows the command, and so do places, since a job's
    scratch folder has another name each time; that the same cells lie there is told by their fingerprints.
    """
    moved: dict[str, Any] = {}
    same_source = resolved.data.source == saved.data.source
    for key, new, old in differences(resolved, saved):
        is_place = (
            key in ("data.cache_dir", "model.weights_dir")
            or (key in _CELLS and bool(new and old) and same_source)
            or (key == "model.weights" and not {new, old} & set(WEIGHTS_BY_NAME))
        )
        free = is_place or key in _FREE or key.startswith("distribute.")
        if _is_open(key, given) and key != "distribute.strategy" and not (is_place and not Path(old).exists()):
            log.info("%s = %s, chosen when the run began, is kept; it would now be %s", key, old, new)
        elif free:
            log.info("%s is now %s, it was %s", key, new, old)
            moved[key] = new
        else:
            raise UserError(
                f"{run_folder}: this run was started with {key}={old!r}, now {key}={new!r}; "
                f"go on with {old!r}, or give another --run-dir for a new run"
            )
    return replace(saved, moved)


def _is_open(key: str, given: Settings) -> bool:
    """Whether the command leaves the choice of a key to `resolve`."""
    if key == "data.path":
        return given.data.source == "auto" and given.data.path is None
    section, name = key.split(".")
    return bool(getattr(getattr(given, section), name) == "auto")


def _choose_model(
    settings: Settings,
    machine: Machine,
    folder: Path,
    staged: Callable[[str, str | None], Path | None],
    choices: _Choices,
) -> None:
    model, backbone = settings.model, settings.model.backbone
    if backbone == "auto":
        backbone = "convnextbase" if machine.num_gpus else "mobilenetv3small"
        why = (
            "the best of the six on a GPU; configs/convnextbase.yaml has a recipe for it"
            if machine.num_gpus
            else "no GPU here, and it is the smallest of the six"
        )
        choices.take("model.backbone", backbone, why)
    directory = model.weights_dir and absolute(model.weights_dir, folder)
    if directory:
        choices.changes["model.weights_dir"] = directory
    weights = model.weights
    if weights == "auto" and backbone == "cnn":  # there are none for it
        choices.changes["model.weights"] = weights = "none"
    elif weights == "auto":
        file = staged(backbone, directory)
        weights = "imagenet" if file else "none"
        why = f"no ImageNet weights here, so FROM SCRATCH; `bloodcell-dist weights fetch {backbone}` gets them"
        choices.take("model.weights", weights, str(file) if file else why)
    elif weights not in WEIGHTS_BY_NAME:
        choices.changes["model.weights"] = absolute(weights, folder)


def _choose_data(settings: Settings, environ: Mapping[str, str], folder: Path, choices: _Choices) -> None:
    data = settings.data
    for name in ("path", "test_path", "cache_dir"):
        value = getattr(data, name)
        if value is not None and (name, value) != ("cache_dir", "off"):
            choices.changes[f"data.{name}"] = absolute(value, folder)
    if data.source != "auto":
        return
    if data.path is not None:
        path, why = data.path, "told by its content"
    elif environ.get("BLOODCELL_DATA"):
        path, why = environ["BLOODCELL_DATA"], "from $BLOODCELL_DATA"
    elif (folder / "training_set.npz").exists():
        path, why = "training_set.npz", "found in the working folder"
    else:
        why = "neither data.path nor $BLOODCELL_DATA nor a training_set.npz here; DRAWN cells, not real ones"
        choices.take("data.source", "synthetic", why)
        return
    path = absolute(path, folder)
    try:
        source = detect_source(path)
    except UserError as error:
        raise UserError(str(error) if data.path else f"{error} ({why})") from None
    choices.changes["data.path"] = path
    choices.take("data.source", source, f"{path}, {why}")


def _choose_strategy(settings: Settings, machine: Machine, choices: _Choices) -> None:
    asked, process = settings.distribute.strategy, machine.process
    name, why = fitting_strategy(process, machine.num_gpus, asked, horovod=machine.horovod)
    alone_by = {"horovod": ("horovod", "openmpi"), "multiworker": ("tf_config",)}.get(asked, ())
    if asked == "auto":
        choices.take("distribute.strategy", name, why)
    elif process.world_size == 1 and process.launcher in alone_by:
        choices.take("distribute.strategy", name, f"{process.launcher} names this one process only")
    elif asked != name and not (process.world_size == 1 and asked in ("single", "mirrored")):
        raise UserError(f"distribute.strategy={asked} does not fit: {why}; {remedy(asked, name)}")


def absolute(path: str, folder: Path) -> str:
    """A path as the user means it: `~` is the home folder, and relative ones start in the working folder."""
    return os.path.abspath(folder / os.path.expanduser(path))


def _choose_numerics(settings: Settings, machine: Machine, choices: _Choices) -> None:
    if settings.train.precision == "auto":
        if not machine.num_gpus:
            choices.take("train.precision", "float32", "no GPU here")
        elif machine.bfloat16:
            choices.take("train.precision", "mixed_bfloat16", "the GPU computes bfloat16, which needs no loss scaling")
        else:
            choices.take("train.precision", "mixed_float16", "the GPU has no bfloat16")
    if settings.train.xla == "auto":
        if machine.num_gpus:
            choices.take("train.xla", "on", "a GPU is here")
        else:
            choices.take("train.xla", "parts", "on CPUs XLA speeds up augmentation and update, but slows convolutions")
