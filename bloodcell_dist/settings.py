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
    """auto tells by the path; without one: $BLOODCELL_DATA, ./training_set.npz, drawn cells."""
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
    """Where decoded sets are kept; null is the user's cache folder, off keeps none. $BLOODCELL_SCRATCH: a disk of the
    node to which they are copied from there."""
    clean: bool = True
    """Leave out exact duplicates and pictures that stand in several classes or many times in one."""
    val_fraction: Annotated[Float, Field(gt=0, lt=0.9)] = 0.1
    """Share of each class that is split off for validation."""
    folds: Annotated[Int, Field(ge=2)] | None = None
    """Cross-validation instead: the number of parts."""
    fold: Annotated[Int, Field(ge=0)] | None = None
    """Which of them is the validation part, from 0."""
    group_column: Text | None = None
    """Column (folder: groups.csv) or array (npz) that names what must not be split, a patient say."""
    group_near_duplicates: bool = True
    """Keep nearly equal pictures on one side of the split."""
    placement: Literal["auto", "device", "host"] = "auto"
    """Where the training pictures lie, as uint8: in each device's memory, or in one file for all ranks of a node; auto:
    on the device if they take at most a quarter of its free memory. The training is the same, bit for bit."""
    balance: Literal["none", "oversample", "class_weights"] = "none"
    """oversample repeats rare classes within an epoch; class_weights weighs their losses."""
    target_per_class: Positive | None = 5500
    """Examples of each class in an epoch under oversample; null is the largest class."""
    synthetic_examples: Annotated[Int, Field(ge=200)] = 3000
    """Size of the built-in drawn set; its test set is a quarter of that."""
    max_examples: Annotated[Int, Field(ge=16)] | None = None
    """Keep so many examples of training, validation and test set each, drawn evenly; for trying things out."""

    @model_validator(mode="after")
    def _fits_together(self) -> Data:
        if (self.folds is None) != (self.fold is None):
            raise ValueError("data.folds and data.fold go together, for example folds: 5 and fold: 0")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"data.fold={self.fold} is not in 0..{self.folds - 1} (data.folds={self.folds})")
        if self.source in ("npz", "medmnist", "folder") and self.path is None:
            raise ValueError(f"data.source={self.source} needs data.path, the file or folder with the cells")
        if self.source == "synthetic" and self.path is not None:
            raise ValueError(
                f"data.source=synthetic draws its cells, so data.path={self.path} would not be read; "
                "leave data.path out, or set data.source=auto"
            )
        if self.class_names is not None and len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"data.class_names has a name twice: {', '.join(self.class_names)}")
        if self.class_names is not None and len(self.class_names) < 2:
            raise ValueError("data.class_names needs at least two names")
        return self


class Augment(Section):
    """Random changes of the training pictures, drawn on the training device."""

    policy: Literal["none", "light", "seed", "robust"] = "light"
    """light: any orientation, mild stain changes; seed: what the original did, strong; robust: as light, with what
    another laboratory's stain, microscope, camera and files change."""
    engine: Literal["fused", "kerascv"] = "fused"
    """fused: ours, compiled and repeatable; kerascv: the stock layers, for reference."""
    magnitude: Annotated[Float, Field(ge=0, le=1)] | None = None
    """Strength of the changes, 0 to 1; none is the policy's own, 0.5."""


class Model(Section):
    """The network."""

    backbone: (
        Literal["auto", "cnn", "mobilenetv3small", "efficientnetb0"]
        | Literal["efficientnetv2s", "efficientnetv2m", "convnextbase"]
    ) = "auto"
    """auto is convnextbase with a GPU, mobilenetv3small without."""
    weights: Text = "auto"
    """imagenet, none, or a Keras weight file or run folder; auto: imagenet where it is staged, else none."""
    weights_dir: Text | None = None
    """Folder with ImageNet weight files (`bloodcell-dist weights fetch`); null is $BLOODCELL_WEIGHTS, if set."""
    input_size: Annotated[Int, Field(ge=16, le=1024)] | None = None
    """Side to which pictures are enlarged on the device, pixels; null leaves them as they are."""
    dropout: Fraction = 0.2
    """Share of features dropped before the head."""
    drop_path: Fraction = 0.0
    """Stochastic depth: how often the last residual block is left out; rises from 0 at the first one."""


class Stage(Section):
    """A part of the training in which certain layers learn."""

    share: Annotated[Float, Field(gt=0, le=1)]
    """Of train.epochs."""
    train: Annotated[str, Field(pattern=r"^(head|all|last:0?\.\d*[1-9]\d*)$")] = "all"
    """head, all, or last:0.4 for the last 40% of the blocks and the head."""
    rate: Annotated[Float, Field(gt=0)] = 1.0
    """Multiple of optimizer.learning_rate."""


