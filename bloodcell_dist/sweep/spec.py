"""The YAML file of a sweep: read, checked, and explained where it is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from bloodcell_dist.config import all_keys, read_yaml
from bloodcell_dist.errors import UserError
from bloodcell_dist.settings import Positive, Section, Text

CONFIG = "config"
SETTINGS = tuple(all_keys())
_TAKEN = ("array", "dependency", "wrap", "chdir", "output", "parsable", "test-only")
"""Options of sbatch that are the sweep's own."""


def closest(key: str, known: Iterable[str]) -> str:
    """`unknown key …; did you mean …?`."""
    names = tuple(known)
    by_last = {name.rpartition(".")[2]: name for name in reversed(names)} | {name: name for name in names}
    for wanted in (key, key.rpartition(".")[2]):
        for match in difflib.get_close_matches(wanted, by_last, 1):
            return f"unknown key {key}; did you mean {by_last[match]}?"
    return f"unknown key {key}; known are {', '.join(names[:4])} …"


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        if key not in SETTINGS:
            raise ValueError(closest(key, SETTINGS))
    return values


def _axes(grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    for key, values in grid.items():
        if key not in (CONFIG, *SETTINGS):
            raise ValueError(closest(key, (CONFIG, *SETTINGS)))
        if not values:
            raise ValueError(f"{key}=[] has no value; expected at least one")
        if key == CONFIG and not all(isinstance(value, str) and value for value in values):
            raise ValueError(f"config={list(values)} is not possible; expected names of YAML files")
    return grid


def _sbatch_options(options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
    for name in options:
        if name in _TAKEN:
            raise ValueError(f"{name} is set by the sweep itself; leave it out")
        if not name.replace("-", "").isalnum() or name.startswith("-"):
            raise ValueError(f"{name!r} is no option of sbatch; expected its long name without dashes, such as time")
    return options


Assignments = Annotated[dict[str, Any], AfterValidator(_settings)]


class Single(Section):
    """A member beside the grid."""

    config: Text | None = None
    """Its configuration; null: the defaults."""
    settings: Assignments = Field(default_factory=dict)
    """section.key: value."""


class Spec(Section):
    """A sweep."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Of its folder and its jobs."""
    grid: Annotated[dict[str, tuple[Any, ...]], AfterValidator(_axes)] = Field(default_factory=dict)
    """config or section.key: list of values; every combination is a member."""
    also: Annotated[tuple[Single, ...], BeforeValidator(lambda value: value or ())] = ()
    """Members besides."""
    settings: Assignments = Field(default_factory=dict)
    """Of all members; grid and also win."""
    at_once: Positive = 2
    """How many train at the same time, under Slurm."""
    slurm: Annotated[dict[str, str | int | bool], AfterValidator(_sbatch_options)] = Field(default_factory=dict)
    """Long options of sbatch."""


def read_spec(path: Path) -> Spec:
    """The sweep in a YAML file. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the YAML file of a sweep, such as configs/sweep.yaml")
    try:
        spec = Spec.model_validate(read_yaml(path))
    except ValidationError as error:
        lines = dict.fromkeys(f"{path}: {_explain(problem)}" for problem in error.errors())
        raise UserError("\n".join(lines)) from None
    if not spec.grid and not spec.also:
        raise UserError(f"{path}: has no members; expected grid:, such as {{train.seed: [0, 1, 2]}}, or also:")
    return spec


def _explain(problem: Any) -> str:
    """What was received and what is expected."""
    place = [str(part) for part in problem["loc"] if part not in ("bool", "int", "str")]
    key = ": ".join(place)
    if problem["type"] == "extra_forbidden":
        fields = Single if len(place) > 1 else Spec
        return f"{': '.join([*place[:-1], ''])}{closest(place[-1], fields.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} is missing; expected for example {key}: backbones"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    if problem["type"] == "string_pattern_mismatch":
        return f"{key}={problem['input']!r} is not possible; expected letters, digits, dots, dashes and underscores"
    words = {"tuple_type": "a list, such as [a, b]", "dict_type": "keys and values below it"}
    message = problem["msg"][0].lower() + problem["msg"][1:]
    expected = words.get(problem["type"], message.removeprefix("input should be "))
    return f"{key}={problem['input']!r} is not possible; expected {expected}"
