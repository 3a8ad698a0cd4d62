"""`report_sweep` on made-up but complete run folders: figures worked out by hand, hostile names, little to show."""

from __future__ import annotations

import csv
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.config import build_settings, dump_yaml
from bloodcell_dist.evaluation.metrics import SplitScores, score_split
from bloodcell_dist.evaluation.result import ModelScores, build_result
from bloodcell_dist.history import append_metrics
from bloodcell_dist.settings import BLOOD_CELLS
from bloodcell_dist.sweep.folder import Plan, Planned, SweepDir
from bloodcell_dist.sweep.report import report_sweep

HOSTILE = '<script>alert("1")</script>&\'|`*é'

Make = Callable[..., SweepDir]
Fate = tuple[float, float | None] | str | None
"""Accuracy on validation and test cells, a reason for failing, or not begun."""


def scores(accuracy: float, resamples: int = 0) -> SplitScores:
    """Of 80 predictions, 10 of each class, a share right; as many mistakes in each class, so macro-F1 is the same."""
    labels = np.arange(80) % 8
    wrong = np.arange(80) >= round(accuracy * 80)
    probabilities = np.full((80, 8), 0.3 / 7)
    probabilities[np.arange(80), np.where(wrong, (labels + 1) % 8, labels)] = 0.7
    return score_split(probabilities, labels, BLOOD_CELLS, resamples=resamples)


def make_result(val: float, test: float | None, gpu_hours: float) -> dict[str, Any]:
    splits = {"train": SplitScores(scores(0.5).metrics, [], [], {}), "val": scores(val)}
    if test is not None:
        splits["test"] = scores(test, resamples=100)
    model = ModelScores(epoch=1, step=20, splits=splits)
    return build_result(
        run_id="0" * 32, created=datetime(2026, 11, 25, tzinfo=UTC), backbone="cnn", class_names=BLOOD_CELLS, seed=0,
        epochs=2, select_by="macro_f1", best=model, last=model, images_per_s=1234.5, wall_s=3725.0, replicas=4,
        gpu_hours=gpu_hours, versions={},
    )  # fmt: skip


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make(name, group=[fate, ...]): a sweep's folder, with a fate for each seed."""

    def make_sweep(
        name: str = "s", gpu_hours: float = 0.25, **groups: Sequence[tuple[float, float | None] | str | None]
    ):
        return fill(SweepDir(tmp_path / "sweep"), name, gpu_hours, groups)

    return make_sweep


def fill(folder: SweepDir, name: str, gpu_hours: float, groups: Mapping[str, Sequence[Fate]]) -> SweepDir:
    fates = [(group, seed, fate) for group, some in groups.items() for seed, fate in enumerate(some)]
    members = tuple(
        Planned(index, f"{group}-seed{seed}", group, (), {"train.seed": seed}, "")
        for index, (group, seed, _) in enumerate(fates)
    )
    folder.write(Plan(name, "/", members), "name: s")
    for member, (_, _, fate) in zip(members, fates, strict=True):
        run = folder.run(member.name)
        if fate is None:
            continue
        run.path.mkdir(parents=True)
        run.write_config(dump_yaml(build_settings({"data": {"source": "npz", "path": "/x"}}, "")))
        for epoch in range(2):
            append_metrics(run.metrics, {"epoch": epoch, "val_macro_f1": 0.5 + epoch / 10})
        if isinstance(fate, str):
            atomic_write_json(run.status, {"state": "training failed", "exit_status": 3, "message": fate})
        else:
            atomic_write_json(run.status, {"state": "done", "exit_status": 0, "message": ""})
            atomic_write_json(run.result, make_result(fate[0], fate[1], gpu_hours))
    return folder


class Page(HTMLParser):
    """Words, tags and table rows of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self._last = ""
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._last = tag
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self._last not in ("style", "title"):
            self.words.append(data)
        if self.rows and self.rows[-1] and self._last in ("td", "th", "small"):
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + " " + data).split())


def page_of(folder: SweepDir) -> Page:
    return Page(folder.comparison(".html").read_text(encoding="utf-8"))


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_figures_over_seeds(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Seeds 0.8, 0.9 and 1.0 of `a`: mean 0.9, sample deviation 0.1; validation 1.0 each, so the gap is 0.1 ± 0.1."""
    folder = make(a=[(1.0, 0.8), (1.0, 0.9), (1.0, 1.0)], b=[(0.7, 0.6), "diverged", None])
    with caplog.at_level(logging.INFO):
        page = report_sweep(folder.path)
    assert page == folder.comparison(".html")
    assert [record.message for record in caplog.records] == [f"{page}: 4 of 6 members compared"]

    a, b = rows_of(folder.comparison("_groups.csv"))
    assert (a["group"], a["done"], a["planned"]) == ("a", "3", "3")
    figures = [float(a[f"test_accuracy_{part}"]) for part in ("mean", "sd", "min", "max")]
    assert figures == pytest.approx([0.9, 0.1, 0.8, 1.0])
    assert [float(a[f"gap_accuracy_{part}"]) for part in ("mean", "sd")] == pytest.approx([0.1, 0.1])
    assert (float(a["gpu_hours_sum"]), float(a["gpu_hours_mean"]), a["test_examples_mean"]) == (0.75, 0.25, "80.0")
    assert (b["group"], b["done"], b["planned"], b["test_accuracy_sd"]) == ("b", "1", "3", "")

    members = rows_of(folder.comparison(".csv"))
    assert [row["test_macro_f1"][:4] for row in members] == ["0.8", "0.9", "1.0", "0.6", "", ""]
    assert [row["train.seed"] for row in members] == ["0", "1", "2"] * 2
    assert [(row["state"], row["reason"]) for row in members[4:]] == [
        ("failed", "diverged"),
        ("waiting", "not started"),
    ]
    assert members[0]["run_dir"] == str(folder.run("a-seed0").path)


