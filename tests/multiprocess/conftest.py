"""Real processes under the real launchers: one alone, Horovod's ranks, the workers of a TF_CONFIG."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 500.0


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(shared_programs: None) -> None:
    """Most of these processes compile what others have compiled."""


@dataclasses.dataclass(frozen=True)
class World:
    """How many of what.

    Attributes:
        kind: single, mirrored, multiworker or horovod.
        replicas: devices of one process (mirrored), else processes.
    """

    kind: str
    replicas: int = 1

    def __str__(self) -> str:
        return self.kind if self.kind == "single" else f"{self.kind}-x{self.replicas}"

    @property
    def settings(self) -> tuple[str, ...]:
        """What the command line has to say about it: nothing, but for logical devices of a CPU."""
        if self.kind != "mirrored":
            return ()
        return ("distribute.strategy=mirrored", f"distribute.devices={self.replicas}")


class Launched:
    """Processes that run the same command, and all that they print."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self.processes = list(processes)
        self._texts: list[list[str]] = [[] for _ in processes]
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in zip(processes, self._texts, strict=True)
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        lines.extend(process.stdout)

    @property
    def text(self) -> str:
        """What all of them printed so far."""
        return "".join("".join(lines) for lines in self._texts)

    def wait(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """Exit statuses; the processes are killed when they take longer."""
        deadline = time.monotonic() + timeout_s
        try:
            statuses = [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {timeout_s:.0f} s:\n{self.text}") from None
        for reader in self._readers:
            reader.join(10)
        return statuses

    def kill(self) -> None:
        """End what still runs, with all its children."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        for reader in self._readers:
            reader.join(10)
        for process in self.processes:
            assert process.stdout is not None
            process.stdout.close()


def _environment(threads: int | None) -> dict[str, str]:
    """This process's, quiet, as on a machine whose launcher gives each rank so many cores."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TF_NUM_", "OMP_NUM_"))}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1"}
    if threads is not None:
        env |= {name: str(threads) for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")}
    return env


def _start(command: Sequence[str], env: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        list(command),
        env=env,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="session")
def horovodrun() -> str:
    """The launcher; CI must have it."""
    program = Path(sys.executable).with_name("horovodrun")
    found = subprocess.run([sys.executable, "-c", "import horovod.tensorflow"], capture_output=True, check=False)
    if program.exists() and found.returncode == 0:
        return str(program)
    reason = "Horovod with TensorFlow support is needed: scripts/install_horovod.sh"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class Launcher:
    """launch(world, command, threads=1): starts `python …` under the world's launcher."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._started: list[Launched] = []

    def __call__(self, world: World, arguments: Sequence[Any], threads: int | None = 1) -> Launched:
        command, env = [sys.executable, *map(str, arguments)], _environment(threads)
        if world.kind == "horovod":
            program = self._request.getfixturevalue("horovodrun")
            processes = [_start([program, "-np", str(world.replicas), *command], env, self._folder)]
        elif world.kind == "multiworker":
            workers = [f"127.0.0.1:{port}" for port in _free_ports(world.replicas)]
            processes = []
            for index in range(world.replicas):
                config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
                processes.append(_start(command, env | {"TF_CONFIG": json.dumps(config)}, self._folder))
        else:
            processes = [_start(command, env, self._folder)]
        self._started.append(Launched(processes))
        return self._started[-1]

    def kill(self) -> None:
        """End whatever still runs."""
        for launched in self._started:
            launched.kill()


@pytest.fixture
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    """Starts processes in an empty working folder."""
    launcher = Launcher(request, tmp_path)
    yield launcher
    launcher.kill()


@pytest.fixture(scope="module")
def launch_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """launch_once(work): work(launch, folder) with an empty folder; for what the tests of a module share."""

    def once(work: Callable[[Launcher, Path], Any]) -> Any:
        folder = tmp_path_factory.mktemp("shared")
        launcher = Launcher(request, folder)
        try:
            return work(launcher, folder)
        finally:
            launcher.kill()

    return once


@pytest.fixture(scope="session")
def world() -> type[World]:
    """The class, since test modules cannot import this file."""
    return World


@pytest.fixture(scope="session")
def ranks() -> Callable[[Path], dict[int, int]]:
    """ranks(run): rank to process id of every process that trains into a folder."""
    return _ranks


def _ranks(run: Path) -> dict[int, int]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_text().split("\0")
            environment = dict(
                part.split("=", 1) for part in (folder / "environ").read_text().split("\0") if "=" in part
            )
            if str(run) not in arguments or "-np" in arguments or "bloodcell_dist.train" not in arguments:
                continue  # somebody else, or the launcher
            if "HOROVOD_RANK" in environment:
                found[int(environment["HOROVOD_RANK"])] = int(folder.name)
            elif "TF_CONFIG" in environment:
                found[json.loads(environment["TF_CONFIG"])["task"]["index"]] = int(folder.name)
    return found
