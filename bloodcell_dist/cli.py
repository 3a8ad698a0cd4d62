"""`bloodcell-dist COMMAND`: thin, and quick to answer: what needs TensorFlow is imported when a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bloodcell_dist import __version__
from bloodcell_dist.bench import PARTS
from bloodcell_dist.commandline import (
    add_overrides_option,
    add_settings_options,
    add_traceback_option,
    add_train_options,
    run_command,
)

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0 done, 2 bad input, 3 training failed, 75 stopped and saved."""
    given, for_sbatch = _split(list(sys.argv[1:] if arguments is None else arguments))
    options = build_parser().parse_args(given)
    options.for_sbatch = for_sbatch
    from bloodcell_dist import logs

    with logs.console():
        return run_command(lambda: options.command(options), options.traceback)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments, and those behind a lone `--` of `sweep submit`: argparse cannot tell them from its own."""
    if arguments[:2] != ["sweep", "submit"] or "--" not in arguments:
        return arguments, []
    cut = arguments.index("--")
    return arguments[:cut], arguments[cut + 1 :]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="bloodcell-dist", description="Train classifiers of single blood cells, and find out how good they are."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    add_train_options(_add(commands, "train", "train a network, or continue a stopped run", _train))

    evaluate = _add(commands, "evaluate", "measure a finished run, or several averaged, on labelled cells", _evaluate)
    evaluate.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
    evaluate.add_argument("--data", required=True, metavar="PATH", help="npz, MedMNIST file or folder of class folders")
    evaluate.add_argument("--out", metavar="DIR", help="where to write (default: evaluations/NAME in the first RUN)")
    add_traceback_option(evaluate)

    predict = _add(commands, "predict", "classify pictures with a finished run, or several averaged", _predict)
    predict.add_argument("runs", nargs="+", metavar="RUN", help="folders of finished runs")
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

    doctor = _add(commands, "doctor", "check machine, installation, cells, weights, folders, job and network", _doctor)
    add_train_options(doctor)
    doctor.add_argument("--quick", action="store_true", help="without TensorFlow, this process only: some 2 seconds")
    doctor.add_argument("--json", action="store_true", help="print an array of {name, level, text, fix}")

    bench = _add(commands, "bench", "measure how fast this machine trains with given settings, part by part", _bench)
    bench.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    add_settings_options(bench)
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each is measured (default: 5)")
    bench.add_argument("--json", metavar="FILE", help="write the figures and the machine's facts to this file")
    add_traceback_option(bench)

    sweep = commands.add_parser("sweep", help="many trainings at once: under Slurm or here, and one table of them all")
    _add_sweep_commands(sweep.add_subparsers(title="commands", required=True, metavar="COMMAND"))

    models = _add(
        commands, "models", "compare the networks: weights, operations, memory, where the ImageNet weights are", _models
    )
    models.add_argument("--weights-dir", metavar="DIR", help="folder in which weight files are looked for first")
    add_traceback_option(models)

    weights = commands.add_parser("weights", help="ImageNet weight files, for machines without internet")
    weights_commands = weights.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_weights_commands(weights_commands)
    return parser


def _add_weights_commands(commands: argparse._SubParsersAction) -> None:
    only = "look only in this folder (default: wherever a training run looks)"
    fetch = _add(commands, "fetch", "download weight files and check them", _weights_fetch)
    fetch.add_argument("names", nargs="+", metavar="NAME", help="a backbone, for example convnextbase, or all")
    fetch.add_argument(
        "--dest", metavar="DIR", help="where to write (default: $BLOODCELL_WEIGHTS, else ~/.keras/models)"
    )
    fetch.add_argument("--mirror", metavar="URL", help="folder on another server that holds the files")
    add_traceback_option(fetch)
    listing = _add(commands, "list", "show which weight files there are, and where", _weights_list)
    listing.add_argument("--dest", metavar="DIR", help=only)
    add_traceback_option(listing)
    verify = _add(commands, "verify", "compare weight files with their hashes", _weights_verify)
    verify.add_argument("names", nargs="*", metavar="NAME", help="backbones that must be there (default: those found)")
    verify.add_argument("--dest", metavar="DIR", help=only)
    add_traceback_option(verify)


def _add_sweep_commands(commands: argparse._SubParsersAction) -> None:
    plan = _add(commands, "plan", "write the folder of a sweep and print its path", _sweep_plan)
    submit = _add(
        commands, "submit", "submit a sweep to Slurm; what stands behind a lone -- goes to sbatch", _sweep_submit
    )
    submit.add_argument("--at-once", type=int, metavar="N", help="members that train at the same time")
    submit.add_argument("--dry-run", action="store_true", help="only print the batch files and the commands")
    run = _add(commands, "run", "train the members one after another on this machine, then compare", _sweep_run)
    run.add_argument("--local", action="store_true", help="on this machine; must be said")
    for parser in (plan, submit, run):
        parser.add_argument("spec", metavar="SPEC", help="YAML file of the sweep, such as configs/sweep.yaml")
        parser.add_argument("--out", metavar="DIR", help="folder of the sweep (default: sweeps/NAME)")
        add_overrides_option(parser, "change a setting of all members; may be repeated")
        add_traceback_option(parser)
    status = _add(commands, "status", "say how each member is", _sweep_status)
    status.add_argument("--json", action="store_true", help="print an array of objects")
    report = _add(commands, "report", "compare what there is, as CSV, Markdown, HTML and plots", _sweep_report)
    for parser in (status, report):
        parser.add_argument("folder", metavar="DIR", help="folder of the sweep")
        add_traceback_option(parser)


def _part(name: str) -> str:
    """A part of bench; argparse's own `choices` refuse that none is given."""
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"invalid choice: {name!r} (choose from {', '.join(PARTS)})")
    return name


