"""The benchmarks run from end to end; what they measure is not looked at here."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import pytest
from keras.src.applications import convnext

from bloodcell_dist.models.backbones import BACKBONES

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    name = request.param
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look for it
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("script", ["convnext_step"], indirect=True)
def test_convnext_step(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def small(**options: Any) -> keras.Model:
        return convnext.ConvNeXt([1, 1, 1, 1], [8, 16, 24, 32], name="convnext_base", **options)

    monkeypatch.setitem(BACKBONES, "convnextbase", replace(BACKBONES["convnextbase"], constructor=small))
    script.main(["--size", "32", "--batch", "2", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "convnextbase, training step, float32, 2 pictures of 32x32 pixels, CPU"
    assert [line.split()[0] for line in lines[2:4]] == ["stock", "ours"]
    found = re.fullmatch(r"ours is \d+\.\d times faster; largest relative difference of the gradients (\S+)", lines[4])
    assert found and float(found[1]) < 1e-4


@pytest.mark.parametrize("script", ["augmentation"], indirect=True)
def test_augmentation(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--size", "17", "--batch", "4", "--rounds", "1", "--steps", "1"]
    script.main([*small, "--only", "posterisation", "stain", "policy light"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "augmentation, 4 pictures of 17x17 pixels, pictures per second, CPU"
    assert re.fullmatch(r"\| posterisation \| [\d,]+ \| [\d,]+ \| \d+\.\d \|", lines[3])
    assert re.fullmatch(r"\| stain \| [\d,]+ \| - \| - \|", lines[4])
    assert re.fullmatch(r"\| policy light \| [\d,]+ \| [\d,]+ \| \d+\.\d \|", lines[5])
    assert re.fullmatch(r"least gain: .*, \d+\.\d times faster than stock", lines[6])


@pytest.mark.parametrize("script", ["augmentation"], indirect=True)
def test_augmentation_knows_what_it_compares(script: ModuleType) -> None:
    for name in script.NAMES:
        ours, stock = script.pair(name, 24)
        assert ours.deterministic and (stock is None or not stock.deterministic)
        assert (stock is None) == (name in {"stain", "illumination", "noise"})
