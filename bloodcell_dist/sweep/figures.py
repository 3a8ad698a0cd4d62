"""Figures of a comparison as people read them: titles, digits, spreads, dashes."""

from __future__ import annotations

from collections.abc import Callable

from bloodcell_dist.evaluation.report import format_decimal, format_duration, format_percent
from bloodcell_dist.sweep.compare import Comparison, Row

TITLES = {
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "auc": "AUC",
    "loss": "Loss",
    "macro_f1": "Macro-F1",
    "images_per_s": "Images/s",
    "gpu_hours": "GPU-hours",
    "wall_s": "Time",
    "epochs": "Epochs",
    "examples": "Examples",
}
"""Columns, named as in the original's table; precision, recall and AUC are macro averages."""
SPLIT_TITLES = {"train": "Training", "val": "Validation", "test": "Test"}
COST = ("images_per_s", "gpu_hours", "wall_s", "epochs")
_WITHOUT_SPREAD = (*COST, "train_examples", "val_examples", "test_examples")


def _is_share(name: str) -> bool:
    """Whether people read it in per cent; differences of such figures are points."""
    return name.endswith(("accuracy", "precision", "recall", "macro_f1"))


def columns_of(comparison: Comparison) -> list[str]:
    """Of the short table."""
    if comparison.split == "val":
        return ["val_macro_f1", "val_accuracy", "train_accuracy"]
    return ["test_macro_f1", "test_accuracy", "val_macro_f1", "val_accuracy", "gap_accuracy"]


def title_of(name: str) -> str:
    """`Test macro-F1`."""
    if name.startswith("gap_"):
        return "Validation − test" + ("" if name == "gap_accuracy" else " macro-F1") + ", points"
    split, _, metric = name.partition("_")
    return f"{SPLIT_TITLES[split]} {_lower(TITLES[metric])}" if split in SPLIT_TITLES else TITLES[name]


def _lower(title: str) -> str:
    return title if title.isupper() else title[0].lower() + title[1:]


def cell_of(row: Row, name: str) -> str:
    """Mean, spread, least and greatest in one piece of text."""
    text, low_and_high = mean_text(row, name), aside_text(row, name)
    is_short = len(row.done) < 2 or not low_and_high or name.startswith("gap_")
    return text if is_short else f"{text} ({low_and_high})"


def mean_text(row: Row, name: str) -> str:
    """`97.4% ± 0.3`; a dash where there is nothing."""
    spread = row.spreads.get(name)
    if spread is None:
        return "–"
    text = number_text(name, spread.total if name == "gpu_hours" else spread.mean)
    if spread.sd is None or name in _WITHOUT_SPREAD:
        return text
    return f"{text} ± {100 * spread.sd:.1f}" if _is_share(name) else f"{text} ± {spread.sd:.4f}"


def aside_text(row: Row, name: str) -> str:
    """What stands below: least and greatest of several seeds, or the 95% interval of a single one."""
    spread = row.spreads.get(name)
    if spread is None or name in _WITHOUT_SPREAD:
        return ""
    if len(row.done) > 1:
        low, high = spread.low, spread.high
        return f"{number_text(name, low)} – {number_text(name, high)}" if low != high else ""
    low, high = (row.done[0].result or {}).get("intervals", {}).get(name, (0, 0))
    return f"95%: {number_text(name, low)} – {number_text(name, high)}" if low != high else ""


def number_text(name: str, value: float | None) -> str:
    """A figure as people read it."""
    if value is None:
        return "–"
    if name.startswith("gap_"):
        return f"{100 * value:+.1f}"
    if _is_share(name):
        return format_percent(value)
    formats: dict[str, Callable[[float], str]] = {
        "images_per_s": lambda number: f"{number:,.0f}",
        "gpu_hours": lambda number: f"{number:,.2f}",
        "wall_s": format_duration,
        "epochs": lambda number: f"{number:g}",
        **dict.fromkeys(_WITHOUT_SPREAD[-3:], lambda number: f"{number:,.0f}"),
    }
    return formats.get(name, format_decimal)(value)
