"""Reads settings from YAML and `--set a.b=c`, checks them and explains what is wrong.

This is the only module that sees a raw dictionary; everything after it takes plain values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Settings, Stage


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file (none: the defaults), then `key.name=value` overrides in their order.

    Values of overrides are read as YAML (`null`, `[a, b]`, `1e-4`, `true`). Raises UserError.
    """
    raw = read_yaml(Path(path)) if path is not None else {}
    overridden = {_set_key(raw, text) for text in overrides}
    return build_settings(raw, str(path) if path is not None else "--set", overridden)


def settings_or_defaults(path: str | Path | None, overrides: Sequence[str]) -> Settings:
    """The same, for what is to be known before there is anybody to tell; the defaults where they cannot be read."""
    try:
        return load_settings(path, overrides)
    except UserError:
        return Settings()


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, empty sections as empty mappings; UserError for a missing or broken one."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing YAML file to --config") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds a {type(raw).__name__}; expected sections such as `train:` with keys below")
    return {name: {} if section is None else section for name, section in raw.items()}


def build_settings(raw: dict[str, Any], origin: str, overridden: Collection[str] = ()) -> Settings:
    """Checked settings from a raw mapping. Raises UserError.

    Args:
        raw: sections of keys.
        origin: names its source in messages.
        overridden: keys `section.name` that came from `--set` instead.
    """
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        raise UserError("\n".join(_explain_all(error.errors(), origin, overridden))) from None


def dump_yaml(settings: Settings) -> str:
    """The settings as YAML text that `load_settings` reads back to an equal object."""
    return yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def to_text(settings: Settings) -> str:
    """The settings for other processes of the run, which read them with `from_text`."""
    return settings.model_dump_json()


def from_text(text: str) -> Settings:
    """The settings that `to_text` wrote."""
    return Settings.model_validate_json(text)


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


def describe_settings() -> Iterator[str]:
    """A line for each key: name, default, what it does."""
    defaults = Settings()
    for section, values in defaults:
        yield f"{section}: {type(values).__doc__}"
        for name, field in type(values).model_fields.items():
            value = values.model_dump(mode="json")[name]
            default = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, sort_keys=False).splitlines()[0]
            yield f"  {f'{section}.{name}: {default}':<42} {field.description}"


_WORDS = {
    "string_type": 'text; what looks like a number or true or false needs quotes: "123"',
    "tuple_type": "a list, such as [a, b]",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_too_short": "text that is not empty; for none write null",
    "string_pattern_mismatch": "head, all, or last: with a share of the blocks, such as last:0.4",
}
"""What pydantic says in Python's words."""


class _Loader(yaml.SafeLoader):
    """Reads plain values as YAML 1.2 does, where PyYAML does as 1.1; a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [self.construct_object(key, deep=True) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.MarkedYAMLError(problem=f"the key {name!r} is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or `_Loader` would read as something else, and escapes what is not printable."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Loader.yaml_implicit_resolvers = {}
# YAML 1.2's core schema. By 1.1 `xla: off` is false, 1e-4 text, 010 eight, 1:30 ninety and 2024-01-01 a date.
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Dumper.add_representer(str, _Dumper.represent_str)


def _set_key(raw: dict[str, Any], text: str) -> str:
    """Apply one `section.key=value` to the raw mapping, in place; the key."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {text}: expected section.key=value, for example --set train.epochs=5")
    if key not in all_keys():
        raise UserError(f"--set {text}: unknown key {key}{_closest(key)}")
    if not value.strip():
        raise UserError(f"--set {text}: has no value (an empty shell variable?); write {key}=null for none")
    try:
        parsed = yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {text}: the value is not YAML; quote text with special characters") from None
    section, name = key.split(".")
    if not isinstance(raw.setdefault(section, {}), dict):
        raise UserError(f"{section}: holds {raw[section]!r}; expected keys below it")
    raw[section][name] = parsed
    return key


def _explain_all(problems: Sequence[Any], origin: str, overridden: Collection[str]) -> Iterator[str]:
    """One line for each wrong key; the alternatives of a union type (`number or auto`) are joined."""
    by_key: dict[str, list[Any]] = {}
    for problem in problems:
        by_key.setdefault(_key_of(problem["loc"]), []).append(problem)
    for key, group in by_key.items():
        yield f"{'--set' if key.partition('[')[0] in overridden else origin}: {_explain(key, group)}"


def _key_of(place: Sequence[str | int]) -> str:
    """`section.name`, or `section.name[0].key` in a list; else what follows tells the alternatives of a union apart."""
    key = ".".join(str(part) for part in place[:2])
    return f"{key}[{place[2]}].{place[3]}" if len(place) > 3 and isinstance(place[2], int) else key


def _explain(key: str, problems: Sequence[Any]) -> str:
    """What was received for a key and what is expected."""
    problem = problems[0]
    if problem["type"] in ("extra_forbidden", "invalid_key"):
        return f"unknown key {key}{_closest(key)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{key} is missing: {problem['input']!r} needs it"
    if problem["type"] == "model_type" and "." in key:  # an item of a list
        return f"{key}: {problem['input']!r} is not possible; expected {{{': …, '.join(Stage.model_fields)}: …}}"
    if problem["type"] == "model_type":
        return f"{key}={problem['input']!r}; expected keys below it, such as {key}.{_fields_of(key)[0]}"
    expected = " or ".join(dict.fromkeys(_expected(problem) for problem in problems))
    return f"{key}={problem['input']!r} is not possible: input should be {expected}"


def _expected(problem: Any) -> str:
    """What pydantic wants, in words for people who do not write Python."""
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return _WORDS.get(problem["type"], message.removeprefix("input should be "))


def _fields_of(section: str) -> list[str]:
    return list(getattr(Settings(), section).__class__.model_fields)


def all_keys() -> list[str]:
    """Every `section.name`."""
    return [f"{section}.{name}" for section in Settings.model_fields for name in _fields_of(section)]


def _closest(key: str) -> str:
    """`; did you mean …?` for a mistyped key: one of its section, else a section, else one of any section."""
    if "[" in key:
        return f"; known are {', '.join(Stage.model_fields)}"
    sections = list(Settings.model_fields)
    section, last = key.split(".")[0], key.split(".")[-1]
    if section in sections:
        here = {name: f"{section}.{name}" for name in _fields_of(section)}
    else:
        here = {name: name for name in sections}
    everywhere = {name.split(".")[1]: name for name in all_keys()}
    for names in (here, everywhere):
        for match in difflib.get_close_matches(last, names, 1):
            return f"; did you mean {names[match]}?"
    return f"; known are {', '.join(here.values())}"
