"""What is collected of the members, and the table made of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist import cli
from bloodcell_dist.atomic import atomic_write_json
from bloodcell_dist.config import build_settings, dump_yaml
from bloodcell_dist.evaluation.metrics import SplitScores, score_split
from bloodcell_dist.evaluation.result import ModelScores, build_result
from bloodcell_dist.history import append_metrics
from bloodcell_dist.settings import BLOOD_CELLS
from bloodcell_dist.sweep import report
from bloodcell_dist.sweep.collect import Found, collect
from bloodcell_dist.sweep.compare import DRAWN, FIGURES, VALIDATION_ONLY, compare, figures_of
from bloodcell_dist.sweep.folder import Plan, Planned, SweepDir

LOST = "ended without a word: killed, or its node lost"


def scores(accuracy: float, resamples: int = 0) -> SplitScores:
    """Of 400 predictions, a share of them right."""
    labels = np.arange(400) % 8
    wrong = np.arange(400) >= round(accuracy * 400)
    probabilities = np.full((400, 8), 0.3 / 7)
    probabilities[np.arange(400), np.where(wrong, (labels + 1) % 8, labels)] = 0.7
    return score_split(probabilities, labels, BLOOD_CELLS, resamples=resamples)


def result(val: float, test: float | None, gpu_hours: float = 0.5, images_per_s: float = 1000.0) -> dict[str, Any]:
    """As a run writes it."""
    splits = {"train": scores(0.9), "val": scores(val)} | ({} if test is None else {"test": scores(test, 50)})
    model = ModelScores(epoch=2, step=30, splits=splits)
    return build_result(
        run_id="0" * 32, created=datetime(2026, 11, 25, tzinfo=UTC), backbone="cnn", class_names=BLOOD_CELLS, seed=0,
        epochs=3, select_by="macro_f1", best=model, last=model, images_per_s=images_per_s, wall_s=60.0, replicas=4,
        gpu_hours=gpu_hours, versions={},
    )  # fmt: skip


class Sweep:
    """A sweep folder that a test fills."""

    def __init__(self, path: Path, groups: Mapping[str, int]) -> None:
        self.folder = SweepDir(path)
        path.mkdir()
        (path / ".lock").touch()
        pairs = [(group, seed) for group, seeds in groups.items() for seed in range(seeds)]
        members = [
            Planned(index, f"{group}-seed{seed}", group, (), {"train.seed": seed}, "")
            for index, (group, seed) in enumerate(pairs)
        ]
        self.plan = self.folder.write(Plan("a|b", "/", tuple(members)), "name: s")

    def begin(self, name: str, epochs_done: int = 0, source: str = "npz", test_cells: str = "none") -> None:
        """A run of 5 epochs that has recorded some."""
        run = self.folder.run(name)
        run.path.mkdir(parents=True, exist_ok=True)
        data = {"source": source, "path": None if source == "synthetic" else "/x"}
        run.write_config(dump_yaml(build_settings({"data": data, "train": {"epochs": 5}}, "")))
        atomic_write_json(run.data, {"test cells": test_cells})
        for epoch in range(epochs_done):
            append_metrics(run.metrics, {"epoch": epoch, "val_macro_f1": 0.5 + epoch / 10})
        self.status(name, "running", None)

    def status(self, name: str, state: str, exit_status: int | None, message: str = "") -> None:
        content = {"state": state, "exit_status": exit_status, "message": message}
        atomic_write_json(self.folder.run(name).status, content)

    def finish(self, name: str, val: float, test: float | None, **more: Any) -> None:
        cells = more.pop("cells", "400 examples, SHA-256 a")
        self.begin(name, 3, more.pop("source", "npz"), "none" if test is None else cells)
        atomic_write_json(self.folder.run(name).result, result(val, test, **more))
        self.status(name, "done", 0)

    def record(self, index: int, *events: str) -> None:
        lines = [f"2026-11-25T08:20:59+0000 {event}\n" for event in events]
        self.folder.record(index).write_text("".join(lines))

    def found(self, queue: Mapping[int, str] | None = None) -> list[Found]:
        return collect(self.folder, self.plan, queue)


@pytest.fixture
def one(tmp_path: Path) -> Sweep:
    """A sweep of a single member, a-seed0."""
    return Sweep(tmp_path / "sweep", {"a": 1})


def lock_holder(sweep: Sweep, host: str, pid: int) -> None:
    sweep.folder.run("a-seed0").lock_file.write_text(json.dumps({"host": host, "pid": pid}))


START = "start job=12_0 restart=0 nodes=n1 at=none"


@pytest.mark.parametrize(
    ("events", "status", "queue", "expected"),
    [
        ((), None, None, ("waiting", "not started")),
        ((), None, {}, ("waiting", "not started")),
        ((), None, {0: "PENDING"}, ("queued", "")),
        ((START,), None, {0: "RUNNING"}, ("running", "")),
        ((START,), None, {0: "COMPLETING"}, ("running", "completing")),
        ((START,), ("running", None, ""), {0: "RUNNING"}, ("running", "")),
        ((START,), ("running", None, ""), {}, ("stopped", LOST)),
        (
            (START, "end status=75 requeued"),
            ("stopped, checkpoint saved", 75, "by USR1"),
            {0: "PENDING"},
            ("queued", ""),
        ),
        (
            (START, "end status=75 left to Slurm"),
            ("stopped, checkpoint saved", 75, "stopped by TERM after step 7, which is saved"),
            {},
            ("stopped", "stopped by TERM after step 7, which is saved"),
        ),
        ((START,), ("training failed", 3, "it\ndiverged"), {}, ("failed", "it diverged")),
        ((START, "end status=3 stopped: x"), ("training failed", 3, "it diverged"), None, ("failed", "it diverged")),
        (
            (START, START, "end status=139 stopped: ended 3 times in a row without a new checkpoint"),
            ("running", None, ""),
            {},
            ("failed", "ended 3 times in a row without a new checkpoint"),
        ),
        ((START, "end status=2 stopped: bad input, see above"), None, {}, ("failed", "bad input, see above")),
        ((START, "end status=0 done"), None, {}, ("failed", "ended well, but its result.json is missing")),
    ],
)
def test_how_an_unfinished_member_is(
    one: Sweep,
    events: tuple[str, ...],
    status: tuple[str, int | None, str] | None,
    queue: Mapping[int, str] | None,
    expected: tuple[str, str],
) -> None:
    if events:
        one.record(0, *events)
    if status:
        one.begin("a-seed0", 2)
        one.status("a-seed0", *status)
    (found,) = one.found(queue)
    assert (found.state, found.reason) == expected
    assert found.restarts == (1 if events.count(START) == 2 else 0)
    assert (found.epochs_done, found.epochs) == ((2, 5) if status else (0, None))


@pytest.mark.parametrize(
    ("host", "pid", "queue", "state"),
    [
        (socket.gethostname(), os.getpid(), None, "running"),
        (socket.gethostname(), os.getpid(), {}, "running"),
        (socket.gethostname(), 2**22 + 1, None, "stopped"),
        ("elsewhere", 1, None, "running"),
        ("elsewhere", 1, {}, "stopped"),
    ],
    ids=["here", "here, not queued", "gone", "elsewhere", "elsewhere, not queued"],
)
def test_a_run_lives_as_long_as_its_holder(
    one: Sweep, host: str, pid: int, queue: Mapping[int, str] | None, state: str
) -> None:
    """Of another machine only Slurm knows; without it, the run is believed."""
    one.begin("a-seed0")
    lock_holder(one, host, pid)
    assert one.found(queue)[0].state == state


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("bloodcell-dist: data.path: no such file", "data.path: no such file"),
        ("error    weights     there is no file; fix: fetch it", "weights     there is no file; fix: fetch it"),
    ],
)
def test_bad_input_is_told_by_the_newest_log(one: Sweep, line: str, reason: str) -> None:
    """The run has not begun, so it has no status.json."""
    one.record(0, START, "end status=2 stopped: bad input, see above")
    for number, text in ((11, "bloodcell-dist: old"), (12, f"ok\n{line}\nsrun: error: n1: task 0")):
        (one.folder.logs / f"{number}_0.out").write_text(text)
        os.utime(one.folder.logs / f"{number}_0.out", (number, number))
    (one.folder.logs / "12_10.out").write_text("bloodcell-dist: of another member")
    assert one.found({})[0].reason == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [('{"format": 2}', "its result.json has format 2; expected 1"), ("{", "its result.json cannot be read")],
)
def test_results_that_cannot_be_read_are_failures(one: Sweep, text: str, reason: str) -> None:
    one.finish("a-seed0", 0.9, 0.8)
    one.folder.run("a-seed0").result.write_text(text)
    (found,) = one.found()
    assert (found.state, found.reason, found.result) == ("failed", reason, None)


def test_figures_of_a_result() -> None:
    whole = result(0.95, 0.85)
    figures = figures_of(whole)
    assert list(figures) == list(FIGURES)
    assert figures["test_accuracy"] == whole["test_accuracy"] == 0.85
    assert figures["gap_accuracy"] == pytest.approx(0.10)
    assert (figures["images_per_s"], figures["gpu_hours"], figures["epochs"]) == (1000.0, 0.5, 3)
    older = {key: value for key, value in result(0.95, None).items() if key != "gpu_hours"}
    assert figures_of(older)["gpu_hours"] is figures_of(older)["gap_accuracy"] is None
    assert set(figures_of(None).values()) == {None}


@pytest.fixture
def six(tmp_path: Path) -> Sweep:
    """Two configurations of three seeds: one is done, of the other one seed is done, one failed, one waits."""
    sweep = Sweep(tmp_path / "a 'sweep'", {"good": 3, "better": 3})
    for seed, (val, test) in enumerate([(0.95, 0.80), (0.96, 0.84), (0.97, 0.88)]):
        sweep.finish(f"good-seed{seed}", val, test)
    sweep.finish("better-seed0", 0.94, 0.90, gpu_hours=2.0)
    sweep.begin("better-seed1", 2)
    sweep.status("better-seed1", "training failed", 3, "<b>diverged</b> | $x$")
    return sweep


def test_seeds_are_put_together_and_sorted_by_the_test_set(six: Sweep) -> None:
    comparison = compare("s", six.found())
    better, good = comparison.rows
    assert (better.name, good.name, comparison.split) == ("better", "good", "test")
    accuracy = good.spreads["test_accuracy"]
    assert (accuracy.mean, accuracy.sd) == (pytest.approx(0.84), pytest.approx(0.04))
    assert (accuracy.low, accuracy.high) == (0.80, 0.88)
    assert good.spreads["gap_accuracy"].mean == pytest.approx(0.12)
    alone = better.spreads["test_accuracy"]
    assert (alone.mean, alone.sd, alone.low, alone.high) == (0.9, None, 0.9, 0.9)
    assert (len(better.done), len(better.members)) == (1, 3)
    assert [note[:23] for note in comparison.notes] == ["THE ORDER IS NOT SURE a"]  # of `better` there is but one


def test_rows_without_test_set_come_after_those_with_one_and_empty_ones_last(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", {"none": 1, "untested": 1, "tested": 1})
    sweep.finish("untested-seed0", 0.99, None)
    sweep.finish("tested-seed0", 0.8, 0.7)
    comparison = compare("s", sweep.found())
    assert [row.name for row in comparison.rows] == ["tested", "untested", "none"]
    assert comparison.notes[0] == "Without a test set, and so not comparable with the others: untested-seed0."


@pytest.mark.parametrize(
    ("tests", "source", "cells", "notes"),
    [
        ((None, None), "npz", ("a", "a"), (VALIDATION_ONLY,)),
        ((0.5, 0.5), "synthetic", ("a", "a"), (DRAWN,)),
        ((0.5, 0.5), "npz", ("a", "b"), ("The members were not tested on the same cells",)),
        ((0.5, 0.5), "npz", ("a", "a"), ()),
    ],
)
def test_what_a_reader_must_know(
    tmp_path: Path, tests: Sequence[float | None], source: str, cells: Sequence[str], notes: Sequence[str]
) -> None:
    sweep = Sweep(tmp_path / "s", {"a": 2})
    for seed in (0, 1):
        sweep.finish(f"a-seed{seed}", 0.9, tests[seed], source=source, cells=cells[seed])
    found = compare("s", sweep.found()).notes
    assert len(found) == len(notes)
    assert all(text.startswith(note) for text, note in zip(found, notes, strict=True))


def test_the_report_writes_every_file(six: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "report", str(six.folder.path)]) == 0
    folder = six.folder.path
    assert (folder / "comparison.md").read_text() in capsys.readouterr().out
    assert {path.name for path in folder.glob("comparison*")} == {
        *("comparison.csv", "comparison_groups.csv", "comparison.json", "comparison.md", "comparison.html")
    }
    assert {path.name for path in (folder / "plots").iterdir()} == {"scores.png", "cost.png", "curves.png"}
    for picture in (folder / "plots").iterdir():
        with Image.open(picture) as opened:
            assert opened.width > 800 and len(set(opened.convert("L").resize((60, 60)).tobytes())) > 10


class Page(HTMLParser):
    """Its words, and whether tags are closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.words.append(data)


