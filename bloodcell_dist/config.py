"""Reads settings from YAML and `--set a.b=c`, checks them and explains what is wrong.

This is the only module that sees a raw dictionary; everything after it takes plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Settings


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file (none: the defaults), then `key.name=value` overrides in their order.

    Values of overrides are read as YAML (`null`, `[a, b]`, `1e-4`, `true`). Raises UserError.
    """
    raw = read_yaml(Path(path)) if path is not None else {}
    for text in overrides:
        _set_key(raw, text)
    origin = str(path) if path is not None else "--set"
    return build_settings(raw, origin)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError for a missing or broken one."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give an existing YAML file to --config"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: holds a {type(raw).__name__}; expected sections such as `train:` with keys below"
        )
    return raw


def build_settings(raw: dict[str, Any], origin: str) -> Settings:
    """Checked settings from a raw mapping; `origin` names its source in messages. Raises UserError."""
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_explain_all(error.errors(), origin))) from None


def dump_yaml(settings: Settings) -> str:
    """The settings as YAML text that `load_settings` reads back to an equal object."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def replace(settings: Settings, changes: dict[str, Any]) -> Settings:
    """A checked copy with `section.key` entries changed."""
    raw = settings.model_dump(mode="json")
    for key, value in changes.items():
        section, name = key.split(".")
        raw[section][name] = value
    return build_settings(raw, "settings")


def differences(first: Settings, second: Settings) -> Iterator[tuple[str, Any, Any]]:
    """Keys whose values differ, as (key, first value, second value)."""
    one, two = first.model_dump(mode="json"), second.model_dump(mode="json")
    for section in one:
        for name in one[section]:
            if one[section][name] != two[section][name]:
                yield f"{section}.{name}", one[section][name], two[section][name]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans, where PyYAML's are 1.1's; a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {name!r} is given twice", problem_mark=node.start_mark
                )
        return super().construct_mapping(node, deep)


# Without 1.1's booleans, which make `xla: off` false.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _set_key(raw: dict[str, Any], text: str) -> None:
    """Apply one `section.key=value` to the raw mapping, in place."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {text}: expected section.key=value, for example --set train.epochs=5")
    if len(parts) != 2:
        raise UserError(f"--set {text}: a key has two parts, section.key{_closest(key, _all_keys())}")
    if parts[0] not in Settings.model_fields or parts[1] not in _fields_of(parts[0]):
        raise UserError(f"--set {text}: unknown key {key.strip()}{_closest(key, _all_keys())}")
    try:
        parsed = yaml.load(value, _Loader) if value.strip() else None
    except yaml.YAMLError:
        raise UserError(f"--set {text}: the value is not YAML; quote text with special characters") from None
    section = raw.setdefault(parts[0], {})
    if section is None:
        section = raw[parts[0]] = {}
    if not isinstance(section, dict):
        raise UserError(f"{parts[0]}: holds {section!r}; expected keys below it")
    section[parts[1]] = parsed


def _explain_all(problems: Sequence[Any], origin: str) -> Iterator[str]:
    """One line for each wrong key; the alternatives of a union type (`number or auto`) are joined."""
    by_key: dict[str, list[Any]] = {}
    for problem in problems:
        by_key.setdefault(".".join(str(part) for part in problem["loc"][:2]), []).append(problem)
    for key, group in by_key.items():
        text = _explain(key, group[0], origin)
        yield " or ".join([text, *(problem["msg"].removeprefix("Input should be ") for problem in group[1:])])


def _explain(key: str, problem: Any, origin: str) -> str:
    """What was received for a key and what is expected."""
    if problem["type"] == "extra_forbidden":
        known = _all_keys() if "." in key else list(Settings.model_fields)
        return f"{origin}: unknown key {key}{_closest(key, known)}"
    if problem["type"] == "value_error":
        return f"{origin}: {problem['ctx']['error']}"
    if problem["type"] == "model_type":
        return f"{origin}: {key}={problem['input']!r}; expected keys below it, such as {key}.{_fields_of(key)[0]}"
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{origin}: {key}={problem['input']!r} is not possible: {message}"


def _fields_of(section: str) -> list[str]:
    return list(getattr(Settings(), section).__class__.model_fields)


def _all_keys() -> list[str]:
    return [f"{section}.{name}" for section in Settings.model_fields for name in _fields_of(section)]


def _closest(key: str, known: list[str]) -> str:
    """`; did you mean …?` for a mistyped key, comparing whole keys first, then the last part alone."""
    match = difflib.get_close_matches(key.strip(), known, 1, 0.6)
    if not match:
        last = key.strip().split(".")[-1]
        names = {name.split(".")[-1]: name for name in known}
        match = [names[name] for name in difflib.get_close_matches(last, list(names), 1, 0.6)]
    return f"; did you mean {match[0]}?" if match else f"; known are {', '.join(known)}"
