"""`bloodcell-dist models`."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from bloodcell_dist import cli, models_command
from bloodcell_dist.models.backbones import BACKBONES
from bloodcell_dist.models.imagenet import HAS_IMAGENET

ROW = re.compile(r"(\w+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +(\d+)  (.+)")


def lines_of(caplog: pytest.LogCaptureFixture, weights_dir: str | None) -> list[str]:
    caplog.set_level(logging.INFO)
    models_command.show_models(weights_dir)
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNetB0's file lies in the folder that is given; looking for real files takes seconds."""

    def find(backbone: str, weights_dir: str | None) -> Path | None:
        assert backbone in HAS_IMAGENET
        return Path(weights_dir or "/nowhere") / "b0.h5" if backbone == "efficientnetb0" else None

    monkeypatch.setattr(models_command, "find", find)


@pytest.mark.slow
def test_all_backbones_are_compared(staged: None, caplog: pytest.LogCaptureFixture) -> None:
    lines = lines_of(caplog, "/weights")
    rows = [match.groups() for line in lines if (match := ROW.fullmatch(line))]
    assert [row[0] for row in rows] == list(BACKBONES)
    weights = {row[0]: float(row[1]) for row in rows}
    expected = {"convnextbase": 87.6, "efficientnetv2m": 53.2, "efficientnetv2s": 20.3, "efficientnetb0": 4.0}
    for backbone, millions in expected.items():
        assert weights[backbone] == pytest.approx(millions, abs=0.06)
    assert weights["mobilenetv3small"] == 0.94
    for _, _, *costs, smallest, _ in rows:
        flops, more_flops, memory, more_memory = map(float, costs)
        assert 4.5 < more_flops / flops < 5.6  # (224 / 96) squared is 5.4
        assert 0 < memory < more_memory
        assert smallest in ("16", "32")
    assert [row[0] for row in rows if row[-1] == "in /weights"] == ["efficientnetb0"]
    assert [row[0] for row in rows if row[-1] == "there are none"] == ["cnn"]
    assert sum(row[-1] == "not here" for row in rows) == 4


def test_the_table_says_its_units_and_is_aligned(
    staged: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_command, "BACKBONES", {name: BACKBONES[name] for name in ("cnn", "mobilenetv3small")})
    lines = lines_of(caplog, None)
    assert max(map(len, lines)) <= 120
    assert "GFLOPs: forward pass of one picture, a multiply-add counts as 2 operations" in lines
    about = "memory: to train with 32 pictures per replica, mixed_bfloat16, Lion and averaged weights, an estimate;"
    assert about in lines
    head, units, first, second = lines[-4:]
    assert units.split() == ["backbone", "M", "96", "px", "224", "px", "96", "px", "224", "px", "px", "found"]
    assert first.split()[0] == "cnn" and first.endswith("there are none")
    assert {head.index("ImageNet"), first.index("there"), second.index("not here")} == {units.index("found")}
    ends = [[match.end() for match in re.finditer(r"(?<= )[\d.]+(?= )", line)] for line in (first, second)]
    assert ends[0] == ends[1] and len(ends[0]) == 6


def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[str | None] = []
    monkeypatch.setattr(models_command, "show_models", received.append)
    assert cli.main(["models"]) == cli.main(["models", "--weights-dir", "files"]) == 0
    assert received == [None, "files"]