class Finetune(Section):
    """Training in stages, and how fast which layers learn."""

    stages: tuple[Stage, ...] = (Stage(share=1.0),)
    """share: of train.epochs; train: head, last:0.4 or all; rate: x learning_rate. Each has a schedule of its own."""
    layer_decay: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Factor of the learning rate from each block to the one below it; 1 gives all the same."""
    batchnorm: Literal["train", "freeze"] = "train"
    """freeze keeps the backbone's BatchNorm layers as the weight file has them."""

    @model_validator(mode="after")
    def _adds_up(self) -> Finetune:
        if not self.stages:
            raise ValueError("finetune.stages=[] has no stage; expected at least [{share: 1, train: all}]")
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1) > 0.011:  # 0.33 three times is meant to be all
            raise ValueError(
                f"finetune.stages: the shares add up to {total:.3g}; expected 1, for example 0.2, 0.3 and 0.5"
            )
        return self


class Optimizer(Section):
    """Update rule, schedule and loss."""

    name: Literal["lion", "adamw", "sgd"] = "lion"
    """Update rule."""
    learning_rate: Annotated[Float, Field(gt=0)] = 3e-4
    """After the warm-up. Lion wants a third to a tenth of AdamW's."""
    weight_decay: NonNegative = 0.1
    """Decoupled: each update shrinks a weight by learning_rate x weight_decay; not for biases and norms."""
    momentum: Fraction = 0.9
    """Of sgd."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up: down to zero, or as it is."""
    warmup_epochs: NonNegative = 0.5
    """Epochs over which the learning rate rises, at most half of a stage; fractions are fine."""
    clip_norm: Annotated[Float, Field(gt=0)] | None = 1.0
    """Limit of the gradient's norm, over all weights; null for none."""
    label_smoothing: Fraction = 0.05
    """Share of each label spread over all classes."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Categorical, on soft labels."""
    focal_gamma: NonNegative = 2.0
    """Of the focal loss: how much less easy cells count."""
    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = 0.998
    """Of the moving average of weights that is evaluated and exported; null turns it off."""
    accumulate_steps: Positive = 1
    """Passes whose gradients are added up for one update, to save memory."""


class Train(Section):
    """Length, batch, seed and numerics."""

    epochs: Positive | Literal["auto"] = "auto"
    """auto is 30 with a GPU, 4 without."""
    max_steps: Positive | None = None
    """Ends the run after so many updates; the schedule still spans train.epochs."""
    global_batch_size: Positive = 64
    """Examples per update over all replicas and accumulation steps."""
    seed: Annotated[Int, Field(ge=0, lt=2**31)] = 0
    """Of everything random: split, order, initial weights, augmentation, dropout."""
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """auto: float32 on CPUs, mixed_bfloat16 on GPUs that compute it, else mixed_float16."""
    xla: Literal["auto", "on", "parts", "off"] = "auto"
    """on: the whole step; parts: augmentation and update, not the network; auto: on for GPUs, parts for CPUs."""
    deterministic: bool = True
    """Bit-identical runs; TensorFlow refuses operations that cannot promise it."""
    checks: bool = False
    """Check indices, labels, shapes and losses at every step (slow; part of --debug)."""
    eager: bool = False
    """Run without graphs, so that a debugger and print see every value (very slow)."""
    steps_per_call: Annotated[Int, Field(ge=1, le=64)] = 1
    """Updates per call of the compiled step: more hide the host's time on fast GPUs; stops are heeded between calls."""
    xla_cache_dir: Text | None = None
    """Folder in which XLA keeps compiled programs for the next start and the other ranks; null keeps none."""


class Distribute(Section):
    """How replicas work together; the training is the same, so a run may go on with other values."""

    strategy: Literal["auto", "single", "mirrored", "multiworker", "horovod"] = "auto"
    """auto: what the launcher started (horovodrun, TF_CONFIG), else mirrored with several GPUs, else single."""
    devices: Positive | None = None
    """mirrored: GPUs to use, null for all; without GPUs, logical devices that share the CPU."""
    gradient_compression: Literal["none", "float16"] = "none"
    """float16 halves what the all-reduce sends, and scales the loss as mixed_float16 does."""
    timeout_s: Annotated[Float, Field(ge=2)] = 60.0
    """A rank that is not heard of for so long counts as lost, and the others end; seconds."""


class Checkpoint(Section):
    """When the state of a run is saved; besides, at the end of every epoch."""

    every_steps: Positive | None = None
    """Save after so many updates too; null: at the ends of epochs only."""
    keep: Positive = 2
    """How many of the newest stay."""
    on_signal: Literal["USR1", "USR2", "TERM"] = "USR1"
    """Signal that saves a checkpoint and ends the run with exit status 75; TERM and Ctrl-C do so too."""


class Evaluate(Section):
    """How the result is measured."""

    batch_size_per_replica: Positive = 256
    """Pictures per pass."""
    bootstrap: Annotated[Int, Field(ge=0)] = 1000
    """Resamples for the 95% intervals of the test metrics; 0 leaves them out."""
    select_by: Literal["macro_f1", "accuracy", "balanced_accuracy", "auc", "loss"] = "macro_f1"
    """Validation metric that names the best epoch."""


class Settings(Section):
    """All settings of one run."""

    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    finetune: Finetune = Finetune()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    distribute: Distribute = Distribute()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
