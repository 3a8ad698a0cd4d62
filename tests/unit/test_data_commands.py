"""`bloodcell-dist data report` and `data preview`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bloodcell_dist import cli

DRAWN = ("data.source=synthetic", "data.synthetic_examples=200", "data.image_size=16", "data.cache_dir=off")


def call(command: str, out: Path, *settings: str) -> int:
    return cli.main(["data", command, "--out", str(out), *(part for text in settings for part in ("--set", text))])


def test_report_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (96, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images[:80], labels=np.arange(80) % 8)
    np.savez(tmp_path / "t.npz", images=images[72:], labels=np.arange(24) % 8)
    places = (f"data.path={tmp_path / 'a.npz'}", f"data.test_path={tmp_path / 't.npz'}")
    assert call("report", tmp_path / "out", *places, *DRAWN[2:]) == 0
    shown = capsys.readouterr().out
    assert "left out: 8 also in the test set" in shown
    assert [line.split()[1:] for line in shown.splitlines() if line.startswith("monocyte")] == [["10", "8", "1", "3"]]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cleaning.json", "cleaning.png"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preview.png", "preview", "preview.xyz"])
def test_preview_is_a_png_under_any_name(tmp_path: Path, name: str) -> None:
    assert call("preview", tmp_path / name, *DRAWN, "augment.policy=light") == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with Image.open(tmp_path / name) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("command", "out", "words"),
    [
        ("preview", "folder", "Is a directory"),
        ("preview", "/proc/preview.png", "cannot be written"),
        ("preview", "nowhere/preview.png", "its folder does not exist"),
        ("report", "file", "File exists"),
        ("report", "file/below", "Not a directory"),
        ("report", "folder", "Is a directory"),  # cleaning.json is a folder there
    ],
)
def test_out_that_cannot_be_written_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, out: str, words: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder" / "cleaning.json" / "kept").mkdir(parents=True)
    assert call(command, tmp_path / out, *DRAWN) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"bloodcell-dist: --out {tmp_path / out}: ")
    assert words in message and message.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".tmp")]
