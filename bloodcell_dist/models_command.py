"""What `bloodcell-dist models` does: the backbones side by side, to choose one that fits the machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly

# isort: split
import keras

from bloodcell_dist.models.backbones import BACKBONES, HEAD, build_classifier
from bloodcell_dist.models.cost import forward_flops, training_bytes
from bloodcell_dist.settings import BLOOD_CELLS

log = logging.getLogger(__name__)

SIZES = (96, 224)  # pixels: the original's pictures, and those that the ImageNet weights were trained on
BATCH_SIZE = 32
BFLOAT16 = 2  # bytes

ABOUT = (
    "weights: without the classification head",
    "GFLOPs: forward pass of one picture, a multiply-add counts as 2 operations",
    f"memory: estimate for a training step with {BATCH_SIZE} pictures per replica, mixed_bfloat16, Lion, averaged weights",
)


def show_models(weights_dir: str | None) -> None:
    """Show what each backbone costs and whether its ImageNet weights are on this machine, a line as soon as it is known.

    Args:
        weights_dir: where the weights are looked for first, as the setting model.weights_dir; None is its default.
    """
    for line in (*ABOUT, "", _line("", "weights", "GFLOPs", "", "memory, GiB", "", "smallest", "ImageNet weights")):
        log.info(line)
    units = [f"{size} px" for size in SIZES]
    log.info(_line("backbone", "M", *units, *units, "px", "").rstrip())
    for backbone, known in BACKBONES.items():
        with _without_values():
            models = [_build(backbone, size) for size in SIZES]
            weights = models[0].count_params() - models[0].get_layer(HEAD).count_params()
            flops = [forward_flops(model) for model in models]
            memory = [training_bytes(model, batch_size=BATCH_SIZE, bytes_per_value=BFLOAT16) for model in models]
        costs = [f"{weights / 1e6:.2f}", *(f"{n / 1e9:.2f}" for n in flops), *(f"{n / 2**30:.1f}" for n in memory)]
        log.info(_line(backbone, *costs, str(known.smallest), _staged(backbone, weights_dir)))


def _build(backbone: str, image_size: int) -> keras.Model:
    return build_classifier(
        backbone, image_size=image_size, num_classes=len(BLOOD_CELLS), dropout=0.2, total_steps=1, seed=0
    )


@contextmanager
def _without_values() -> Iterator[None]:
    """Networks built inside have shapes, but their weights no values: these would take 45 s and 2.7 GB.

    Keras' global state is as new afterwards; otherwise it would draw the values when it builds the next network.
    """
    policy = keras.config.dtype_policy()
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        keras.utils.clear_session()
        keras.config.set_dtype_policy(policy)


def _staged(backbone: str, weights_dir: str | None) -> str:
    """The folder of the backbone's weight file, in words."""
    from bloodcell_dist.models import imagenet

    if backbone not in imagenet.HAS_IMAGENET:
        return "there are none"
    path = imagenet.find(backbone, weights_dir)
    return "not here" if path is None else f"in {path.parent}"


def _line(backbone: str, weights: str, *rest: str) -> str:
    flops, memory, (smallest, staged) = rest[:2], rest[2:4], rest[4:]
    columns = [f"{backbone:<17}{weights:>8}", "  ", *(f"{text:>8}" for text in flops), "  "]
    return "".join([*columns, *(f"{text:>8}" for text in memory), f"{smallest:>10}", "  ", staged])
