"""The story of one run, top to bottom: `python -m bloodcell_dist.train`.

Running the same command again continues where the run stopped, or says that it is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence

from bloodcell_dist import logs, runtime  # runtime before all others: it imports TensorFlow quietly
from bloodcell_dist.commandline import add_train_options, overrides_of, run_command
from bloodcell_dist.conclusion import conclude
from bloodcell_dist.config import load_settings
from bloodcell_dist.initial_weights import initial_weights
from bloodcell_dist.models import imagenet
from bloodcell_dist.session import Session
from bloodcell_dist.start import (
    begin_run,
    check_begun,
    load_data,
    open_run,
    repeatable,
    run_folder,
    settle,
)
from bloodcell_dist.training.checkpoint import Checkpoints
from bloodcell_dist.training.preemption import StopRequest

log = logging.getLogger("bloodcell_dist.train")  # under `python -m` the name would be __main__


def train(options: argparse.Namespace) -> None:
    """One run, from settings to report. Raises RunEnded for every ending a person should know of."""
    stop = StopRequest()
    with contextlib.ExitStack() as stack:
        # 1. What is asked for, and what `auto` means on this machine.
        given = load_settings(options.config, overrides_of(options))
        machine = runtime.look_at_machine()
        settings, choices = settle(given, machine, imagenet.find)
        run = run_folder(options.run_dir, given, settings, options.debug)

        # 2. A run that has begun goes on with the settings it began with; a finished one is left alone.
        settings, begun = open_run(stack, run, given, settings)
        for line in [] if begun else choices:
            log.info(line)
        if run.result.exists():
            log.info("%s is finished, see %s; give another --run-dir for a new run", run.path, run.report)
            return

        with stop.listening(settings.checkpoint.on_signal, "TERM"), runtime.memory_explained():
            # 3. What it goes on from, or begins with: a missing weight file ends it before anything else is done.
            checkpoint = Checkpoints(run.checkpoints, settings.checkpoint.keep).newest() if begun else None
            weights = None if checkpoint else initial_weights(settings, imagenet.obtain)

            # 4. The cells, loaded, cleaned and split; then the network and its optimizer.
            data = load_data(settings)
            stop.leave_if_set()
            runtime.configure(
                precision=settings.train.precision,
                deterministic=repeatable(settings, machine.num_gpus),
                eager=settings.train.eager,
            )
            session = Session(settings, run, data, weights)

            # 5. All is well so far, so the run folder may be made; one that is there must be of these cells.
            if begun:
                check_begun(run, data, weights)
            else:
                begin_run(stack, run, settings, data, weights)
            session.introduce()

            # 6. Train, from the newest checkpoint if there is one.
            session.resume(checkpoint)
            session.train(stop)

        # 7. Measure the best and the last model, export, report.
        conclude(session)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m bloodcell_dist.train`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bloodcell_dist.train", description=__doc__.splitlines()[0])
    add_train_options(parser)
    options = parser.parse_args(arguments)
    with logs.console():
        return run_command(lambda: train(options), options.traceback)


if __name__ == "__main__":
    sys.exit(main())
