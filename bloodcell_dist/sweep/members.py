"""The members of a sweep: which trainings a file stands for, and what they are called."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloodcell_dist.config import load_settings, replace
from bloodcell_dist.errors import UserError
from bloodcell_dist.resolve import WEIGHTS_BY_NAME, absolute
from bloodcell_dist.settings import Settings
from bloodcell_dist.sweep.spec import CONFIG, Spec

SEED = "train.seed"
_PLACES = ("data.path", "data.test_path", "data.cache_dir", "model.weights", "model.weights_dir", "train.xla_cache_dir")
_NO_PLACES = ("off", *WEIGHTS_BY_NAME)
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
_LONGEST_NAME = 100


@dataclass(frozen=True)
class Member:
    """One training.

    Attributes:
        name: unique, fit for a folder.
        group: name of the configuration that it shares with the members that differ in their seed only.
        arguments: of `bloodcell-dist train`, without `--run-dir`.
        settings: that these arguments stand for.
    """

    name: str
    group: str
    arguments: tuple[str, ...]
    settings: Settings


@dataclass(frozen=True)
class _Choice:
    """What one member has of its own: its configuration, its settings, and which of them are in its name."""

    config: Path | None
    values: Mapping[str, Any]
    named: tuple[str, ...]


def expand(spec: Spec, path: Path, overrides: Sequence[str], folder: Path) -> list[Member]:
    """All members in the file's order, checked. Raises UserError.

    Args:
        spec: the sweep.
        path: its file, from which the configurations' paths start.
        overrides: `section.key=value`, which win over all.
        folder: where other relative paths start, the working folder.
    """
    choices = [*_combinations(spec, path.parent), *_singles(spec, path.parent)]
    settings, arguments = [], []
    for choice in choices:
        own = [f"{key}={as_text(value)}" for key, value in {**spec.settings, **choice.values}.items()]
        read = _read(choice, [*own, *overrides], path)
        places = _absolute_places(read, folder)
        texts = [*own, *overrides, *(f"{key}={as_text(value)}" for key, value in places.items())]
        config = [] if choice.config is None else ["--config", str(choice.config)]
        arguments.append((*config, *(part for text in texts for part in ("--set", text))))
        settings.append(replace(read, places))
    codes = [digest(one) for one in settings]
    _refuse_same(choices, codes, path)
    names = _titles(choices, codes, spec.name, with_seed=True)
    seedless = [digest(replace(one, {SEED: 0})) for one in settings]
    groups = _titles(choices, seedless, spec.name, with_seed=False)
    return [Member(*parts) for parts in zip(names, groups, arguments, settings, strict=True)]


def as_text(value: Any) -> str:
    """A value as `--set` reads it back: JSON, which is YAML; plain text stays plain."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("null", "true", "false"):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def differing(settings: Sequence[Settings]) -> list[dict[str, Any]]:
    """Of each, the `section.key` values that are not the same in all."""
    flat = [
        {
            f"{name}.{key}": value
            for name, section in one.model_dump(mode="json").items()
            for key, value in section.items()
        }
        for one in settings
    ]
    keys = [key for key in flat[0] if any(one[key] != flat[0][key] for one in flat)]
    return [{key: one[key] for key in keys} for one in flat]


def digest(settings: Settings) -> str:
    """Ten hexadecimal digits that tell settings apart; new settings that are left at their default change nothing."""
    text = json.dumps(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:10]


def _combinations(spec: Spec, base: Path) -> list[_Choice]:
    if not spec.grid:
        return []
    named = tuple(key for key, values in spec.grid.items() if len(values) > 1)
    rows = [dict(zip(spec.grid, row, strict=True)) for row in itertools.product(*spec.grid.values())]
    return [_Choice(_config(row.pop(CONFIG, None), base), row, named) for row in rows]


def _singles(spec: Spec, base: Path) -> list[_Choice]:
    return [_Choice(_config(one.config, base), one.settings, tuple(one.settings)) for one in spec.also]


def _config(name: str | None, base: Path) -> Path | None:
    return None if name is None else Path(absolute(name, base))


def _read(choice: _Choice, overrides: Sequence[str], path: Path) -> Settings:
    try:
        return load_settings(choice.config, overrides)
    except UserError as error:
        raise UserError(f"{path}: {_tell(choice)}: {error}") from None


def _absolute_places(settings: Settings, folder: Path) -> dict[str, str]:
    """The relative paths among the settings, made absolute: the jobs start elsewhere."""
    found = {}
    for key in _PLACES:
        section, name = key.split(".")
        value = getattr(getattr(settings, section), name)
        if value is not None and value not in _NO_PLACES and not os.path.isabs(value):
            found[key] = absolute(value, folder)
    return found


def _refuse_same(choices: Sequence[_Choice], codes: Sequence[str], path: Path) -> None:
    seen: dict[str, _Choice] = {}
    for choice, code in zip(choices, codes, strict=True):
        other = seen.setdefault(code, choice)
        if other is not choice:
            raise UserError(f"{path}: {_tell(other)} and {_tell(choice)} are the same training; leave one out")


def _tell(choice: _Choice) -> str:
    parts = [choice.config.name] if choice.config else []
    return " ".join([*parts, *(f"{key}={value}" for key, value in choice.values.items())]) or "the defaults"


def _titles(choices: Sequence[_Choice], codes: Sequence[str], default: str, *, with_seed: bool) -> list[str]:
    """A readable name for each choice; those with equal codes share one.

    Names that would be the same get their code, so that none depends on the order.
    """
    stems = _stems({choice.config for choice in choices if choice.config})
    labels: dict[str, str] = {}
    for choice, code in zip(choices, codes, strict=True):
        keys = [key for key in choice.named if with_seed or key != SEED]
        labels.setdefault(code, _label(choice, stems, keys) or default)
    count = Counter(labels.values())
    names = {code: label if count[label] == 1 else f"{label}-{code[:6]}" for code, label in labels.items()}
    return [names[code] for code in codes]


def _stems(configs: set[Path]) -> dict[Path, str]:
    """A short name for each file: its own, and as many of its folders' as it takes to tell them apart."""
    tails = {config: [*config.parent.parts[1:], config.stem] for config in configs}
    found: dict[Path, str] = {}
    for length in range(1, max(map(len, tails.values()), default=0) + 1):
        names = {config: "-".join(tail[-length:]) for config, tail in tails.items() if config not in found}
        count = Counter(names.values())
        found |= {config: name for config, name in names.items() if count[name] == 1}
    return found


def _label(choice: _Choice, stems: Mapping[Path, str], keys: Sequence[str]) -> str:
    """`convnextbase-seed1`: configuration or backbone, then the others by their key's name."""
    values = {key: choice.values[key] for key in keys if key in choice.values}
    backbone = values.pop("model.backbone", None)
    parts = [stems[choice.config] if choice.config else "", str(backbone or "")]
    parts += [_part(key.partition(".")[2], value) for key, value in sorted(values.items())]
    label = "-".join(_slug(part) for part in parts if part)
    return label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 1]


def _part(name: str, value: Any) -> str:
    """`seed1`, `learning_rate0.001`, `policy-light`, `clean-false`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"
    text = Path(value).stem if isinstance(value, str) else as_text(value)
    return f"{name}-{text}"


def _slug(text: str) -> str:
    """Letters, digits and what harms neither file systems nor shells; not too long."""
    slug = re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.")
    return slug if len(slug) <= 40 else f"{slug[:33]}{hashlib.sha256(slug.encode()).hexdigest()[:6]}"