def test_the_page_is_one_file_and_tells_what_is_missing(six: Sweep) -> None:
    report.write_comparison(six.folder, "a <i> & 'b'", six.found())
    html = six.folder.comparison(".html").read_text()
    page = Page(html)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 3 and all(source and source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in html and not any(tag == "script" for tag, _ in page.tags)
    assert "a <i> & 'b'" in page.text
    assert "Not done: better-seed1 (failed), better-seed2 (waiting)" in page.text
    assert "<b>diverged</b> | $x$" in page.text
    assert "84.0% ± 4.0" in page.text and "how much validation flatters" in page.text


def test_without_a_test_set_the_page_says_so_above_the_table(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", {"a": 1, "b": 1})
    sweep.finish("a-seed0", 0.9, None, gpu_hours=0.0)
    sweep.finish("b-seed0", 0.8, None, gpu_hours=0.0)
    report.write_comparison(sweep.folder, "s", sweep.found())
    text = Page(sweep.folder.comparison(".html").read_text()).text
    assert text.index("VALIDATION ONLY") < text.index("Configuration")
    assert "Test" not in text and "no GPU in use" in text
    assert f"**{VALIDATION_ONLY}**" in sweep.folder.comparison(".md").read_text()


@pytest.mark.slow
def test_many_configurations_and_epochs_are_drawn(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s", {f"configuration-{number}": 1 for number in range(30)})
    for number in range(30):
        sweep.finish(f"configuration-{number}-seed0", 0.5 + number / 100, 0.5, images_per_s=100.0 + number)
    for epoch in range(3, 40):
        append_metrics(sweep.folder.run("configuration-0-seed0").metrics, {"epoch": epoch, "val_macro_f1": None})
    assert len(report.write_comparison(sweep.folder, "s", sweep.found()).rows) == 30


def test_status(six: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", "status", str(six.folder.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0  good-seed0    done: val accuracy 0.9500, test accuracy 0.8000, macro-F1 0.8000"
    assert lines[4] == "4  better-seed1  failed: <b>diverged</b> | $x$"
    assert lines[5] == "5  better-seed2  waiting"
    assert cli.main(["sweep", "status", str(six.folder.path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows] == ["done"] * 4 + ["failed", "waiting"]
    assert (rows[4]["epochs_done"], rows[4]["epochs_asked"], rows[0]["figures"]["val_accuracy"]) == (2, 5, 0.95)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_no_width_of_the_screen_cuts_the_page(six: Sweep, tmp_path: Path, width: int) -> None:
    """Wide tables scroll in themselves; the page does not."""
    report.write_comparison(six.folder, "s", six.found())
    frame = f"<iframe id=page style='width:{width}px;height:900px;border:0' srcdoc='%s'></iframe>"
    look = "const root = page.contentDocument.documentElement; fits = root.scrollWidth <= root.clientWidth"
    script = f"<script>onload = () => {{ {look}; document.body.id = fits ? 'fits' : 'cut' }}</script>"
    outer = tmp_path / "outer.html"
    inner = six.folder.comparison(".html").read_text().replace("&", "&amp;").replace("'", "&#39;")
    outer.write_text(f"<html><body>{frame % inner}{script}</body></html>")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"file://{outer}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert '<body id="fits">' in done.stdout
