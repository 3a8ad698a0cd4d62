"""What `bloodcell-dist models` does: the backbones side by side, to choose one that fits the machine."""

from __future__ import annotations

import logging
from typing import Any

from bloodcell_dist import runtime  # noqa: F401  before Keras: it imports TensorFlow quietly
from bloodcell_dist.models.backbones import BACKBONES, HEAD, build_classifier
from bloodcell_dist.models.cost import forward_flops, training_bytes, without_values
from bloodcell_dist.models.imagenet import HAS_IMAGENET, find
from bloodcell_dist.settings import BLOOD_CELLS

log = logging.getLogger(__name__)

SIZES = (96, 224)  # pixels: the original's pictures, and those at which papers compare ImageNet networks
BATCH_SIZE = 32
BFLOAT16 = 2  # bytes

ABOUT = (
    "weights: without the classification head",
    "GFLOPs: forward pass of one picture, a multiply-add counts as 2 operations",
    f"memory: to train with {BATCH_SIZE} pictures per replica, mixed_bfloat16, Lion and averaged weights, an estimate;",
    "        compared with measurements on CPUs only; the runtime and the training pictures come on top",
)
HEADINGS = f"{'weights':>25}  {'GFLOPs':>16}  {'memory, GiB':>16}{'smallest':>10}  ImageNet weights"


def show_models(weights_dir: str | None) -> None:
    """Show what each backbone costs and whether its ImageNet weights are on this machine, line by line as it is found.

    Args:
        weights_dir: folder in which weight files are looked for first, as the setting model.weights_dir.
    """
    for line in (*ABOUT, "", HEADINGS):
        log.info(line)
    units = [f"{size} px" for size in SIZES]
    log.info(_line("backbone", "M", *units, *units, "px", "found").rstrip())
    for backbone, known in BACKBONES.items():
        with without_values():
            models = [_build(backbone, size) for size in SIZES]
            weights = models[0].count_params() - models[0].get_layer(HEAD).count_params()
            flops = [forward_flops(model) for model in models]
            memory = [training_bytes(model, batch_size=BATCH_SIZE, bytes_per_value=BFLOAT16) for model in models]
        costs = [f"{weights / 1e6:.2f}", *(f"{n / 1e9:.3f}" for n in flops), *(f"{n / 2**30:.1f}" for n in memory)]
        log.info(_line(backbone, *costs, str(known.smallest), _staged(backbone, weights_dir)))


def _build(backbone: str, image_size: int) -> Any:
    return build_classifier(backbone, image_size=image_size, num_classes=len(BLOOD_CELLS), dropout=0.2, seed=0)


def _staged(backbone: str, weights_dir: str | None) -> str:
    """The folder of the backbone's weight file, in words."""
    if backbone not in HAS_IMAGENET:
        return "there are none"
    path = find(backbone, weights_dir)
    return "not here" if path is None else f"in {path.parent}"


def _line(backbone: str, weights: str, *rest: str) -> str:
    flops, memory, (smallest, staged) = rest[:2], rest[2:4], rest[4:]
    columns = [f"{backbone:<17}{weights:>8}", "  ", *(f"{text:>8}" for text in flops), "  "]
    return "".join([*columns, *(f"{text:>8}" for text in memory), f"{smallest:>10}", "  ", staged])
