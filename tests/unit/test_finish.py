"""What is measured at the end of a run fits what metrics.jsonl tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloodcell_dist.errors import UserError
from bloodcell_dist.evaluation.finish import best_and_last
from bloodcell_dist.history import append_metrics


def test_the_rows_of_the_best_and_the_last_epoch(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "step": 10 * epoch + 10} for epoch in range(3)]
    for row in rows:
        append_metrics(tmp_path / "metrics.jsonl", row)
    assert best_and_last(tmp_path / "metrics.jsonl", 1) == (rows[1], rows[2])


@pytest.mark.parametrize("text", ["", '{"epoch": 0}\n{"epoch": 2}\n', '{"step": 10}\n'], ids=["none", "cut", "other"])
def test_a_file_without_the_best_epoch_gets_one_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        best_and_last(path, 1)
    assert str(caught.value) == (
        f'{path}: has no line with "epoch": 1, the best epoch; put the file back as training left it, '
        "or give another --run-dir for a new run"
    )
