"""Which way to run fits which launcher, and what is said where another was asked for."""

from __future__ import annotations

import pytest

from bloodcell_dist.cluster.environment import Launcher, ProcessInfo
from bloodcell_dist.cluster.fitting import fitting_strategy, remedy


def among(launcher: Launcher, world_size: int) -> ProcessInfo:
    """The first of so many processes."""
    return ProcessInfo(launcher, 0, world_size, 0, 1, 0, world_size, "n1")


@pytest.mark.parametrize("horovod", [True, False])
@pytest.mark.parametrize("asked", ["auto", "single", "mirrored", "multiworker", "horovod"])
@pytest.mark.parametrize(
    ("launcher", "world_size", "num_gpus", "fitting", "why"),
    [
        ("none", 1, 0, "single", "one process on one device"),
        ("none", 1, 1, "single", "one process on one device"),
        ("none", 1, 4, "mirrored", "one process with 4 GPUs"),
        # one process by whatever launcher
        ("horovod", 1, 0, "single", "one process on one device"),
        ("openmpi", 1, 2, "mirrored", "one process with 2 GPUs"),
        ("tf_config", 1, 1, "single", "one process on one device"),
        ("slurm", 1, 1, "single", "one process on one device"),
        ("slurm", 1, 8, "mirrored", "one process with 8 GPUs"),
        # several: the launcher decides, whatever the GPUs
        ("horovod", 4, 0, "horovod", "4 processes, started by horovodrun"),
        ("horovod", 4, 2, "horovod", "4 processes, started by horovodrun"),
        ("openmpi", 2, 1, "horovod", "2 processes, started by mpirun"),
        ("tf_config", 2, 0, "multiworker", "TF_CONFIG names 2 workers"),
        ("tf_config", 3, 4, "multiworker", "TF_CONFIG names 3 workers"),
    ],
)
def test_where_only_one_way_fits_it_is_told_whatever_was_asked_for(
    launcher: Launcher, world_size: int, num_gpus: int, fitting: str, why: str, asked: str, horovod: bool
) -> None:
    """Whether it is what was asked for is for `resolve` to judge."""
    assert fitting_strategy(among(launcher, world_size), num_gpus, asked, horovod=horovod) == (fitting, why)


@pytest.mark.parametrize(
    ("world_size", "num_gpus", "asked", "horovod", "fitting", "why"),
    [
        (4, 0, "auto", True, "horovod", "4 processes, started by srun"),
        (4, 1, "auto", True, "horovod", "4 processes, started by srun"),
        (2, 4, "auto", True, "multiworker", "2 processes, started by srun, with 4 GPUs each"),
        (4, 1, "auto", False, "multiworker", "4 processes, started by srun, and no Horovod is installed"),
        (2, 4, "auto", False, "multiworker", "2 processes, started by srun, and no Horovod is installed"),
        # what was asked for decides between the two
        (2, 4, "horovod", True, "horovod", "2 processes, started by srun"),
        (4, 1, "multiworker", True, "multiworker", "4 processes, started by srun"),
        (4, 1, "multiworker", False, "multiworker", "4 processes, started by srun"),
        (4, 1, "horovod", False, "horovod", "4 processes, started by srun"),  # Horovod's start says what is missing
        # what fits no srun of several does not
        (4, 1, "single", True, "horovod", "4 processes, started by srun"),
        (2, 4, "mirrored", True, "multiworker", "2 processes, started by srun, with 4 GPUs each"),
    ],
)
def test_under_srun_what_was_asked_for_decides_then_horovod_then_the_gpus(
    world_size: int, num_gpus: int, asked: str, horovod: bool, fitting: str, why: str
) -> None:
    assert fitting_strategy(among("slurm", world_size), num_gpus, asked, horovod=horovod) == (fitting, why)


def test_by_default_horovod_is_there_and_nothing_was_asked_for() -> None:
    assert fitting_strategy(among("slurm", 2), 1) == ("horovod", "2 processes, started by srun")


@pytest.mark.parametrize(
    ("asked", "fitting", "words"),
    [
        (
            "horovod",
            "single",
            "start it with `horovodrun -np N python -m bloodcell_dist.train` or with srun, "
            "or set distribute.strategy=single or auto",
        ),
        (
            "multiworker",
            "mirrored",
            "start one process per node with srun, or give each a TF_CONFIG that names all workers, "
            "or set distribute.strategy=mirrored or auto",
        ),
        (
            "mirrored",
            "multiworker",
            "start one process, it uses all GPUs of its node, or set distribute.strategy=multiworker or auto",
        ),
        ("single", "horovod", "start one process, or set distribute.strategy=horovod or auto"),
    ],
)
def test_the_remedy(asked: str, fitting: str, words: str) -> None:
    assert remedy(asked, fitting) == words