def test_the_short_table_fits_a_terminal(make: Make) -> None:
    folder = make(a=[(1.0, 0.8), (1.0, 0.9), (1.0, 1.0)], b=[(0.7, 0.6), "diverged", None])
    report_sweep(folder.path)
    lines = folder.comparison(".md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({len(line) for line in table}) == 1
    assert len(table[0]) < 160
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert rows[0] == [
        "Configuration", "Done", "Test macro-F1", "Test accuracy", "Val accuracy", "Val − test, points", "Images/s",
        "GPU-hours", "Epochs",
    ]  # fmt: skip
    a = ["a", "3/3", "90.0% ± 10.0 (80.0% – 100.0%)", "90.0% ± 10.0", "100.0% ± 0.0", "+10.0 ± 10.0", "1,234", "0.75"]
    assert rows[2] == [*a, "2"]
    assert rows[3] == ["b", "1/3", "60.0%", "60.0%", "70.0%", "+10.0", "1,234", "0.25", "2"]
    assert lines[-2:] == ["- b-seed1: failed: diverged", "- b-seed2: waiting"]


def test_the_page_has_the_same_figures_and_the_rule(make: Make) -> None:
    folder = make(a=[(1.0, 0.8), (1.0, 0.9)], b=[(0.7, 0.85), (0.7, 0.9)])
    report_sweep(folder.path)
    page = page_of(folder)
    a = next(row for row in page.rows if row[0] == "a")
    assert a[3].startswith("85.0% ± 7.1 80.0% – 90.0%")
    assert a[8:] == ["0.50", "1 h 02 min", "2"]
    assert "THE ORDER IS NOT SURE among b, a:" in page.text
    assert "Where ranges overlap, the order is not sure." in page.text


def test_text_from_outside_stays_text(make: Make) -> None:
    folder = make(HOSTILE, **{"a&<b>": [(0.9, 0.8), HOSTILE]})
    report_sweep(folder.path)
    page = page_of(folder)
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert page.text.count(HOSTILE) == 2  # the sweep's name, the reason
    assert "a&<b>" in page.text
    assert rows_of(folder.comparison(".csv"))[1]["reason"] == HOSTILE
    assert json.loads(folder.comparison(".json").read_text(encoding="utf-8"))["name"] == HOSTILE
    markdown = folder.comparison(".md").read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)[<`]", markdown)
    assert r"\<script\>alert(" in markdown
    (row,) = [line for line in markdown.splitlines() if line.startswith(r"| a\&\<b\>")]
    assert row.count("|") == 10


def test_without_test_sets_validation_ranks_and_the_page_says_so(make: Make) -> None:
    folder = make(a=[(0.8, None)], b=[(0.9, None)], gpu_hours=0.0)
    report_sweep(folder.path)
    assert [row["group"] for row in rows_of(folder.comparison("_groups.csv"))] == ["b", "a"]
    markdown = folder.comparison(".md").read_text(encoding="utf-8")
    assert "**VALIDATION ONLY: there is no test set" in markdown
    assert "| Configuration | Done | Val macro-F1 | Val accuracy |" in markdown
    assert "VALIDATION ONLY" in page_of(folder).text
    assert (folder.plots / "cost.png").exists()  # against hours


def test_older_results_lack_what_came_later(make: Make) -> None:
    folder = make(a=[(0.9, 0.8)])
    result = folder.run("a-seed0").result
    kept = {key: value for key, value in json.loads(result.read_text()).items() if key not in ("gpu_hours", "examples")}
    atomic_write_json(result, kept | {"test_auc": None})
    report_sweep(folder.path)
    rows = [row for row in page_of(folder).rows if row[0] == "a"]
    assert rows[0][8] == "–"
    assert rows[1][4] == "–"
    assert rows_of(folder.comparison("_groups.csv"))[0]["gpu_hours_sum"] == ""


@pytest.mark.parametrize("fates", [[None], ["diverged"], [None, None]])
def test_a_sweep_without_any_result_has_its_files_too(make: Make, fates: list[str | None]) -> None:
    folder = make(a=fates)
    report_sweep(folder.path)
    assert "No member is done yet" in page_of(folder).text
    assert len(rows_of(folder.comparison(".csv"))) == len(fates)
    assert not list(folder.plots.glob("scores*"))


def test_a_second_report_replaces_the_first_and_leaves_nothing_else(make: Make) -> None:
    folder = make(a=[(0.9, 0.8)])
    report_sweep(folder.path)
    names = sorted(path.name for path in folder.path.rglob("*"))
    report_sweep(folder.path)
    assert sorted(path.name for path in folder.path.rglob("*")) == names


def test_tensorflow_is_not_needed(make: Make) -> None:
    folder = make(a=[(0.9, 0.8)])
    code = (
        "import sys; from pathlib import Path; from bloodcell_dist.sweep.report import report_sweep, status_lines\n"
        "status_lines(Path(sys.argv[1])); assert 'matplotlib' not in sys.modules\n"
        "report_sweep(Path(sys.argv[1])); assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True, timeout=60)
