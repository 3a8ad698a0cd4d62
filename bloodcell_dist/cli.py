"""`bloodcell-dist COMMAND`: thin, and quick to answer: what needs TensorFlow is imported when a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bloodcell_dist import __version__
from bloodcell_dist.commandline import add_settings_options, add_traceback_option, add_train_options, run_command

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 2 bad input, 3 training failed, 75 stopped and saved."""
    options = build_parser().parse_args(arguments)
    from bloodcell_dist import logs

    with logs.console():
        return run_command(lambda: options.command(options), options.traceback)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bloodcell-dist", description="Train classifiers of single blood cells, and find out how good they are."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_train_options(_add(commands, "train", "train a network, or continue a stopped run", _train))

    evaluate = _add(commands, "evaluate", "measure a finished run on labelled cells", _evaluate)
    evaluate.add_argument("run", metavar="RUN", help="folder of a finished run")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="npz, MedMNIST file or folder of class folders")
    evaluate.add_argument("--out", metavar="DIR", help="where to write (default: RUN/evaluations/NAME)")
    add_traceback_option(evaluate)

    predict = _add(commands, "predict", "classify pictures with a finished run", _predict)
    predict.add_argument("run", metavar="RUN", help="folder of a finished run")
    predict.add_argument("input", metavar="INPUT", help="a picture, a folder of pictures, or an npz with `images`")
    predict.add_argument("--out", required=True, metavar="CSV", help="table of predictions to write")
    add_traceback_option(predict)

    add_traceback_option(_add(commands, "settings", "list all settings with their defaults", _settings))

    data = commands.add_parser("data", help="look at cells: cleaning report, augmentation preview")
    data_commands = data.add_subparsers(title="commands", required=True, metavar="COMMAND")
    report = _add(data_commands, "report", "clean and split as a run would, and show what happens", _data_report)
    report.add_argument("--out", required=True, metavar="DIR", help="folder for cleaning.json and cleaning.png")
    add_settings_options(report)
    add_traceback_option(report)
    preview = _add(data_commands, "preview", "draw an augmentation policy as before/after cells", _data_preview)
    preview.add_argument("--out", required=True, metavar="PNG", help="picture to write")
    add_settings_options(preview)
    add_traceback_option(preview)
    return parser


def _add(commands: argparse._SubParsersAction, name: str, text: str, command: Command) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _train(options: argparse.Namespace) -> None:
    from bloodcell_dist.train import train

    train(options)


def _settings(options: argparse.Namespace) -> None:
    from bloodcell_dist.config import describe_settings

    print("\n".join(describe_settings()))


def _evaluate(options: argparse.Namespace) -> None:
    from bloodcell_dist.serving.commands import evaluate_run

    evaluate_run(options.run, options.data, options.out)


def _predict(options: argparse.Namespace) -> None:
    from bloodcell_dist.serving.commands import predict_pictures

    predict_pictures(options.run, options.input, options.out)


def _data_report(options: argparse.Namespace) -> None:
    from bloodcell_dist.data_commands import report_data

    report_data(options.config, options.overrides, options.out)


def _data_preview(options: argparse.Namespace) -> None:
    from bloodcell_dist.data_commands import preview_policy

    preview_policy(options.config, options.overrides, options.out)


if __name__ == "__main__":
    sys.exit(main())
