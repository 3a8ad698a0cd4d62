"""How much memory four ranks of a node take for a set of 1 GB with `data.placement=host`.

    .venv/bin/python benchmarks/shared_pages.py

Trains with `horovodrun -np 4` (MobileNetV3Small, 96x96 pixels) twice: one epoch of the whole set and ten of a tenth of
it, equally many steps. The memory is the ranks' proportional set size (PSS, /proc/PID/smaps_rollup), in which a page
that four processes share counts a quarter for each. What the larger set adds, at the peak, by its bytes, is what a byte
costs.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

THREADS = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
PICTURE = 96 * 96 * 3


def write_set(path: Path, count: int) -> None:
    """Noise, no two pictures alike, as a set that the package reads."""
    generator = np.random.default_rng(count)
    images = generator.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 8)


def settings(path: Path, cache: Path, options: argparse.Namespace, steps: int, epochs: int) -> list[str]:
    """Of a short training that reads every picture."""
    chosen = (
        *(f"data.path={path}", f"data.cache_dir={cache}", f"data.placement={options.placement}"),
        *("data.group_near_duplicates=false", "augment.policy=none", f"model.backbone={options.backbone}"),
        *(f"train.global_batch_size={16 * options.ranks}", f"train.max_steps={steps}", f"train.epochs={epochs}"),
        *("evaluate.bootstrap=0", "distribute.timeout_s=300"),
    )
    return [part for setting in chosen for part in ("--set", setting)]


def ranks_of(folder: Path) -> list[Path]:
    """The /proc folders of the training's ranks."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it has just ended
        if str(folder) in arguments and "bloodcell_dist.train" in arguments and "-np" not in arguments:
            found.append(process)
    return found


def memory_of(process: Path) -> tuple[int, int]:
    """PSS in bytes, and how much of it are pages of mapped files."""
    try:
        text = (process / "smaps_rollup").read_text()
    except OSError:
        return 0, 0
    found = {name: int(size) << 10 for name, size in re.findall(r"^(Pss|Pss_File):\s+(\d+) kB", text, re.MULTILINE)}
    return found.get("Pss", 0), found.get("Pss_File", 0)


def peak(count: int, epochs: int, options: argparse.Namespace) -> tuple[int, int]:
    """The most that all ranks together had, and the most in mapped files, bytes; cells decoded before."""
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.folder) as name:
        folder = Path(name)
        write_set(folder / "set.npz", count)
        steps = int(0.9 * count) // (16 * options.ranks) * epochs
        train = [sys.executable, "-m", "bloodcell_dist.train", "--run-dir"]
        shared = settings(folder / "set.npz", folder / "cache", options, steps, epochs)
        first = [*train, str(folder / "first"), *shared, "--set", "train.max_steps=1"]
        environment = os.environ | dict.fromkeys(THREADS, "1") | {"TF_CPP_MIN_LOG_LEVEL": "2"}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        subprocess.run(first, env=environment, check=True, **quiet)  # decodes into the cache
        launcher = [str(Path(sys.executable).with_name("horovodrun")), "-np", str(options.ranks)]
        command = [*launcher, *train, str(folder / "run"), *shared]
        with subprocess.Popen(command, env=environment, **quiet) as training:
            most = (0, 0)
            while training.poll() is None:
                each = [memory_of(process) for process in ranks_of(folder / "run")]
                sums = [sum(values) for values in zip(*each, strict=True)] if len(each) == options.ranks else [0, 0]
                most = (max(most[0], sums[0]), max(most[1], sums[1]))
                time.sleep(0.5)
        if training.returncode:
            raise SystemExit(f"the training ended with exit status {training.returncode}")
        return most


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the larger set")
    parser.add_argument("--backbone", default="mobilenetv3small")
    parser.add_argument("--placement", default="host", choices=("host", "device"))
    parser.add_argument("--folder", metavar="DIR", help="where the sets are written (the system's temporary folder)")
    options = parser.parse_args(arguments)
    counts = [int(gigabytes * 1e9 / PICTURE) for gigabytes in (options.gigabytes / 10, options.gigabytes)]
    (small, small_files), (large, large_files) = (
        peak(count, epochs, options) for count, epochs in zip(counts, (10, 1), strict=True)
    )
    added = PICTURE * (counts[1] - counts[0]) / 1e9
    for name, count, found in zip(("a tenth", "the set"), counts, (small, large), strict=True):
        size = PICTURE * count / 1e9
        print(f"{name}, {size:.2f} GB: {options.ranks} ranks took up to {found / 1e9:.2f} GB")
    more = (large - small) / 1e9
    print(f"for {added:.2f} GB more pictures they took {more:.2f} GB more, {more / added:.2f} per byte")
    print(f"of which mapped files: {(large_files - small_files) / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
