"""The story of one run, top to bottom: `python -m bloodcell_dist.train`.

Running the same command again continues where the run stopped, or says that it is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from bloodcell_dist import logs, runtime  # runtime before all others: it imports TensorFlow quietly
from bloodcell_dist.commandline import add_train_options, overrides_of, run_command
from bloodcell_dist.conclusion import conclude
from bloodcell_dist.config import load_settings, settings_or_defaults
from bloodcell_dist.initial_weights import initial_weights
from bloodcell_dist.launch import ending_together, launched, this_process
from bloodcell_dist.models import imagenet
from bloodcell_dist.resolve import Machine
from bloodcell_dist.session import Session
from bloodcell_dist.start import (
    Opened,
    begin_run,
    check_begun,
    check_same_cells,
    load_data,
    open_run,
    record_loss,
    repeatable,
    run_folder,
    settle,
)
from bloodcell_dist.training.checkpoint import Checkpoint, Checkpoints
from bloodcell_dist.training.preemption import StopRequest
from bloodcell_dist.training.replication import Joined, replicate

log = logging.getLogger("bloodcell_dist.train")  # under `python -m` the name would be __main__


def train(options: argparse.Namespace, joined: Joined) -> None:
    """One run, from settings to report. Raises RunEnded for every ending a person should know of.

    Every worker runs this. Only the chief reads what it goes by and writes what it leaves; the others are told.
    """
    stop, workers = StopRequest(), joined.workers
    with contextlib.ExitStack() as stack, ending_together(joined):
        # 1. What is asked for, what `auto` means on this machine, and which run that is.
        machine = runtime.look_at_machine(workers.process)
        mine = _open(stack, options, machine) if workers.is_chief else None
        opened = Opened.from_json(workers.share(mine and mine.to_json()))
        settings, run = opened.settings, opened.run
        if opened.finished:
            log.info("%s is finished, see %s; give another --run-dir for a new run", run.path, run.report)
            return

        # 2. The way to run. From now on status.json tells whatever happens.
        joined.go_by(settings.distribute.timeout_s, lambda ending: record_loss(run, ending.exit_status, ending.message))
        replication = replicate(
            joined,
            settings.distribute.strategy,
            devices=settings.distribute.devices,
            gradient_compression=settings.distribute.gradient_compression,
        )

        with stop.listening(settings.checkpoint.on_signal, "TERM"), runtime.memory_explained():
            # 3. What it goes on from, or begins with: a missing weight file ends it before anything else is done.
            checkpoint, weights = _beginning(opened) if workers.is_chief else (None, None)

            # 4. The cells, loaded, cleaned and split; then the network and its optimizer.
            data = load_data(settings)
            check_same_cells(workers, data)
            stop.leave_if(workers.any(stop.is_set), "before training")
            runtime.configure(
                precision=settings.train.precision,
                deterministic=repeatable(settings, machine.num_gpus),
                eager=settings.train.eager,
            )
            session = Session(settings, run, data, replication, weights)

            # 5. All is well so far, so the run folder may be made; one that is there must be of these cells.
            if workers.is_chief and opened.begun:
                check_begun(run, data, weights)
            elif workers.is_chief:
                begin_run(stack, run, settings, data, weights)
            if workers.is_chief:
                session.introduce()

            # 6. Train, from the newest checkpoint if there is one.
            session.resume(checkpoint)
            session.train(stop, options.profile)

        # 7. Measure the best and the last model, export, report.
        conclude(session)


def _open(stack: contextlib.ExitStack, options: argparse.Namespace, machine: Machine) -> Opened:
    """The settings and the run folder. A run that has begun goes on with the settings it began with."""
    given = load_settings(options.config, overrides_of(options))
    settings, choices = settle(given, machine, imagenet.find)
    run = run_folder(options.run_dir, given, settings, options.debug)
    settings, begun = open_run(stack, run, given, settings)
    for line in [] if begun else choices:
        log.info(line)
    return Opened(settings, run, begun, run.result.exists())


def _beginning(opened: Opened) -> tuple[Checkpoint | None, Path | None]:
    """The newest checkpoint of a begun run, else the file with its initial weights, if it has any."""
    settings, folder = opened.settings, opened.run.checkpoints
    checkpoint = Checkpoints(folder, settings.checkpoint.keep).newest() if opened.begun else None
    return checkpoint, None if checkpoint else initial_weights(settings, imagenet.obtain)


def run_training(options: argparse.Namespace) -> None:
    """`train` among the other processes of this one's launcher."""
    process, given = this_process(), settings_or_defaults(options.config, overrides_of(options))
    runtime.set_up_xla(given.train.xla_cache_dir)
    quiet = contextlib.nullcontext() if process.is_chief else logs.silence()
    with quiet, launched(process, given.distribute.strategy) as joined:
        train(options, joined)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m bloodcell_dist.train`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bloodcell_dist.train", description=__doc__.splitlines()[0])
    add_train_options(parser)
    options = parser.parse_args(arguments)
    with logs.console():
        return run_command(lambda: run_training(options), options.traceback)


if __name__ == "__main__":
    sys.exit(main())
