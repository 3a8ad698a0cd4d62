"""How a run begins: its settings, its folder, its cells. Takes the settings apart into plain values."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloodcell_dist import logs
from bloodcell_dist.atomic import atomic_write_json, atomic_write_text
from bloodcell_dist.cluster.workers import Workers
from bloodcell_dist.config import dump_yaml, from_text, load_settings, replace, to_text
from bloodcell_dist.data.prepare import Prepared, Source, prepare
from bloodcell_dist.errors import UserError, exit_status_of
from bloodcell_dist.initial_weights import fingerprint_of, weight_file
from bloodcell_dist.resolve import Machine, keep_choices, resolve
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import Distribute, Settings

log = logging.getLogger(__name__)

INITIAL_WEIGHTS = "initial weights"

STATES = {0: "done", 2: "bad input", 3: "training failed", 75: "stopped, checkpoint saved", 130: "interrupted"}


def settle(
    given: Settings, machine: Machine, staged: Callable[[str, str | None], Path | None] = lambda *_: None
) -> tuple[Settings, list[str]]:
    """The settings without `auto` in this process's environment and working folder, and a line for each choice.

    `staged` finds the ImageNet weights of (backbone, model.weights_dir); commands that build no network leave it out.
    """
    return resolve(given, machine, os.environ, Path.cwd(), staged)


def run_folder(asked: str | None, given: Settings, settings: Settings, debug: bool) -> RunDir:
    """The folder asked for, or one below runs/ named by the settings, so that the same command finds it again.

    $BLOODCELL_RUNS stands in for runs/ in the working folder.
    The name does not depend on the machine or the launcher: a job that comes back on other nodes, with other scratch or
    another kind or number of GPUs, goes on in the same folder. Debug runs are for looking at, not for continuing: each
    gets its own.
    """
    if asked is not None:
        return RunDir(Path(asked))
    runs = Path(os.environ.get("BLOODCELL_RUNS") or "runs")
    if debug:
        return RunDir(runs / time.strftime("debug-%Y%m%d-%H%M%S"))
    places = {f"data.{name}": getattr(settings.data, name) for name in ("path", "test_path")}
    places["model.weights"] = given.model.weights
    names = {key: place and Path(place).absolute().name for key, place in places.items()}
    anywhere = {"data.cache_dir": None, "data.placement": "auto", "model.weights_dir": None}
    chosen = {**anywhere, "data.source": settings.data.source, **names}
    anyhow = replace(given, chosen).model_copy(update={"distribute": Distribute()})
    digest = hashlib.sha256(dump_yaml(anyhow).encode()).hexdigest()[:8]
    return RunDir(runs / f"{settings.model.backbone}-{digest}")


def open_run(stack: contextlib.ExitStack, run: RunDir, given: Settings, settings: Settings) -> tuple[Settings, bool]:
    """Take up a run that has begun: lock it, go on with its settings. (settings to use, whether it had begun).

    A folder that holds no run yet is only looked at, so that nothing is left behind if the settings or the cells
    turn out wrong. The lock is held until the stack closes.
    """
    if not run.config.exists():
        run.check()
        return settings, False
    _enter(stack, run)
    saved = load_settings(run.config)
    settings = _with_same_weights(run, keep_choices(given, settings, saved, run.path), saved)
    if settings != saved and not run.result.exists():
        run.write_config(dump_yaml(settings))
    stack.enter_context(_recorded_ending(run))
    return settings, True


def _with_same_weights(run: RunDir, settings: Settings, saved: Settings) -> Settings:
    """The settings, naming the weight file at its new place if that is there; UserError if it is another file.

    Every run's export is called model.keras, so a name says little.
    """
    if settings.model.weights == saved.model.weights:
        return settings
    file = weight_file(settings.model.weights)
    if not file.is_file():
        return replace(settings, {"model.weights": saved.model.weights})
    before, now = json.loads(run.data.read_text()).get(INITIAL_WEIGHTS), fingerprint_of(file)
    if now != before:
        raise UserError(_not_the_same(run, INITIAL_WEIGHTS, before, now))
    return settings


def begin_run(
    stack: contextlib.ExitStack, run: RunDir, settings: Settings, data: Prepared, weights: Path | None = None
) -> None:
    """Make the folder of a new run and put its cells' and weights' fingerprints and its settings there.

    It is locked until the stack closes.
    """
    _enter(stack, run)
    if run.config.exists():
        raise UserError(f"{run.path}: another process began this run at the same moment; run the command again")
    atomic_write_json(run.data, fingerprints(data, weights))
    run.write_config(dump_yaml(settings))
    stack.enter_context(_recorded_ending(run))


def check_begun(run: RunDir, data: Prepared, weights: Path | None = None) -> None:
    """UserError if the cells, or initial weights that are loaded again, are not those the run began with."""
    before, now = json.loads(run.data.read_text()), fingerprints(data, weights)
    for name, content in now.items():
        if content != before.get(name):
            raise UserError(_not_the_same(run, name, before.get(name), content))


def _not_the_same(run: RunDir, name: str, before: str | None, now: str) -> str:
    return (
        f"{run.path}: the {name} are not those this run began with ({before}, now {now}); "
        "put the old ones back, or give another --run-dir for a new run"
    )


def fingerprints(data: Prepared, weights: Path | None = None) -> dict[str, str]:
    """What a run begins with, in a few words and digits: `597 examples, SHA-256 1f…`."""
    sets = {"training cells": data.train, "validation cells": data.val, "test cells": data.test}
    found = {
        name: "none" if cells is None else f"{cells.num_examples} examples, SHA-256 {cells.fingerprint()}"
        for name, cells in sets.items()
    }
    return found if weights is None else {**found, INITIAL_WEIGHTS: fingerprint_of(weights)}


def _enter(stack: contextlib.ExitStack, run: RunDir) -> None:
    """Lock a run and log into it until the stack closes."""
    run.create()
    stack.enter_context(run.lock())
    stack.enter_context(logs.log_file(run.log))


@dataclass(frozen=True)
class Opened:
    """What the chief has found, and all workers go by.

    Attributes:
        settings: to train with.
        run: the folder.
        begun: whether the run had begun before.
        finished: whether there is nothing left to do.
    """

    settings: Settings
    run: RunDir
    begun: bool
    finished: bool

    def to_json(self) -> dict[str, Any]:
        """For the other workers."""
        text = to_text(self.settings)
        return {"settings": text, "run": str(self.run.path), "begun": self.begun, "finished": self.finished}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Opened:
        """What the chief wrote."""
        return cls(from_text(found["settings"]), RunDir(Path(found["run"])), found["begun"], found["finished"])


def check_same_cells(workers: Workers, data: Prepared) -> None:
    """UserError if a worker has other cells than the chief. A collective."""
    mine = hashlib.sha256(json.dumps(fingerprints(data), sort_keys=True).encode()).hexdigest()
    found = workers.each(mine)
    other = [rank for rank, digest in enumerate(found) if digest != found[0]]
    if other:
        raise UserError(
            f"the cells that rank {', '.join(map(str, other))} reads are not those of rank 0; "
            "put the same files at the same place on all nodes"
        )


def record_ending(run: RunDir, exit_status: int, message: str) -> None:
    """Say in status.json how a run ended; a full disk must not hide the reason."""
    with contextlib.suppress(OSError):
        state = STATES.get(exit_status, "failed")
        atomic_write_json(run.status, {"state": state, "exit_status": exit_status, "message": message})


def record_loss(run: RunDir, exit_status: int, message: str) -> None:
    """Say in the log and in status.json why this process is ended in mid-step; on another rank if the chief is lost."""
    with contextlib.suppress(OSError):
        logs.append_error(run.log, message)
    record_ending(run, exit_status, message)


@contextlib.contextmanager
def _recorded_ending(run: RunDir) -> Iterator[None]:
    """Keep status.json: launchers change exit statuses, this file carries the reason past them."""
    atomic_write_json(run.status, {"state": "running", "exit_status": None, "message": ""})
    _tell_launcher(run)
    exit_status, message = 0, ""
    try:
        yield
    except BaseException as error:
        exit_status = exit_status_of(error)
        message = str(error) or type(error).__name__
        log.error(message, extra=logs.FILE_ONLY)  # the command line prints it
        raise
    finally:
        record_ending(run, exit_status, message)


def _tell_launcher(run: RunDir) -> None:
    """Name the run folder to slurm/lib/job.sh, which looks there for the exit status and for new checkpoints."""
    if record := os.environ.get("BLOODCELL_RECORD"):
        with contextlib.suppress(OSError):
            atomic_write_text(f"{record}.run", str(run.path.absolute()))


def repeatable(settings: Settings, num_gpus: int) -> bool:
    """Whether TensorFlow is to promise equal bits: where it is asked to and does not refuse the training for it.

    It has no such gradient of depthwise convolutions in its own GPU kernels (tensorflow/community#386); XLA has.
    """
    asked = settings.train.deterministic and settings.augment.engine == "fused"
    if asked and num_gpus and settings.train.xla != "on" and settings.model.backbone != "cnn":
        log.warning("on a GPU without train.xla=on this network does not train bit-identically")
        return False
    return asked


def load_data(settings: Settings) -> Prepared:
    """The cells of a run, loaded, cleaned and split."""
    data = settings.data
    return prepare(
        Source(
            source=data.source,
            path=data.path,
            test_path=data.test_path,
            class_names=data.class_names,
            image_size=data.image_size,
            crop=data.crop,
            cache_dir=_cache_folder(data.cache_dir),
            group_column=data.group_column,
            synthetic_examples=data.synthetic_examples,
            scratch_dir=os.environ.get("BLOODCELL_SCRATCH") or None,
        ),
        clean_first=data.clean,
        group_near_duplicates=data.group_near_duplicates,
        val_fraction=data.val_fraction,
        fold=data.fold,
        folds=data.folds,
        max_examples=data.max_examples,
        seed=settings.train.seed,
    )


def _cache_folder(asked: str | None) -> str | None:
    """Where decoded sets are kept, None for nowhere. A home that cannot be written to is no reason not to train."""
    if asked is not None:
        return None if asked == "off" else asked
    folder = default_cache()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        log.warning("%s cannot hold a cache (%s): decodes into memory; set data.cache_dir", folder, error.strerror)
        return None
    return folder


def default_cache() -> str:
    """Where decoded sets are kept unless data.cache_dir says otherwise: the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return str(Path(base, "bloodcell_dist"))
