"""The settings of a run as frozen, checked sections; `config.py` reads them.

The key names are fixed, so that configurations keep working. `auto` values are replaced in `resolve.py`, which knows
the machine.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

BLOOD_CELLS = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
METRICS = ("loss", "accuracy", "precision", "recall", "auc", "macro_f1", "balanced_accuracy")


def _number(value: object) -> object:
    """Refuses what pydantic would make a number of: `true` is no 1, and text is a mistake."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number", "input should be a number")
    return value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[Int, Field(gt=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
NonNegative = Annotated[Float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know and text where a number belongs."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )


class Data(Section):
    """Where the cells come from and how they are cleaned, split and balanced."""

    source: Literal["auto", "npz", "medmnist", "folder", "synthetic"] = "auto"
    path: Text | None = None
    """File or folder of the training cells."""
    test_path: Text | None = None
    """An independent test set, never used for choosing anything."""
    class_names: tuple[Text, ...] | None = None
    """Names in label order; none takes the eight blood cells, or a folder's own names."""
    image_size: Annotated[Int, Field(ge=16, le=1024)] = 96
    """Side of the square pictures, pixels."""
    crop: Positive | None = None
    """Central crop in pixels before resizing (PBC pictures: 200)."""
    cache_dir: Text | None = None
    """Where decoded sets are kept; none is the user's cache folder."""
    clean: bool = True
    val_fraction: Annotated[Float, Field(gt=0, lt=0.9)] = 0.1
    folds: Annotated[Int, Field(ge=2)] | None = None
    fold: Annotated[Int, Field(ge=0)] | None = None
    group_column: Text | None = None
    """Column (folder: groups.csv) or array (npz) that names what must not be split, a patient say."""
    group_near_duplicates: bool = True
    balance: Literal["none", "oversample", "class_weights"] = "none"
    target_per_class: Positive | None = 5500
    """Examples of each class in an epoch under oversample; null is the largest class."""
    synthetic_examples: Annotated[Int, Field(ge=200)] = 3000
    """Size of the built-in drawn set; its test set is a quarter of that."""
    max_examples: Annotated[Int, Field(ge=16)] | None = None
    """Keep so many examples of training, validation and test set each, drawn evenly; for trying things out."""

    @model_validator(mode="after")
    def _folds_and_fold(self) -> Data:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("data.folds and data.fold go together, for example folds: 5 and fold: 0")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"data.fold={self.fold} is not in 0..{self.folds - 1} (data.folds={self.folds})")
        if self.source in ("npz", "medmnist", "folder") and self.path is None:
            raise ValueError(f"data.source={self.source} needs data.path, the file or folder with the cells")
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"data.class_names has a name twice: {', '.join(self.class_names)}")
        if self.class_names is not None and len(self.class_names) < 2:
            raise ValueError("data.class_names needs at least two names")
        return self


class Augment(Section):
    """Random changes of the training pictures, drawn on the training device."""

    policy: Literal["none", "light", "seed"] = "light"
    engine: Literal["fused", "kerascv"] = "fused"
    magnitude: Annotated[Float, Field(ge=0, le=1)] | None = None
    """Strength of the changes, 0 to 1; none is the policy's own, 0.5."""


class Model(Section):
    """The network."""

    backbone: Literal["auto", "cnn", "mobilenetv3small"] = "auto"
    dropout: Fraction = 0.2


class Optimizer(Section):
    """Update rule, schedule and loss."""

    name: Literal["lion", "adamw", "sgd"] = "lion"
    learning_rate: Annotated[Float, Field(gt=0)] = 3e-4
    weight_decay: NonNegative = 0.1
    """Decoupled: each update shrinks a weight by learning_rate x weight_decay; not for biases and norms."""
    momentum: Fraction = 0.9
    """Of sgd."""
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NonNegative = 0.5
    clip_norm: Annotated[Float, Field(gt=0)] | None = 1.0
    label_smoothing: Fraction = 0.05
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NonNegative = 2.0
    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = 0.998
    """Of the moving average of weights that is evaluated and exported; null turns it off."""
    accumulate_steps: Positive = 1


class Train(Section):
    """Length, batch, seed and numerics."""

    epochs: Positive | Literal["auto"] = "auto"
    max_steps: Positive | None = None
    """Ends the run after so many updates; the schedule still spans train.epochs."""
    global_batch_size: Positive = 64
    """Examples per update over all replicas and accumulation steps."""
    seed: Annotated[Int, Field(ge=0, lt=2**31)] = 0
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    xla: Literal["auto", "on", "parts", "off"] = "auto"
    """on: the whole step; parts: augmentation and update, not the network; auto: on for GPUs, parts for CPUs."""
    deterministic: bool = True
    """Bit-identical runs; TensorFlow refuses operations that cannot promise it."""
    checks: bool = False
    """Check indices, labels, shapes and losses at every step (slow; part of --debug)."""
    eager: bool = False
    """Run without graphs, so that a debugger and print see every value (very slow)."""


class Distribute(Section):
    """How replicas work together."""

    strategy: Literal["auto", "single"] = "auto"


class Checkpoint(Section):
    """When the state of a run is saved; besides, at the end of every epoch."""

    every_steps: Positive | None = None
    keep: Positive = 2
    on_signal: Literal["USR1", "USR2", "TERM"] = "USR1"
    """Signal that saves a checkpoint and ends the run with exit status 75; TERM and Ctrl-C do so too."""


class Evaluate(Section):
    """How the result is measured."""

    batch_size_per_replica: Positive = 256
    bootstrap: Annotated[Int, Field(ge=0)] = 1000
    """Resamples for the 95% intervals of the test metrics; 0 leaves them out."""
    select_by: Literal["macro_f1", "accuracy", "balanced_accuracy", "auc", "loss"] = "macro_f1"
    """Validation metric that names the best epoch."""


class Settings(Section):
    """All settings of one run."""

    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    distribute: Distribute = Distribute()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
