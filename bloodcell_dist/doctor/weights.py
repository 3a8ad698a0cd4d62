"""The weights that the network is to begin with: there, whole, and the right ones."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from bloodcell_dist.doctor.facts import Facts, in_words
from bloodcell_dist.doctor.findings import Finding, error, ok, warning
from bloodcell_dist.errors import UserError
from bloodcell_dist.initial_weights import weight_file
from bloodcell_dist.models.weight_folders import find_named, weight_folders

# Keras itself knows the names, but takes seconds to be asked; a test compares them.
FILES = {
    "mobilenetv3small": ("weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5", 3.7e6),
    "efficientnetb0": ("efficientnetb0_notop.h5", 16.0e6),
    "efficientnetv2s": ("efficientnetv2-s_notop.h5", 81.0e6),
    "efficientnetv2m": ("efficientnetv2-m_notop.h5", 212.0e6),
    "convnextbase": ("convnext_base_notop.h5", 350.0e6),
}
"""Name of the ImageNet file without head, and the bytes of its weights alone: it cannot be smaller."""


class Weights(Facts):
    """What the settings ask for and what is there.

    Attributes:
        asked: model.weights as given: auto, imagenet, none or a path.
        backbone: by name.
        folder: where a missing ImageNet file would go.
        path: the file; None if it is not there, or none is wanted.
        size: of the file, bytes.
        is_right: whether its hash is that of Keras; None where it was not compared.
        problem: why it cannot be read.
    """

    asked: str
    backbone: str
    folder: str = ""
    path: str | None = None
    size: int = 0
    is_right: bool | None = None
    problem: str | None = None


def look_at_weights(
    asked: str,
    backbone: str,
    weights_dir: str | None,
    environ: Mapping[str, str],
    has_right_hash: Callable[[str, Path], bool] | None = None,
) -> Weights:
    """Where the file is. `has_right_hash`: compares the file of a backbone with what Keras says, if it is to be."""
    known = Weights(asked=asked, backbone=backbone, folder=str(weight_folders(weights_dir, environ)[0]))
    by_name = asked in ("auto", "imagenet")
    if asked == "none" or (by_name and backbone not in FILES):
        return known
    try:
        path = find_weights(backbone, weights_dir, environ) if by_name else weight_file(asked)
        if path is None:
            return known
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
        is_right = has_right_hash(backbone, path) if by_name and has_right_hash else None
    except FileNotFoundError:
        return known
    except (OSError, UserError) as failure:
        return known.model_copy(update={"problem": in_words(failure)})
    return known.model_copy(update={"path": str(path), "size": size, "is_right": is_right})


def find_weights(backbone: str, weights_dir: str | None, environ: Mapping[str, str]) -> Path | None:
    """The ImageNet file of a backbone; None if there is none on this machine."""
    if backbone not in FILES:
        return None
    return find_named(weight_folders(weights_dir, environ), FILES[backbone][0])


def judge_weights(found: Weights) -> list[Finding]:
    """Whether the training can begin with them."""
    fetch = shlex.join(["bloodcell-dist", "weights", "fetch", found.backbone, "--dest", found.folder])
    by_name, backbone = found.asked in ("auto", "imagenet"), found.backbone
    fix = (
        f"{fetch}, on a machine with internet" if by_name else "another model.weights: a file, a run's folder, imagenet"
    )
    if found.asked == "none":
        return [ok("weights", f"none asked for: {backbone} from scratch")]
    if by_name and backbone not in FILES:
        if found.asked == "auto":
            return [ok("weights", f"there are none for {backbone}: from scratch")]
        return [error("weights", f"there are no ImageNet weights for {backbone}", "--set model.weights=none")]
    if found.problem is not None:
        return [
            error("weights", f"cannot be read: {found.problem}", "chmod a+r, and a+x of the folders above; or " + fix)
        ]
    if found.path is None and found.asked == "auto":
        return [warning("weights", f"no ImageNet weights of {backbone} here, so it would train from scratch", fix)]
    if found.path is None and by_name:  # where there is internet, the run fetches them
        place = f"{FILES[backbone][0]} is not in {found.folder}: the run needs internet on its first node"
        return [warning("weights", place, fix)]
    if found.path is None:
        return [error("weights", f"{found.asked}: no such file", fix)]
    if found.is_right is False or (found.is_right is None and by_name and found.size < FILES[backbone][1]):
        why = "has a wrong hash" if found.is_right is False else f"has {found.size / 1e6:.1f} MB, too little: cut off"
        return [error("weights", f"{found.path} {why}", fix)]
    checked = ", hash checked" if found.is_right else ""
    return [ok("weights", f"{found.path}, {found.size / 1e6:.1f} MB{checked}")]