def _add(commands: argparse._SubParsersAction, name: str, text: str, command: Command) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _train(options: argparse.Namespace) -> None:
    from bloodcell_dist.train import run_training

    run_training(options)


def _settings(options: argparse.Namespace) -> None:
    from bloodcell_dist.config import describe_settings

    print("\n".join(describe_settings()))


def _evaluate(options: argparse.Namespace) -> None:
    from bloodcell_dist.serving.commands import evaluate_runs

    evaluate_runs(options.runs, options.data, options.out)


def _predict(options: argparse.Namespace) -> None:
    from bloodcell_dist.serving.commands import predict_pictures

    predict_pictures(options.runs, options.input, options.out)


def _data_report(options: argparse.Namespace) -> None:
    from bloodcell_dist.data_commands import report_data

    report_data(options.config, options.overrides, options.out)


def _data_preview(options: argparse.Namespace) -> None:
    from bloodcell_dist.data_commands import preview_policy

    preview_policy(options.config, options.overrides, options.out)


def _doctor(options: argparse.Namespace) -> None:
    from bloodcell_dist.doctor_command import run_doctor

    run_doctor(options)


def _bench(options: argparse.Namespace) -> None:
    from bloodcell_dist.bench_command import run_bench

    run_bench(options)


def _sweep_plan(options: argparse.Namespace) -> None:
    from bloodcell_dist.sweep_commands import plan_sweep

    plan_sweep(options.spec, options.overrides, options.out)


def _sweep_submit(options: argparse.Namespace) -> None:
    from bloodcell_dist.sweep_commands import submit_sweep

    submit_sweep(
        options.spec, options.overrides, options.out, options.at_once, options.for_sbatch, dry_run=options.dry_run
    )


def _sweep_run(options: argparse.Namespace) -> None:
    from bloodcell_dist.sweep_commands import run_sweep

    run_sweep(options.spec, options.overrides, options.out, local=options.local)


def _sweep_status(options: argparse.Namespace) -> None:
    from bloodcell_dist.sweep_commands import show_status

    show_status(options.folder, as_array=options.json)


def _sweep_report(options: argparse.Namespace) -> None:
    from bloodcell_dist.sweep_commands import report_sweep

    report_sweep(options.folder)


def _models(options: argparse.Namespace) -> None:
    from bloodcell_dist.models_command import show_models

    show_models(options.weights_dir)


def _weights_fetch(options: argparse.Namespace) -> None:
    from bloodcell_dist.weights_commands import fetch_weights

    fetch_weights(options.names, options.dest, options.mirror)


def _weights_list(options: argparse.Namespace) -> None:
    from bloodcell_dist.weights_commands import list_weights

    list_weights(options.dest)


def _weights_verify(options: argparse.Namespace) -> None:
    from bloodcell_dist.weights_commands import verify_weights

    verify_weights(options.names, options.dest)


if __name__ == "__main__":
    sys.exit(main())
