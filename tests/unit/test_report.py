"""result.json and report.html: the figures, the honest words, and a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.evaluation import report
from bloodcell_dist.evaluation.metrics import SplitScores, score_split
from bloodcell_dist.evaluation.plots import plot_confusion, plot_curves
from bloodcell_dist.evaluation.report import Removed, ReportInputs, render_report, write_report
from bloodcell_dist.evaluation.result import ModelScores, build_result, summary
from bloodcell_dist.settings import BLOOD_CELLS, METRICS

HOSTILE = '<script>alert("1")</script>&\'"'
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds; the end tags must fit the start tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] = " ".join((self.rows[-1][-1] + " " + data).split())


def scores(accuracy: float, num_examples: int = 400, resamples: int = 100) -> SplitScores:
    """Scores of predictions with a set share of them right; each mistake takes the class for the next."""
    labels = np.arange(num_examples) % 8
    wrong = np.arange(num_examples) >= round(accuracy * num_examples)
    probabilities = np.full((num_examples, 8), 0.3 / 7)
    probabilities[np.arange(num_examples), np.where(wrong, (labels + 1) % 8, labels)] = 0.7
    return score_split(probabilities, labels, BLOOD_CELLS, resamples=resamples)


def make_result(val: float = 0.98, test: float | None = 0.9, **changed: Any) -> dict[str, Any]:
    training = SplitScores(scores(0.8, resamples=0).metrics, [], [], {})
    splits = {"train": training, "val": scores(val)}
    if test is not None:
        splits["test"] = scores(test, 800)
    settings: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "created": datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC),
        "backbone": "MobileNetV3Small",
        "class_names": BLOOD_CELLS,
        "seed": 7,
        "epochs": 14,
        "select_by": "macro_f1",
        "best": ModelScores(11, 1008, splits),
        "last": ModelScores(13, 1176, splits),
        "images_per_s": 431.2,
        "wall_s": 3725.0,
        "replicas": 1,
        "gpu_hours": 0.5,
        "versions": {"numpy": "2.0.2"},
    }
    return build_result(**settings | changed)


def make_inputs(**changed: Any) -> ReportInputs:
    inputs = ReportInputs(
        result=make_result(),
        settings_yaml="train:\n  seed: 7\n",
        environment={"python": "3.11.7", "versions": {"numpy": "2.0.2"}, "devices": ["CPU:0", "CPU:1"]},
        commands=["python -m bloodcell_dist.train --config config.yaml"],
        class_counts={"As found": [1200] * 8, "Training": list(range(8))},
        removed=[Removed("Exact duplicates", 1008, "The same picture twice.")],
        test_source="other_scanner.npz",
    )
    return replace(inputs, **changed)


def page_of(**changed: Any) -> Page:
    return Page(render_report(make_inputs(**changed)))


# ---- result.json


def test_the_result_has_its_documented_names_and_the_selected_models_figures(tmp_path: Path) -> None:
    result = make_result()
    atomic_write_json(tmp_path / "result.json", result)
    assert json.loads((tmp_path / "result.json").read_text(), parse_constant=pytest.fail) == result
    figures = {f"{split}_{name}" for split in ("train", "val", "test") for name in METRICS}
    assert set(result) == figures | {
        "format", "run_id", "created", "backbone", "class_names", "seed", "epochs", "select_by",
        "images_per_s", "wall_s", "replicas", "gpu_hours", "versions", "examples", "intervals", "per_class",
            "confusion", "best", "last",
    }  # fmt: skip
    assert result["val_accuracy"] == result["best"]["val_accuracy"] == 0.98
    assert result["test_accuracy"] == 0.9
    assert result["examples"] == {"val": 400, "test": 800}
    assert result["created"] == "2026-03-04T05:06:07+00:00"
    low, high = result["intervals"]["test_accuracy"]
    assert low < 0.9 < high
    assert (result["best"]["epoch"], result["last"]["step"]) == (11, 1176)
    assert sum(map(sum, result["confusion"]["test"])) == 800
    assert [row["class"] for row in result["per_class"]["val"]] == list(BLOOD_CELLS)
    for name in ("dataset", "config"):
        assert name not in result


def test_what_was_not_measured_or_has_no_value_is_null() -> None:
    one_class = score_split(np.array([[0.9, 0.1]]), np.array([0]), ["a", "b"])
    model = ModelScores(0, 1, {"val": one_class})
    result = make_result(class_names=["a", "b"], best=model, last=model)
    assert result["test_accuracy"] is None
    assert result["train_loss"] is None
    assert result["val_auc"] is None
    assert result["val_accuracy"] == 1
    assert json.dumps(result, allow_nan=False)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="splits are train, val, test; received validation"):
        ModelScores(0, 1, {"validation": scores(0.9)})


@pytest.mark.parametrize(
    ("test", "line"),
    [
        (0.9, r"best epoch 12 on the test set: accuracy 0.9000 \(95% interval 0.8\d+ to 0.9\d+\), macro-F1 0.\d{4}"),
        (None, r"best epoch 12 on the validation set \(split off the training cells\): accuracy 0.9800 .*"),
    ],
)
def test_the_summary_names_the_set_and_claims_no_more(test: float | None, line: str) -> None:
    assert re.fullmatch(line, summary(make_result(test=test)))


# ---- report.html


def test_the_key_figures_are_there() -> None:
    page = page_of()
    assert "MobileNetV3Small on 8 classes" in page.text
    assert "0123456789abcdef" in page.text
    assert "4 March 2026, 05:06 UTC" in page.text
    assert "14 epochs in 1 h 02 min" in page.text
    assert "431 images/s" in page.text
    assert "Test accuracy 90.0% 95% interval 8" in page.text
    assert "800 examples" in page.text
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["Metric"] == ["training", "validation", "test"] * 2
    assert "Selected model, epoch 12" in page.text
    assert "Last model, epoch 14" in page.text
    accuracies = [cell.split()[0] for cell in rows["Accuracy"]]
    assert accuracies == ["80.0%", "98.0%", "90.0%"] * 2
    assert re.fullmatch(r"90.0% 8\d.\d% – 9\d.\d%", rows["Accuracy"][2])
    assert rows["basophil"][:2] == ["1,200", "0"]  # the data table comes last
    assert rows["All"] == ["9,600", "28"]
    assert rows["Exact duplicates"] == ["1,008", "The same picture twice."]
    assert rows["versions.numpy"] == ["2.0.2"]
    assert rows["devices"] == ["CPU:0, CPU:1"]
    assert "python -m bloodcell_dist.train --config config.yaml" in page.text


def test_the_weakest_class_and_the_confusions_are_named() -> None:
    result = make_result()
    result["per_class"]["test"][3]["recall"] = 0.125
    result["confusion"]["test"][5][2] = 25
    page = page_of(result=result)
    assert "Weakest class: ig 12.5% found of 100 test examples" in page.text
    first = next(row for row in page.rows if row[:2] == ["monocyte", "erythroblast"])
    assert first[2] == "25"
    assert page.rows[page.rows.index(first) - 1][0] == "True class"  # the most frequent comes first


@pytest.mark.parametrize(
    ("val", "test", "same_source", "expected", "absent"),
    [
        (0.98, None, None, "No independent test set: these figures do not predict other laboratories", "promised"),
        (0.98, 0.9, None, "Validation promised 8.0 points more than the test set gave", "No independent"),
        (0.9, 0.96, None, "The test set was easier than validation, by 6.0 points", "promised"),
        (0.98, 0.97, None, "Validation and test agree within 1.0 points", "promised"),
        (0.98, 0.97, None, "If they share slides, stain or scanner", "comes from the same source"),
        (0.98, 0.97, True, "it does not predict other laboratories, stains or scanners", "If they share"),
        (0.98, 0.97, False, "come from another source than the training cells", "If they share"),
        (0.98, 0.9, None, "The epoch was chosen by validation macro-F1", "rule of three"),
        (0.98, 1.0, None, "no mistake in 800 examples. By the rule of three the true error rate on cells of "
         "this kind is below 0.4%", "promised"),
    ],
)  # fmt: skip
def test_the_summary_is_honest(
    val: float, test: float | None, same_source: bool | None, expected: str, absent: str
) -> None:
    page = page_of(result=make_result(val, test), test_is_same_source=same_source)
    assert expected in page.text
    assert absent not in page.text


def test_without_a_test_set_the_validation_figures_are_called_so() -> None:
    page = page_of(result=make_result(test=None), test_source=None)
    assert "Validation accuracy 98.0%" in page.text
    assert "Test accuracy" not in page.text
    assert ["Metric", "training", "validation", "training", "validation"] in page.rows


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"removed": []}, "Nothing had to be removed"),
        ({"removed": [], "cleaned": False}, "Cleaning was turned off ( data.clean: false )"),
        ({"near_groups": [4, 2, 2], "removed": []}, "Nothing had to be removed"),
        ({"near_groups": [4, 2, 2], "removed": []}, "8 pictures in 3 groups, the largest of 4. Each group lies on one"),
        ({"near_groups": [1200]}, "1,200 pictures in 1 group, the largest of 1,200."),
        (
            {"dropped": {"also in the test set": 1200, "near-duplicates of test cells": 3}},
            "nothing held out is learnt from: 1,200 also in the test set, 3 near-duplicates of test cells.",
        ),
        ({"notes": ["Cut short by train.max_steps."]}, "Cut short by train.max_steps."),
    ],
)
def test_what_was_done_with_the_data_is_said(changed: dict[str, Any], expected: str) -> None:
    assert expected in page_of(**changed).text


def test_what_was_not_found_is_not_mentioned() -> None:
    assert "Near-duplicates" not in page_of().text
    assert "Left out besides" not in page_of().text


def test_the_cleaning_picture_is_shown_even_if_nothing_was_removed(tmp_path: Path) -> None:
    (tmp_path / "cleaning.png").write_bytes(b"png")
    page = page_of(removed=[], near_groups=[2], pictures={"cleaning": tmp_path / "cleaning.png"})
    (picture,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert picture["alt"] == "Pictures that cleaning removed or kept together"


def test_text_from_outside_is_escaped() -> None:
    names = [HOSTILE, *BLOOD_CELLS[1:]]
    result = make_result(class_names=names, backbone=HOSTILE, run_id=HOSTILE)
    for row in (*result["per_class"]["test"], *result["per_class"]["val"]):
        row["class"] = HOSTILE
    page = page_of(
        result=result,
        settings_yaml=HOSTILE,
        environment={HOSTILE: HOSTILE},
        commands=[HOSTILE],
        class_counts={HOSTILE: [1] * 8},
        removed=[Removed(HOSTILE, 1, HOSTILE)],
        test_source=HOSTILE,
        dropped={HOSTILE: 1},
        notes=[HOSTILE],
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count(HOSTILE) >= 20


def test_a_class_without_examples_has_dashes() -> None:
    labels = np.arange(7).repeat(10)
    split = score_split(np.eye(8)[labels] * 0.93 + 0.00875, labels, BLOOD_CELLS, resamples=10)
    model = ModelScores(0, 1, {"val": split})
    page = page_of(result=make_result(best=model, last=model), class_counts={})
    assert ["platelet", "0", "0", "–", "–", "–", "–"] in page.rows


@pytest.mark.parametrize(
    ("share", "text"), [(None, "–"), (0, "0.0%"), (0.97449, "97.4%"), (0.9996, ">99.9%"), (1, "100.0%")]
)
def test_shares_are_not_rounded_up_to_all(share: float | None, text: str) -> None:
    assert report.format_percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s"), (59.6, "1 min 00 s"), (432, "7 min 12 s"), (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert report.format_duration(seconds) == text


def test_an_unknown_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="pictures are confusion, .*; received confusions"):
        make_inputs(pictures={"confusions": Path("x.png")})


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with pictures in a folder whose name needs quoting."""
    folder = tmp_path_factory.mktemp("run folder #1")
    result = make_result()
    pictures = {"confusion": folder / "confusion.png", "curves": folder / "curves.png"}
    plot_confusion(pictures["confusion"], np.array(result["confusion"]["test"]), BLOOD_CELLS)
    plot_curves(pictures["curves"], [{"epoch": 0, "train_loss": 1.0}, {"epoch": 1, "train_loss": 0.5}])
    write_report(folder / "report.html", make_inputs(result=result, pictures=pictures))
    for picture in pictures.values():
        picture.unlink()  # the report needs no other file
    return folder / "report.html"


