"""What the commands share: options, and how an ending becomes one message and an exit status. Imports no TensorFlow."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from bloodcell_dist.errors import RunEnded, exit_status_of, is_disk_full

DEBUG = (
    "data.max_examples=256",
    "data.balance=none",
    "train.global_batch_size=16",
    "train.epochs=2",
    "train.xla=off",
    "train.precision=float32",
    "train.checks=true",
    "distribute.strategy=single",
)


def add_train_options(parser: argparse.ArgumentParser) -> None:
    """The options of `bloodcell-dist train` and `python -m bloodcell_dist.train`."""
    add_settings_options(parser)
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        help="where everything is written; the same folder again continues (default: runs/, named by the settings)",
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        help="one device, 256 examples, 2 epochs, batches of 16, no XLA, no mixed precision, every step checked",
    )
    parser.add_argument(
        "--profile", action="store_true", help="trace a few steps for TensorBoard's profiler, in the run folder"
    )
    parser.add_argument("--eager", action="store_true", help="run without graphs, for a debugger; very slow")
    add_traceback_option(parser)


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--set`."""
    parser.add_argument("--config", metavar="YAML", help="file with settings; without it, the defaults")
    add_overrides_option(parser, "change a setting, for example --set train.epochs=5; may be repeated")


def add_overrides_option(parser: argparse.ArgumentParser, text: str) -> None:
    """`--set`, with this help."""
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides", help=text)


def add_traceback_option(parser: argparse.ArgumentParser) -> None:
    """`--traceback`."""
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")


def overrides_of(options: argparse.Namespace) -> Sequence[str]:
    """The `--set` texts of the train options, those of --debug and --eager first, so that the user's win."""
    debug = DEBUG if options.debug else ()
    eager = ("train.eager=true",) if options.eager else ()
    return [*debug, *eager, *options.overrides]


def run_command(command: Callable[[], None], show_traceback: bool) -> int:
    """Run a command; its exit status. An ending is one message on standard error, below a traceback if wanted."""
    try:
        command()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has had enough; exit quietly too
        return 1
    except (RunEnded, OSError) as error:
        disk_full = is_disk_full(error)
        if not disk_full and not isinstance(error, RunEnded):
            raise  # another error of the system: a bug, or a broken machine
        sys.stdout.flush()
        if show_traceback:
            traceback.print_exc()
        advice = "; free some space and run the same command again" if disk_full else ""
        print(f"bloodcell-dist: {error}{advice}", file=sys.stderr)
        return exit_status_of(error)
    except KeyboardInterrupt as error:
        return exit_status_of(error)
    return 0
