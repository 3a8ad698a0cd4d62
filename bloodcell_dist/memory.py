"""How much memory is free, and how much this process has taken at most."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """What this process could still take without swapping, on the machine and in its job; None where nobody tells."""
    found = [_kilobytes(proc / "meminfo", "MemAvailable"), _left_in_group(cgroup)]
    return min((size for size in found if size is not None), default=None)


def free_on_gpus(environ: Mapping[str, str]) -> int | None:
    """The least that is free on a GPU that this process sees, by nvidia-smi; None where it does not tell."""
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if visible := environ.get("CUDA_VISIBLE_DEVICES"):
        command += ["-i", visible]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        return min(int(line) << 20 for line in told.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def peak_bytes(proc: Path = _PROC) -> int:
    """The most that was resident of this process; 0 where nobody tells."""
    return _kilobytes(proc / "self" / "status", "VmHWM") or 0


def peak_of_devices() -> tuple[int, str]:
    """The most that was taken so far, bytes, and of what: the fullest GPU of this process, or the process itself."""
    import tensorflow as tf  # only those who train ask

    gpus = [f"GPU:{number}" for number in range(len(tf.config.get_visible_devices("GPU")))]
    if not gpus:
        return peak_bytes(), "the process"
    return max(int(tf.config.experimental.get_memory_info(gpu)["peak"]) for gpu in gpus), "a GPU"


def _left_in_group(folder: Path) -> int | None:
    """Within the limit of a cgroup (version 2) as a container sees it; the page cache in it can be given up."""
    try:
        limit, used = ((folder / f"memory.{name}").read_text() for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        return int(limit) - int(used) + (int(cached[1]) if cached else 0)
    except (OSError, ValueError):  # no cgroup, or `max`: no limit
        return None


def _kilobytes(path: Path, name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) << 10 if found else None
