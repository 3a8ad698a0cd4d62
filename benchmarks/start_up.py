"""What a start costs before the second update: import, cells, network, first step; with and without a warm XLA cache.

    .venv/bin/python benchmarks/start_up.py                       # xla as `auto` chooses it
    .venv/bin/python benchmarks/start_up.py --backbones mobilenetv3small --set train.xla=on

Each start is a process of its own. `cold` compiles everything, `warm` finds it in `train.xla_cache_dir`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

BACKBONES = ("cnn", "mobilenetv3small", "efficientnetb0", "efficientnetv2s", "efficientnetv2m", "convnextbase")
PARTS = ("import", "build", "first step", "second step")
MARK = "START_UP "


def begin(backbone: str, batch: int, overrides: Sequence[str]) -> None:
    """One start, in this process; prints the seconds of its parts."""
    clocks = [time.perf_counter()]
    from trainer import Trainer, noise, quiet

    from bloodcell_dist import runtime

    clocks.append(time.perf_counter())
    settings = [f"model.backbone={backbone}", f"train.global_batch_size={batch}", "augment.policy=seed", *overrides]
    cache = next((text.partition("=")[2] for text in overrides if text.startswith("train.xla_cache_dir=")), None)
    runtime.set_up_xla(cache)
    runtime.configure(precision="float32", deterministic=True, eager=False)
    trainer = Trainer(*noise(2 * batch), settings)
    clocks.append(time.perf_counter())
    with quiet():
        for _ in range(2):
            trainer.train(1)
            clocks.append(time.perf_counter())
    seconds = [later - earlier for earlier, later in itertools.pairwise(clocks)]
    print(MARK + json.dumps(dict(zip(PARTS, seconds, strict=True))))


def start(backbone: str, batch: int, overrides: Sequence[str]) -> dict[str, float]:
    """The seconds of the parts of a start in a new process."""
    more = [part for text in overrides for part in ("--set", text)]
    command = [sys.executable, __file__, "--begin", backbone, "--batch", str(batch), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.partition(MARK)[2])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", default=",".join(BACKBONES), help="separated by commas")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--begin", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.begin:
        begin(given.begin, given.batch, given.overrides)
        return
    print(f"{'seconds':24}" + "".join(f"{part:>13}" for part in PARTS))
    for backbone in given.backbones.split(","):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as cache:
            for name in ("cold", "warm"):
                found = start(backbone, given.batch, [f"train.xla_cache_dir={cache}", *given.overrides])
                print(f"{backbone + ', ' + name:24}" + "".join(f"{found[part]:13.1f}" for part in PARTS), flush=True)


if __name__ == "__main__":
    main()
