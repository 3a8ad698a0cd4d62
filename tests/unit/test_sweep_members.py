"""The file of a sweep, and the members it stands for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import bloodcell_dist
from bloodcell_dist.cli import build_parser
from bloodcell_dist.commandline import overrides_of
from bloodcell_dist.config import load_settings, read_yaml
from bloodcell_dist.sweep.members import Member, as_text, differing, expand
from bloodcell_dist.sweep.spec import Spec, read_spec

CONFIGS = Path(bloodcell_dist.__file__).parents[1] / "configs"


def write(folder: Path, content: dict[str, Any] | str) -> Path:
    """sweep.yaml and two configurations beside it."""
    for name in ("cnn", "small"):
        (folder / f"{name}.yaml").write_text(
            f"model: {{backbone: cnn}}\ntrain: {{epochs: {3 if name == 'cnn' else 4}}}\n"
        )
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
    return path


def members(folder: Path, content: dict[str, Any], *overrides: str, work: str = "/project") -> list[Member]:
    path = write(folder, {"name": "s", **content})
    return expand(read_spec(path), path, overrides, Path(work))


def names(found: list[Member]) -> list[str]:
    return [member.name for member in found]


def test_arguments_give_the_settings_that_were_checked(tmp_path: Path) -> None:
    """As `bloodcell-dist train` reads them, in another working folder."""
    content = {
        "grid": {"finetune.stages": [[{"share": 1}], [{"share": 0.5, "train": "head"}, {"share": 0.5}]]},
        "settings": {"data.path": "x: y #z/'q\".npz", "data.class_names": ["true", "b"], "optimizer.clip_norm": None},
    }
    for member in members(tmp_path, content, "data.test_path=~/t", "model.weights_dir=w"):
        options = build_parser().parse_args(["train", *member.arguments])
        assert load_settings(options.config, overrides_of(options)) == member.settings
        assert member.settings.data.path == "/project/x: y #z/'q\".npz"
        assert member.settings.data.test_path == str(Path.home() / "t")
        assert member.settings.model.weights_dir == "/project/w"
        assert member.settings.data.class_names == ("true", "b")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(VALUES)
def test_every_value_survives_the_command_line(value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "values.yaml")
        path.write_text(f"read: {as_text(value)}", "utf-8")
        assert read_yaml(path) == {"read": {} if value is None else value}  # an empty section is an empty mapping


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"model.backbone": ["cnn", "efficientnetb0"]}, ["cnn", "efficientnetb0"]),
        ({"optimizer.learning_rate": [1e-4, 0.02]}, ["learning_rate0.0001", "learning_rate0.02"]),
        ({"data.clean": [True, False]}, ["clean-true", "clean-false"]),
        ({"optimizer.clip_norm": [None, 1]}, ["clip_norm-null", "clip_norm1"]),
        ({"data.path": ["/a/first set.npz", "/b/other.npz"]}, ["path-first-set", "path-other"]),
        ({"train.seed": [3]}, ["s"]),
    ],
)
def test_names(tmp_path: Path, grid: dict[str, list[Any]], expected: list[str]) -> None:
    assert names(members(tmp_path, {"grid": grid})) == expected


def test_names_stay_when_the_file_is_reordered(tmp_path: Path) -> None:
    paths = ["/a/x.npz", "/b/x.npz"]  # their short names are the same
    one = {"data.path": paths, "train.seed": [0, 1], "model.dropout": [0, 0.5]}
    other = {"model.dropout": [0.5, 0], "train.seed": [1, 0], "data.path": paths[::-1]}
    first, second = ({m.name: m.settings for m in members(tmp_path, {"grid": grid})} for grid in (one, other))
    assert first == second
    assert len(first) == 8


def test_long_names_are_cut_and_stay_unique(tmp_path: Path) -> None:
    paths = [f"/{'x' * 90}{number}.npz" for number in range(3)]
    found = names(members(tmp_path, {"grid": {"data.path": paths, "data.test_path": paths[:2]}}))
    assert len(set(found)) == 6
    assert max(map(len, found)) <= 110


def test_what_differs(tmp_path: Path) -> None:
    found = members(tmp_path, {"grid": {"config": ["cnn.yaml", "small.yaml"]}, "settings": {"train.seed": 4}})
    assert differing([member.settings for member in found]) == [{"train.epochs": 3}, {"train.epochs": 4}]


def test_empty_sections_are_their_defaults(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, "name: s\ngrid: {train.seed: [0]}\nalso:\nsettings:\nslurm:\n"))
    assert spec == Spec(name="s", grid={"train.seed": (0,)})


def test_the_sweep_of_the_six_opens_with_its_command_and_tells_what_it_reaches() -> None:
    header = [line for line in (CONFIGS / "sweep.yaml").read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith("# bloodcell-dist sweep submit configs/sweep.yaml")
    assert "# Not measured." in header and any("Hardware: " in line for line in header)
