"""Several trainings in one process, or one group of processes; keeps the indices that this worker was fed.

`python trainings.py OUT '[["--run-dir", …], …]'`
"""

import json
import sys
from pathlib import Path

import numpy as np

from bloodcell_dist import commandline, logs
from bloodcell_dist.launch import launched, this_process
from bloodcell_dist.train import train
from bloodcell_dist.training.replication import Replication

out, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
fed: list[np.ndarray] = []
feed = Replication.feed


def remember(self, *arguments):  # type: ignore[no-untyped-def]
    for parts in feed(self, *arguments):
        fed.extend(np.asarray(parts[0]))
        yield parts


Replication.feed = remember  # type: ignore[method-assign]


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    commandline.add_train_options(parser)
    process = this_process()
    with launched(process) as joined:
        for number, arguments in enumerate(runs):
            fed.clear()
            train(parser.parse_args(arguments), joined)
            np.save(out / f"fed-{number}-{process.rank}.npy", np.stack(fed))


with logs.console():
    sys.exit(commandline.run_command(main, True))
