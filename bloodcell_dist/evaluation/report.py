"""`report.html`: the result of a run for people, one file that needs no other, no script and no network."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from bloodcell_dist.atomic import atomic_write_text
from bloodcell_dist.evaluation.result import SPLITS
from bloodcell_dist.settings import METRICS

PICTURES = ("confusion", "per_class", "mistakes", "curves", "class_counts", "cleaning")


@dataclass(frozen=True)
class Removed:
    """A kind of examples that cleaning removed.

    Attributes:
        reason: few words, `exact duplicates`.
        count: examples.
        explanation: a sentence for a reader who wonders why.
    """

    reason: str
    count: int
    explanation: str


@dataclass(frozen=True)
class ReportInputs:
    """Everything that a report shows.

    Attributes:
        result: as `result.build_result` made it, or read back from result.json.
        settings_yaml: the settings as resolved.
        environment: what environment.json holds; nested mappings are shown with dotted names.
        commands: shell lines that reproduce the run.
        class_counts: stage (`as found`, `after cleaning`, `training`, …) to examples per class, int [C], in order.
        removed: what cleaning removed; empty if nothing.
        cleaned: whether cleaning ran at all.
        near_groups: sizes of the groups of near-duplicates, which cleaning found and kept.
        dropped: reason (`also in the test set`) to how many cells were left out of training besides.
        pictures: names of PICTURES to PNG files; those left out are not shown.
        test_source: what the test set is, its file name say; None without one.
        test_is_same_source: whether the test set comes from the same slides or laboratory as the training set (a
            collection's own test split, drawn cells); None if that is not known.
        notes: what a reader must know besides (cut short by max_steps, drawn cells), one line each.
        beginnings: what the head of the report says of the training besides, by name.
    """

    result: Mapping[str, Any]
    settings_yaml: str
    environment: Mapping[str, Any]
    commands: Sequence[str]
    class_counts: Mapping[str, Sequence[int]]
    removed: Sequence[Removed] = ()
    cleaned: bool = True
    near_groups: Sequence[int] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    pictures: Mapping[str, Path] = field(default_factory=dict)
    test_source: str | None = None
    test_is_same_source: bool | None = None
    notes: Sequence[str] = ()
    beginnings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := set(self.pictures) - set(PICTURES):
            raise ValueError(f"pictures are {', '.join(PICTURES)}; received {', '.join(sorted(unknown))}")


def write_report(path: str | os.PathLike[str], inputs: ReportInputs) -> None:
    """Write the report as one HTML file, whole or not at all."""
    atomic_write_text(path, render_report(inputs))


def page_environment(*folders: Path) -> jinja2.Environment:
    """Templates in these folders, and those that all pages share; whatever they insert is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_report(inputs: ReportInputs) -> str:
    """The report as HTML; all text from outside is escaped."""
    environment = page_environment()
    environment.filters |= {
        "percent": format_percent,
        "decimal": format_decimal,
        "duration": format_duration,
        "points": lambda share: f"{100 * abs(share):.1f}",
        "when": lambda text: datetime.fromisoformat(text).strftime("%-d %B %Y, %H:%M %Z").strip(),
    }
    result = inputs.result
    split = "test" if "test" in result["confusion"] else "val"
    return environment.get_template("report.html.j2").render(
        inputs=inputs,
        result=result,
        split=split,
        splits=[name for name in SPLITS if result[f"{name}_accuracy"] is not None],
        metrics=METRICS,
        weakest=weakest_class(result["per_class"][split]),
        confusions=frequent_confusions(result["confusion"][split], result["class_names"]),
        pictures={name: data_uri(picture) for name, picture in inputs.pictures.items()},
        environment=flatten(inputs.environment),
    )


def weakest_class(per_class: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The row of the class with the lowest recall."""
    return min((row for row in per_class if row["support"]), key=lambda row: row["recall"])


def frequent_confusions(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], limit: int = 5
) -> list[dict[str, Any]]:
    """The most frequent mistakes, in that order: true, predicted, count and share of the true class."""
    mistakes: list[dict[str, Any]] = [
        {
            "true": class_names[true],
            "predicted": class_names[guess],
            "count": count,
            "share": count / sum(row),
        }
        for true, row in enumerate(confusion)
        for guess, count in enumerate(row)
        if guess != true and count
    ]
    return sorted(mistakes, key=lambda mistake: mistake["count"], reverse=True)[:limit]


def format_percent(share: float | None) -> str:
    """`97.4%`; a dash for None; what is not 1 is not rounded to it."""
    if share is None:
        return "–"
    return ">99.9%" if 0.9995 <= share < 1 else f"{share:.1%}"


def format_decimal(value: float | None) -> str:
    """Four decimals; a dash for None; what is less than 1 is not rounded to it."""
    if value is None:
        return "–"
    return ">0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"


def format_duration(seconds: float | None) -> str:
    """`2 h 05 min`, `7 min 12 s`, `48 s`; a dash for None."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as one level of text: `versions.numpy`; lists are joined by commas."""
    flat: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            flat[f"{prefix}{key}"] = ", ".join(str(item) for item in value)
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def data_uri(picture: Path) -> str:
    """A PNG file as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(Path(picture).read_bytes()).decode("ascii")
