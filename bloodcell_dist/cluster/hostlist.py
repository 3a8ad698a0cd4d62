"""Slurm's notation for the nodes of a job."""

from __future__ import annotations

import itertools
import re

from bloodcell_dist.errors import UserError

_HOST = r"(?:[^][,\s]|\[[0-9]+(?:-[0-9]+)?(?:,[0-9]+(?:-[0-9]+)?)*\])+"


def expand_hostlist(text: str, name: str = "host list") -> tuple[str, ...]:
    """The names in Slurm's notation: `n[1-2,05-07],login` is n1, n2, n05, n06, n07, login; the last bracket is fastest.

    Args:
        text: what Slurm wrote; a number keeps the zeros that its range begins with.
        name: of the variable it comes from, for the message.

    Raises:
        UserError: `text` is not in this notation.
    """
    hosts = re.findall(_HOST, text) if re.fullmatch(rf"{_HOST}(?:,{_HOST})*", text) else []
    groups = [_expanded(host) for host in hosts]
    if not groups or not all(groups):
        raise UserError(
            f"{name}={text!r} is not Slurm's notation: expected names such as n[1-2,05-07],login; "
            "compare with `scontrol show hostnames`"
        )
    return tuple(itertools.chain.from_iterable(groups))


def _expanded(host: str) -> list[str]:
    parts = re.split(r"\[(.*?)\]", host)  # every second one stood in brackets
    choices = [_numbers(part) if index % 2 else [part] for index, part in enumerate(parts)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def _numbers(ranges: str) -> list[str]:
    numbers = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last or first) + 1)]
    return numbers
