"""Does fine-tuning help, and which way? Four kinds of cells to pre-train on, few cells of four others to learn.

    python benchmarks/finetuning.py training_set.npz test_set.npz --work /tmp/finetuning

Pre-trains MobileNetV3Small on all training cells of the even labels, then learns the odd labels from a few cells:
from scratch, the head only, in stages, and all layers at once. Every run is the ordinary command, so its folder holds
everything; finished runs are not repeated. Prints a table of test accuracies, which docs/finetuning.md discusses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from bloodcell_dist.settings import BLOOD_CELLS

SEEDS = (0, 1, 2)
CELLS_PER_CLASS = (12, 48)  # a quarter of them is for validation
UPDATES = 240
BATCH = 12
STAGES = (
    "[{{share: 0.2, train: head, rate: {}}}, {{share: 0.3, train: 'last:0.4', rate: {}}}, {{share: 0.5, rate: {}}}]"
)
COMMON = (
    "augment.policy=light",
    "model.backbone=mobilenetv3small",
    "optimizer.name=adamw",
    "optimizer.weight_decay=0.05",
    "evaluate.bootstrap=0",
)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path, help="npz with images and labels, eight classes")
    parser.add_argument("test", type=Path, help="npz with cells of the same classes")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    weights = pretrain(options.train, options.work)
    table = {
        (count, way): [test_accuracy(way, count, seed, options, weights) for seed in SEEDS]
        for count in CELLS_PER_CLASS
        for way in ways(weights)
    }
    print_table(table)


def pretrain(cells: Path, work: Path) -> Path:
    """The weight file of a network trained on the even labels."""
    data = select(cells, work / "even.npz", parity=0)
    balance = ("data.balance=oversample", "data.target_per_class=700")
    options = ("train.epochs=20", "optimizer.learning_rate=2e-3", "model.weights=none", *balance)
    run(work / "pretrained", f"data.path={data}", names(0), *options)
    return work / "pretrained" / "model.keras"


def ways(weights: Path) -> dict[str, tuple[str, ...]]:
    """The settings of each way to learn."""
    pretrained = f"model.weights={weights}"
    return {
        "from scratch": ("model.weights=none",),
        "head only": (pretrained, "finetune.stages=[{share: 1, train: head}]"),
        "head only, 10 x rate": (pretrained, "finetune.stages=[{share: 1, train: head, rate: 10}]"),
        "in stages": (pretrained, f"finetune.stages={STAGES.format(1, 0.5, 0.2)}"),
        "in stages, higher rates": (pretrained, f"finetune.stages={STAGES.format(10, 1, 1)}"),
        "all layers": (pretrained,),
    }


def test_accuracy(way: str, count: int, seed: int, options: argparse.Namespace, weights: Path) -> float:
    """Accuracy on the test cells of the odd labels after learning from `count` cells per class, drawn by `seed`."""
    work: Path = options.work
    data = select(options.train, work / f"odd-{count}-{seed}.npz", parity=1, per_class=count, seed=seed)
    test = select(options.test, work / "odd-test.npz", parity=1)
    folder = work / f"{way.replace(',', '').replace(' ', '-')}-{count}-{seed}"
    epochs = UPDATES // (count * 3 // BATCH)  # 4 classes, three quarters of the cells
    run(
        folder,
        *(f"data.path={data}", f"data.test_path={test}", names(1), "data.val_fraction=0.25"),
        *(f"train.epochs={epochs}", f"train.global_batch_size={BATCH}", f"train.seed={seed}"),
        *("optimizer.learning_rate=1e-3", "evaluate.select_by=loss", *ways(weights)[way]),
    )
    return float(json.loads((folder / "result.json").read_text())["test_accuracy"])


def select(source: Path, target: Path, *, parity: int, per_class: int | None = None, seed: int = 0) -> Path:
    """A file with the cells of every second label, renumbered from 0; `per_class` of each, drawn at random."""
    if not target.exists():
        with np.load(source) as file:
            images, labels = file["images"], file["labels"].ravel()
        generator = np.random.default_rng(seed)
        rows = [np.flatnonzero(labels == label) for label in range(parity, len(BLOOD_CELLS), 2)]
        chosen = np.sort(
            np.concatenate([r if per_class is None else generator.choice(r, per_class, False) for r in rows])
        )
        np.savez(target, images=images[chosen], labels=(labels[chosen] - parity) // 2)
    return target


def names(parity: int) -> str:
    """The setting that names every second class."""
    return f"data.class_names=[{', '.join(BLOOD_CELLS[parity::2])}]"


def run(folder: Path, *overrides: str) -> None:
    """`bloodcell-dist train` with these settings; a finished run is left alone."""
    settings = [part for override in (*COMMON, *overrides) for part in ("--set", override)]
    command = [sys.executable, "-m", "bloodcell_dist.train", "--run-dir", str(folder), *settings]
    subprocess.run(command, check=True, stdout=sys.stderr)


def print_table(table: dict[tuple[int, str], list[float]]) -> None:
    """Mean, lowest and highest accuracy of the seeds, as Markdown."""
    print("| learning | " + " | ".join(f"{count} cells per class" for count in CELLS_PER_CLASS) + " |")
    print("|---" * (1 + len(CELLS_PER_CLASS)) + "|")
    for way in ways(Path()):
        cells = [table[count, way] for count in CELLS_PER_CLASS]
        texts = [f"{np.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})" for values in cells]
        print(f"| {way} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
