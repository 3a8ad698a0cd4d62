"""The text of batch files for Slurm, as pure functions; `slurm_client.py` hands them in.

sbatch reads `#SBATCH` lines itself, not by a shell's rules: a value may stand between double quotes, in which a
backslash keeps the character after it, and `#` begins a comment outside them. In the names of output files `%` begins
a replacement (`%%` is a plain one), and a backslash turns replacements off. Tried with Slurm 22.05.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby

from bloodcell_dist.errors import UserError

Options = Mapping[str, str | int | bool]
"""Long options of sbatch without their dashes; true stands for one without a value, false for one left out."""

_NEEDS_NO_QUOTES = re.compile(r"[\w@%+=:;,./\[\]-]+", re.ASCII)


def batch_text(options: Options, comment: str, body: str) -> str:
    """A batch file for bash.

    Args:
        options: one `#SBATCH` line each, in their order.
        comment: what the file is, one line.
        body: bash, which begins strictly (`set -euo pipefail`).

    Raises:
        UserError: a value cannot stand in a line.
    """
    lines = ["#!/usr/bin/env bash", f"# {comment}"]
    lines += [f"#SBATCH {_option(name, value)}" for name, value in options.items() if value is not False]
    return "\n".join([*lines, "", "set -euo pipefail", body.strip("\n"), ""])


def output_name(folder: str, pattern: str) -> str:
    """The value of `output` for a file in a folder, such as `%A_%a.out` with its replacements. Raises UserError."""
    if "\\" in folder:
        raise UserError(f"{folder}: Slurm writes no logs below a folder with a backslash in its name; give another one")
    return f"{folder.replace('%', '%%')}/{pattern}"


def index_list(indices: Iterable[int], at_once: int | None = None) -> str:
    """The value of `array`: `0-3,5`, and `%2` behind it for two at once.

    Args:
        indices: in rising order.
        at_once: None for no limit.
    """
    runs = groupby(enumerate(indices), lambda pair: pair[1] - pair[0])
    ranges = [[index for _, index in run] for _, run in runs]
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in ranges)
    return text if at_once is None else f"{text}%{at_once}"


def _option(name: str, value: str | int | bool) -> str:
    return f"--{name}" if value is True else f"--{name}={_quote(name, str(value))}"


def _quote(name: str, value: str) -> str:
    if _NEEDS_NO_QUOTES.fullmatch(value):
        return value
    if not value.isprintable():
        raise UserError(f"{name}={value!r} cannot stand in a batch file; leave out line ends and control characters")
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
