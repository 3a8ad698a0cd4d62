"""A finished run as a function from pictures to probabilities."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np

from bloodcell_dist.config import load_settings
from bloodcell_dist.data.rows import Images
from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.predict import make_forward, predict
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.settings import Settings


class Predictor:
    """The selected model of a finished run.

    Args:
        folder: of the run. UserError if it is none, or not finished.

    Attributes:
        run: the run's folder.
        settings: of the run; its `data` section says how pictures were cut and scaled.
        class_names: in label order.
    """

    def __init__(self, folder: str | Path) -> None:
        self.run = RunDir(Path(folder))
        if not self.run.config.exists():
            raise UserError(f"{folder}: is not a run folder (no config.yaml); give the folder of a finished run")
        if not self.run.result.exists():
            raise UserError(f"{folder}: this run is not finished (no result.json); run its training command again")
        self.settings: Settings = load_settings(self.run.config)
        self.class_names = tuple(json.loads(self.run.result.read_text(encoding="utf-8"))["class_names"])
        try:
            model = keras.saving.load_model(self.run.model, compile=False)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.run.model}: cannot be read as a Keras model ({error})") from None
        self._forward = make_forward(model, logits=False, xla=False)

    def probabilities(self, images: Images) -> np.ndarray:
        """float32 [N, C] for uint8 [N, image_size, image_size, 3]."""
        return predict(self._forward, images, self.settings.evaluate.batch_size_per_replica)
