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
from bloodcell_dist.errors import UserError
from bloodcell_dist.models.backbones import BACKBONES
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


def members(folder: Path, content: dict[str, Any], *overrides: str, work: str = "/work") -> list[Member]:
    path = write(folder, {"name": "s", **content})
    return expand(read_spec(path), path, overrides, Path(work))


def names(found: list[Member]) -> list[str]:
    return [member.name for member in found]


def test_the_sweep_of_the_six_backbones() -> None:
    path = CONFIGS / "sweep.yaml"
    found = expand(read_spec(path), path, [], Path("/work"))
    assert set(names(found)) == set(BACKBONES)
    for member in found:
        assert member.arguments == ("--config", str(CONFIGS / f"{member.name}.yaml"))
        assert member.settings == load_settings(CONFIGS / f"{member.name}.yaml")
    header = path.read_text().splitlines()[:8]
    assert header[0].startswith("# bloodcell-dist sweep submit configs/sweep.yaml")
    assert "# Not measured." in header and any("Hardware: " in line for line in header)


def test_every_combination_is_a_member(tmp_path: Path) -> None:
    grid = {"config": ["cnn.yaml", "small.yaml"], "train.seed": [0, 1], "optimizer.learning_rate": [1e-3]}
    found = members(tmp_path, {"grid": grid, "settings": {"data.source": "synthetic", "model.dropout": 0}})
    assert names(found) == ["cnn-seed0", "cnn-seed1", "small-seed0", "small-seed1"]
    assert [member.group for member in found] == ["cnn", "cnn", "small", "small"]
    assert found[3].arguments == (
        *("--config", str(tmp_path / "small.yaml"), "--set", "data.source=synthetic", "--set", "model.dropout=0"),
        *("--set", "train.seed=1", "--set", "optimizer.learning_rate=0.001"),
    )
    assert (found[3].settings.train.seed, found[3].settings.train.epochs) == (1, 4)


def test_arguments_give_the_settings_that_were_checked(tmp_path: Path) -> None:
    """As `bloodcell-dist train` reads them, in another working folder."""
    content = {
        "grid": {"finetune.stages": [[{"share": 1}], [{"share": 0.5, "train": "head"}, {"share": 0.5}]]},
        "settings": {"data.path": "x: y #z/'q\".npz", "data.class_names": ["true", "b"], "optimizer.clip_norm": None},
    }
    for member in members(tmp_path, content, "data.test_path=~/t", "model.weights_dir=w"):
        options = build_parser().parse_args(["train", *member.arguments])
        assert load_settings(options.config, overrides_of(options)) == member.settings
        assert member.settings.data.path == "/work/x: y #z/'q\".npz"
        assert member.settings.data.test_path == str(Path.home() / "t")
        assert member.settings.model.weights_dir == "/work/w"
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
    "text",
    [
        "null",
        "True",
        "1e5",
        "123",
        "off",
        "a: b",
        "- a",
        "[a",
        "'",
        "#",
        "x y",
        "é",
        "C:\\",
        "a\tb",
        "\x7f😀",
    ],
)
def test_text_stays_text(text: str) -> None:
    assert load_settings(None, [f"data.path={as_text(text)}"]).data.path == text


def test_the_command_line_wins(tmp_path: Path) -> None:
    found = members(tmp_path, {"grid": {"train.seed": [0, 1]}, "settings": {"train.epochs": 2}}, "train.epochs=7")
    assert [member.settings.train.epochs for member in found] == [7, 7]


def test_members_beside_the_grid(tmp_path: Path) -> None:
    also = [{"config": "small.yaml", "settings": {"train.seed": 5}}, {"settings": {"augment.policy": "seed"}}, {}]
    found = members(tmp_path, {"grid": {"config": ["cnn.yaml", "small.yaml"]}, "also": also})
    assert names(found) == ["cnn", "small", "small-seed5", "policy-seed", "s"]
    assert [member.group for member in found] == ["cnn", "small", "small", "policy-seed", "s"]


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


def test_configurations_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "cnn.yaml").write_text(f"train: {{epochs: {len(folder) + (folder == 'old')}}}")
    (tmp_path / "new" / "cnn.yaml").write_text("train: {epochs: 8}")
    found = members(tmp_path, {"grid": {"config": ["small.yaml", "old/cnn.yaml", "new/cnn.yaml"]}})
    assert names(found) == ["small", "old-cnn", "new-cnn"]


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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"nmae": "s"}, "unknown key nmae; did you mean name?"),
        ({"name": "a/b"}, "name='a/b' is not possible; expected letters, digits"),
        ({"grid": {"train.sed": [1]}}, "grid: unknown key train.sed; did you mean train.seed?"),
        ({"grid": {"seed": [1]}}, "grid: unknown key seed; did you mean train.seed?"),
        ({"grid": {"confg": ["cnn.yaml"]}}, "grid: unknown key confg; did you mean config?"),
        ({"grid": {"train.seed": 3}}, "grid: train.seed=3 is not possible; expected a list, such as [a, b]"),
        ({"grid": {"train.seed": []}}, "grid: train.seed=[] has no value"),
        ({"grid": {"config": [3]}}, "config=[3] is not possible; expected names of YAML files"),
        ({"grid": {"config": ["none.yaml"]}}, "none.yaml: cannot be read"),
        ({"grid": {"train.seed": [0, -1]}}, "train.seed=-1: --set: train.seed=-1 is not possible"),
        ({"grid": {"train.seed": [0, 0]}}, "train.seed=0 and train.seed=0 are the same training; leave one out"),
        (
            {"also": [{"settings": {"trian.seed": 1}}]},
            "also: 0: settings: unknown key trian.seed; did you mean train.seed?",
        ),
        ({"also": [{"setings": {}}]}, "also: 0: unknown key setings; did you mean settings?"),
        ({"also": [{}, {"settings": {"train.seed": 0}}]}, "the defaults and train.seed=0 are the same training"),
        ({"at_once": 0}, "at_once=0 is not possible; expected greater than 0"),
        ({"slurm": {"array": "0-5"}}, "slurm: array is set by the sweep itself"),
        ({"slurm": {"--time": 3}}, "slurm: '--time' is no option of sbatch; expected its long name without dashes"),
        ({"grid": {}}, "has no members"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        members(tmp_path, {"grid": {"train.seed": [0, 1]}, **content} if "also" not in content else content)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "sweep.yaml") if "none.yaml" not in message else "")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "name is missing"), ("[", "is not YAML"), ("name: s\ngrid: {train.seed: [0]}\ngrid: {}", "given twice")],
)
def test_files_that_are_no_sweep(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_spec(write(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; give the YAML file of a sweep"):
        read_spec(tmp_path / "none.yaml")


def test_empty_sections_are_their_defaults(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, "name: s\ngrid: {train.seed: [0]}\nalso:\nsettings:\nslurm:\n"))
    assert spec == Spec(name="s", grid={"train.seed": (0,)})
