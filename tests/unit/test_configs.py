"""The configurations: each says how to run it and what it reaches, and asks for what its name promises."""

from pathlib import Path

import numpy as np
import pytest

import bloodcell_dist
from bloodcell_dist.arithmetic import work_out
from bloodcell_dist.commandline import DEBUG
from bloodcell_dist.config import load_settings
from bloodcell_dist.models.backbones import BACKBONES

FOLDER = Path(bloodcell_dist.__file__).parents[1] / "configs"
FILES = sorted({*FOLDER.rglob("*.yaml")} - {FOLDER / "sweep.yaml"}, key=str)
WITHOUT_WEIGHTS = ("demo", "cnn", "mobilenetv3small_scratch")
names = pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(FOLDER)) for path in FILES])


@names
def test_each_opens_with_its_command_and_tells_what_it_reaches(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert header[0].startswith(f"# bloodcell-dist train --config configs/{path.relative_to(FOLDER)} --run-dir runs/")
    text = " ".join(line.removeprefix("# ") for line in header)
    assert "Measured" in text or "Not measured." in text
    assert "Hardware: " in text or "CPU" in text


@names
def test_each_asks_for_its_backbone_and_strictly_for_its_weights(path: Path) -> None:
    model = load_settings(path).model
    assert model.backbone == ("mobilenetv3small" if path.stem == "demo" else path.stem.removesuffix("_scratch"))
    assert model.weights == ("none" if path.stem in WITHOUT_WEIGHTS else "imagenet")
    if model.weights == "imagenet":
        assert f"weights fetch {model.backbone} --dest DIR" in path.read_text()


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "seed"])
def test_there_is_one_for_each_backbone(folder: Path) -> None:
    assert {path.stem for path in folder.glob("*.yaml")} >= set(BACKBONES)


@names
@pytest.mark.parametrize("debug", [False, True])
def test_stages_and_warm_up_fit_real_sets_and_the_debug_mode(path: Path, debug: bool) -> None:
    settings = load_settings(path, DEBUG if debug else ())
    labels = np.repeat(np.arange(8), 32 if debug else [767, 1963, 976, 1823, 764, 894, 2097, 1479])
    arithmetic = work_out(settings, labels, 1)
    assert len(arithmetic.stages.stages) == len(settings.finetune.stages)
    assert arithmetic.stages.stages[-1].end_step >= arithmetic.length.total_steps
    if debug:
        assert arithmetic.length.total_steps == 32  # 2 x 256 examples, whatever the recipe makes of an epoch