def test_the_report_needs_no_other_file_no_script_and_no_network(report_file: Path) -> None:
    html = report_file.read_text(encoding="utf-8")
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    for attributes in pictures:
        assert attributes["alt"]
        assert (attributes["src"] or "").startswith("data:image/png;base64,")
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {"href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html


@pytest.fixture(scope="module")
def chromium() -> str:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        reason = "opening the report needs the program chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def browse(chromium: str, profile: Path, *arguments: str) -> str:
    """Standard output of a headless browser with a profile of its own that asks no network."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
        "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", *arguments,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_browser_shows_the_report(chromium: str, report_file: Path, tmp_path: Path) -> None:
    screenshot = tmp_path / "report.png"
    address = report_file.as_uri()
    browse(chromium, tmp_path / "a", f"--screenshot={screenshot}", "--window-size=1200,3000", address)
    with Image.open(screenshot) as picture:
        assert picture.size == (1200, 3000)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.std() > 20
    for top in range(0, 3000, 500):  # something stands in every part of the page
        assert pixels[top : top + 500].std() > 5
    saturated = np.ptp(pixels, axis=2) > 120  # the confusion matrix: blue and orange, nothing else is so colourful
    assert saturated.sum() > 20_000


def test_a_browser_reads_the_report_as_it_is_meant(chromium: str, report_file: Path, tmp_path: Path) -> None:
    seen = Page(browse(chromium, tmp_path / "b", "--dump-dom", report_file.as_uri()))
    meant = Page(report_file.read_text(encoding="utf-8"))
    assert seen.text == meant.text
    assert [tag for tag, _ in seen.tags] == [tag for tag, _ in meant.tags]
