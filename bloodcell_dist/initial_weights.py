"""What a network begins with: the weight file that the settings ask for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from bloodcell_dist.errors import UserError
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import Finetune, Settings

log = logging.getLogger(__name__)


def initial_weights(settings: Settings, obtain: Callable[[str, str | None], Path]) -> Path | None:
    """The weight file that the settings ask for, None if they ask for none. Raises UserError if it is not there.

    Args:
        settings: resolved.
        obtain: gets the ImageNet weights of (backbone, model.weights_dir).
    """
    model = settings.model
    if model.weights == "none":
        _check_from_scratch(settings.finetune)
        return None
    if model.weights == "imagenet":
        return obtain(model.backbone, model.weights_dir)
    path = weight_file(model.weights)
    if not path.is_file():
        raise UserError(
            f"model.weights={model.weights}: there is no file {path}; expected a Keras .h5, .weights.h5 or .keras "
            "file, the folder of a finished run, imagenet, auto or none"
        )
    return path


def weight_file(given: str) -> Path:
    """The file that model.weights names: itself, or the model in a run's folder."""
    path = Path(given)
    return RunDir(path).model if path.is_dir() else path


def fingerprint_of(path: Path) -> str:
    """`model.keras, SHA-256 1f…`."""
    with open(path, "rb") as file:
        return f"{path.name}, SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _check_from_scratch(finetune: Finetune) -> None:
    """What only makes sense with given weights. UserError, or a warning."""
    if finetune.batchnorm == "freeze":
        raise UserError(
            "finetune.batchnorm=freeze with model.weights=none would keep the statistics of an untrained network; "
            "use finetune.batchnorm=train, or give weights"
        )
    if all(stage.train != "all" for stage in finetune.stages):
        raise UserError(
            "finetune.stages never trains all layers, and model.weights=none: part of the network would stay as it was "
            "drawn; add a stage with train: all, or give weights"
        )
    if finetune.stages[0].train != "all":
        log.warning("model.weights=none: the first stage trains on top of layers that have learned nothing yet")
