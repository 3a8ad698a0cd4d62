"""Settings from YAML and --set: what is read, what is refused and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from bloodcell_dist.config import describe_settings, differences, dump_yaml, load_settings, read_yaml, replace
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def changed(*overrides: str) -> dict[str, Any]:
    """What differs from the defaults."""
    return {key: new for key, new, _ in differences(load_settings(None, overrides), Settings())}


def message(*overrides: str, config: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(config, overrides)
    return str(caught.value)


def test_without_anything_the_defaults_hold() -> None:
    assert load_settings() == Settings()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=5", {"train.epochs": 5}),
        (" train.epochs = 5", {"train.epochs": 5}),
        ("train.max_steps=1e3", {"train.max_steps": 1000}),
        ("train.max_steps=010", {"train.max_steps": 10}),
        ("train.seed=+7", {"train.seed": 7}),
        ("optimizer.learning_rate=1e-4", {"optimizer.learning_rate": 1e-4}),
        ("optimizer.learning_rate=.5", {"optimizer.learning_rate": 0.5}),
        ("optimizer.learning_rate=1", {"optimizer.learning_rate": 1.0}),
        ("optimizer.clip_norm=null", {"optimizer.clip_norm": None}),
        ("optimizer.clip_norm=~", {"optimizer.clip_norm": None}),
        ("data.clean=false", {"data.clean": False}),
        ("data.clean=off", {"data.clean": False}),
        ("train.xla=off", {"train.xla": "off"}),
        ("train.xla=on", {"train.xla": "on"}),
        ("data.class_names=[a, b]", {"data.class_names": ["a", "b"]}),
        ("data.class_names=[no, yes]", {"data.class_names": ["no", "yes"]}),
        ("data.class_names=['1', '2']", {"data.class_names": ["1", "2"]}),
        ("data.path=2024-13-45", {"data.path": "2024-13-45"}),
        ("data.path=2024-01-01", {"data.path": "2024-01-01"}),
        ("data.path=12:30", {"data.path": "12:30"}),
        ("data.path=a=b", {"data.path": "a=b"}),
        ("data.path=/data/my cells", {"data.path": "/data/my cells"}),
    ],
)
def test_values_have_the_types_of_yaml_1_2(override: str, expected: dict[str, Any]) -> None:
    assert changed(override) == expected


def test_a_file_is_read_and_the_last_override_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff# mine\ntrain:\n  epochs: 3\n  seed: 4\ndata:\n")
    settings = load_settings(path, ["train.epochs=5", "data.crop=200", "train.epochs=6"])
    assert (settings.train.epochs, settings.train.seed, settings.data.crop) == (6, 4, 200)


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train: {}\ndata: null\n"])
def test_empty_files_and_sections_are_the_defaults(tmp_path: Path, text: str) -> None:
    assert load_settings(write(tmp_path, text)) == Settings()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=-1", "--set: train.epochs=-1 is not possible: input should be greater than 0 or 'auto'"),
        ("train.epochs=true", "--set: train.epochs=True is not possible: input should be a number or 'auto'"),
        ("train.seed=true", "--set: train.seed=True is not possible: input should be a number"),
        ("train.seed='5'", "--set: train.seed='5' is not possible: input should be a number"),
        ("train.max_steps=1:30", "--set: train.max_steps='1:30' is not possible: input should be a number"),
        ("optimizer.clip_norm=true", "--set: optimizer.clip_norm=True is not possible: input should be a number"),
        ("optimizer.weight_decay=.inf", "input should be a finite number"),
        ("train.max_steps=2.5", "input should be a valid integer, got a number with a fractional part"),
        (
            "augment.policy=heavy",
            "augment.policy='heavy' is not possible: input should be 'none', 'light', 'seed' or 'robust'",
        ),
        ("data.clean=maybe", "data.clean='maybe' is not possible: input should be true or false"),
        ("data.path=''", "data.path='' is not possible: input should be text that is not empty; for none write null"),
        ("data.path=96", "data.path=96 is not possible: input should be text; what looks like a number"),
        ("data.class_names=a,b", "data.class_names='a,b' is not possible: input should be a list, such as [a, b]"),
        ("data.class_names=[a, b, a]", "--set: data.class_names has a name twice: a, b, a"),
        ("data.class_names=[a]", "data.class_names needs at least two names"),
        ("data.source=npz", "data.source=npz needs data.path, the file or folder with the cells"),
        ("data.folds=5", "data.folds and data.fold go together, for example folds: 5 and fold: 0"),
        ("data.path=[a", "--set data.path=[a: the value is not YAML; quote text with special characters"),
        ("train.seed=!!int x", "--set train.seed=!!int x: the value is not YAML"),
        ("data.path=", "--set data.path=: has no value (an empty shell variable?); write data.path=null for none"),
        ("train.epochs", "--set train.epochs: expected section.key=value, for example --set train.epochs=5"),
        ("=5", "--set =5: expected section.key=value"),
    ],
)
def test_impossible_values_are_explained(override: str, expected: str) -> None:
    assert expected in message(override)


def test_only_one_complaint_for_a_list_of_wrong_names() -> None:
    assert message("data.class_names=[1, 2, 3]").count("input should be") == 1


def test_folds_count_from_zero() -> None:
    assert message("data.folds=5", "data.fold=5") == "--set: data.fold=5 is not in 0..4 (data.folds=5)"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.epoch", "did you mean train.epochs?"),
        ("trian.epochs", "did you mean train.epochs?"),
        ("epochs", "did you mean train.epochs?"),
        ("train.batch_size", "did you mean train.global_batch_size?"),
        ("train.learning_rate", "did you mean optimizer.learning_rate?"),
        ("train.optimizer.name", "did you mean optimizer.name?"),
        ("optimiser", "did you mean optimizer?"),
        ("train.lr", "known are train.epochs, train.max_steps, "),
        ("train", "known are train.epochs, train.max_steps, "),
        ("zzz", "known are data, augment, model, finetune, optimizer, train, distribute, checkpoint, evaluate"),
    ],
)
def test_an_unknown_key_names_the_closest(key: str, hint: str) -> None:
    assert f"--set {key}=1: unknown key {key}; {hint}" in message(f"{key}=1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 5", "my.yaml: unknown key epochs; did you mean train.epochs?"),
        ("train: {epoch: 5}", "my.yaml: unknown key train.epoch; did you mean train.epochs?"),
        ("1: 5", "my.yaml: unknown key 1; known are data, "),
        ("train: 5", "my.yaml: train=5; expected keys below it, such as train.epochs"),
        ("- a", "my.yaml: holds a list; expected sections such as `train:`"),
        ("train: {epochs: 1, epochs: 2}", "my.yaml: is not YAML: the key 'epochs' is given twice"),
        ("a: b: c", "my.yaml: is not YAML: mapping values are not allowed here"),
        ("train: {seed: !!int x}", "my.yaml: is not YAML: invalid literal"),
        ("train: {epochs: 0}", "my.yaml: train.epochs=0 is not possible"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in message(config=write(tmp_path, text))


def test_every_wrong_key_of_a_file_is_told(tmp_path: Path) -> None:
    lines = message(config=write(tmp_path, "train: {epochs: 0, sed: 1}\nmodel: {dropout: 1}")).splitlines()
    assert len(lines) == 3


def test_a_file_is_not_blamed_for_an_override(tmp_path: Path) -> None:
    path = write(tmp_path, "train: {epochs: 3, seed: -1}")
    lines = message("train.epochs=0", config=path).splitlines()
    assert [line.split(": ")[0] for line in lines] == ["--set", str(path)]


def test_an_override_below_a_broken_section(tmp_path: Path) -> None:
    assert message("train.epochs=2", config=write(tmp_path, "train: 5")) == "train: holds 5; expected keys below it"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
    ids=["missing", "folder"],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, make: Any, reason: str) -> None:
    path = tmp_path / "none.yaml"
    make(path)
    assert message(config=path) == f"{path}: cannot be read ({reason}); give an existing YAML file to --config"


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"data: {path: /daten/M\xfcller}")
    assert "latin.yaml: is not YAML: 'utf-8' codec can't decode" in message(config=path)


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().train.epochs = 3  # type: ignore[misc]


def test_replace_checks_and_leaves_the_original() -> None:
    before = Settings()
    after = replace(before, {"train.epochs": 3, "data.class_names": ["a", "b"]})
    assert list(differences(before, after)) == [
        ("data.class_names", None, ["a", "b"]),
        ("train.epochs", "auto", 3),
    ]
    with pytest.raises(UserError, match="settings: train.epochs=0 is not possible"):
        replace(before, {"train.epochs": 0})


names = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=2, max_size=4, unique=True)
words = st.sampled_from(
    ["off", "1e5", "010", "0o17", "1:30", "null", "~", "<<", "=", ".5", "2024-01-01", "yes", "a: b"]
)


@example(class_names=["X\r\\", "\x85"], rate=1.0, seed=0)
@given(
    class_names=names | st.lists(words, min_size=2, unique=True), rate=st.floats(1e-12, 1e12), seed=st.integers(0, 9)
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, class_names: list[str], rate: float, seed: int
) -> None:
    settings = replace(
        Settings(), {"data.class_names": class_names, "optimizer.learning_rate": rate, "train.seed": seed}
    )
    path = write(tmp_path_factory.mktemp("config"), dump_yaml(settings))
    assert load_settings(path) == settings


def test_other_programs_read_the_same(tmp_path: Path) -> None:
    """Text that YAML 1.1 reads as something else is quoted."""
    settings = load_settings(None, ["train.xla=off", "data.class_names=[no, '1:30']"])
    assert yaml.safe_load(dump_yaml(settings)) == read_yaml(write(tmp_path, dump_yaml(settings)))


def test_every_setting_is_described() -> None:
    lines = list(describe_settings())
    keys = [line.split(":")[0].strip() for line in lines if line.startswith("  ")]
    sections = type(Settings()).model_fields
    assert len(keys) == sum(len(type(getattr(Settings(), section)).model_fields) for section in sections)
    assert not [line for line in lines if line.endswith("None")]
    assert any(line.startswith("  train.xla: auto ") and "parts" in line for line in lines)
