"""Several finished runs as one classifier: the plain mean of their probabilities ("soft voting")."""

from __future__ import annotations

import gc
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bloodcell_dist.config import load_settings
from bloodcell_dist.data.rows import Images
from bloodcell_dist.errors import UserError
from bloodcell_dist.rundir import RunDir
from bloodcell_dist.serving.predictor import Predictor
from bloodcell_dist.settings import Settings


@dataclass(frozen=True)
class Member:
    """A finished run that was looked at; its network is loaded by `probabilities`, and only while that runs.

    Attributes:
        run: the run's folder.
        run_id: its identity for life; its resolved path where result.json names none.
        settings: of the run.
        class_names: in label order.
    """

    run: RunDir
    run_id: str
    settings: Settings
    class_names: tuple[str, ...]

    @property
    def path(self) -> str:
        """The folder as it was given."""
        return str(self.run.path)

    @property
    def name(self) -> str:
        """The folder's own name, whatever way it was given."""
        return self.run.path.resolve().name

    @property
    def geometry(self) -> tuple[int, int | None]:
        """(image_size, crop), pixels: how its pictures are cut and scaled."""
        return self.settings.data.image_size, self.settings.data.crop

    def probabilities(self, images: Images) -> np.ndarray:
        """float32 [N, C] for uint8 [N, image_size, image_size, 3]."""
        found = Predictor(self.run.path).probabilities(images)
        gc.collect()  # a network sits in reference cycles: without this the next one would be loaded beside it
        return found


@dataclass(frozen=True, eq=False)
class Pictures:
    """Cells to classify, in one geometry.

    Attributes:
        images: uint8 [N, image_size, image_size, 3].
        names: of each [N].
        labels: int64 [N]; empty where they are not known.
        part: what of the source they are, for messages; empty for all of it.
    """

    images: Images
    names: Sequence[str]
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    part: str = ""


Load = Callable[[int, int | None], Pictures]
"""Reads the pictures at (image_size, crop)."""


def look_at_runs(folders: Sequence[str]) -> tuple[Member, ...]:
    """The runs in these folders, without their networks, so that a mistake costs no computation.

    Raises UserError if one is no finished run, is given twice, or knows other classes than the first.
    """
    members: list[Member] = []
    for folder in folders:
        member = _look_at(folder)
        for earlier in members:
            _check_pair(earlier, member)
        members.append(member)
    return tuple(members)


def _look_at(folder: str) -> Member:
    run = RunDir(Path(folder))
    if not (run.config.exists() and run.result.exists() and zipfile.is_zipfile(run.model)):
        Predictor(folder)  # raises, and knows best what to say
    result = json.loads(run.result.read_text(encoding="utf-8"))
    run_id = result.get("run_id") or str(run.path.resolve())
    return Member(run, run_id, load_settings(run.config), tuple(result["class_names"]))


def _check_pair(one: Member, two: Member) -> None:
    if one.run.path.resolve() == two.run.path.resolve():
        raise UserError(f"{two.path}: this run is given twice (as {one.path} before); give each run once")
    if one.run_id == two.run_id:
        raise UserError(f"{two.path}: is a copy of {one.path} (both have the run id {one.run_id}); give each run once")
    if one.class_names != two.class_names:
        raise UserError(
            f"{one.path} and {two.path} cannot be averaged, their classes differ: {_difference(one, two)}; "
            "give runs that were trained with the same data.class_names"
        )


def _difference(one: Member, two: Member) -> str:
    """What tells the classes of two runs apart, in words."""
    parts = []
    for member, other in ((one, two), (two, one)):
        if only := [name for name in member.class_names if name not in other.class_names]:
            parts.append(f"only {member.path} has {', '.join(only)}")
    if parts:
        return " and ".join(parts)
    pairs = enumerate(zip(one.class_names, two.class_names, strict=True))
    label, (ours, theirs) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
    return f"label {label} is {ours} in {one.path} and {theirs} in {two.path}"


def predict_members(
    members: Sequence[Member], load: Load, done: Callable[[Member, Pictures, np.ndarray], None] | None = None
) -> tuple[Pictures, list[np.ndarray]]:
    """Classify the same cells with every member, one network in memory at a time.

    Args:
        members: of `look_at_runs`; those of equal geometry share their pictures and come one after the other.
        load: called once for each geometry; of all but the first and the present one the pictures are let go.
        done: told each member, its pictures and its probabilities as soon as they are there.

    Returns:
        The pictures of the first member, and the probabilities float32 [N, C] of each in the order of `members`.
    """
    first: Pictures | None = None
    found: dict[int, np.ndarray] = {}
    for geometry in dict.fromkeys(member.geometry for member in members):
        pictures = load(*geometry)
        first = first or pictures
        _check_same_cells(first, pictures)
        for index, member in enumerate(members):
            if member.geometry == geometry:
                found[index] = member.probabilities(pictures.images)
                if done:
                    done(member, pictures, found[index])
    if first is None:
        raise ValueError("an ensemble needs at least one member")
    return first, [found[index] for index in range(len(members))]


def _check_same_cells(first: Pictures, other: Pictures) -> None:
    """Each geometry is read anew, and the files may have changed in between."""
    if list(first.names) != list(other.names) or not np.array_equal(first.labels, other.labels):
        sizes = f"{first.images.shape[1]} and at {other.images.shape[1]} pixels"
        raise UserError(
            f"the cells were read at {sizes}, and their names or labels differ: the files changed in between; "
            "run the command again when nothing writes to them"
        )


def average(probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the members' float32 [N, C] with equal weights, as float32 [N, C]; summed in float64."""
    return np.mean(probabilities, axis=0, dtype=np.float64).astype(np.float32)
