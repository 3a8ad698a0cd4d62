"""TensorFlow set up for a run: devices, precision, determinism, quiet start."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloodcell_dist.cluster.environment import ALONE, ProcessInfo
from bloodcell_dist.errors import TrainingFailed
from bloodcell_dist.imports import put_off, uncollected
from bloodcell_dist.installed import has_horovod, installed_version
from bloodcell_dist.resolve import Machine

log = logging.getLogger(__name__)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hold back what is written to file descriptor 2; it is shown only if the block fails.

    TensorFlow 2.18 registers its CUDA plug-ins twice and complains on every import, and XLA announces its first
    program; both write straight to the descriptor and heed no log level.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(kept, file.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


with silenced(), put_off(), uncollected():
    import keras
    import tensorflow as tf


@tf.function(jit_compile=True, autograph=False)
def _first_xla_program() -> tf.Tensor:
    """XLA announces itself with the first program of a process."""
    return tf.constant(0)


def find_devices() -> None:
    """Let TensorFlow look for GPUs; without a driver it complains, once."""
    with silenced():
        tf.config.list_physical_devices()


def look_at_machine(process: ProcessInfo = ALONE) -> Machine:
    """What TensorFlow lets this process see; GPU memory grows as needed."""
    find_devices()
    gpus = tf.config.get_visible_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if not gpus and Path("/dev/nvidia0").exists():
        log.warning(
            "this machine has an NVIDIA GPU, but TensorFlow sees none: install the extra `gpu` (README.md); "
            "TF_CPP_MIN_LOG_LEVEL=0 shows TensorFlow's own reasons"
        )
    capabilities = [tf.config.experimental.get_device_details(gpu).get("compute_capability") for gpu in gpus]
    bfloat16 = bool(gpus) and all(c is not None and c >= (8, 0) for c in capabilities)
    return Machine(len(gpus), bfloat16, process, has_horovod())


def set_up_xla(cache_dir: str | None) -> None:
    """Let XLA keep compiled programs in a folder, for the next start and for other ranks.

    Call it before TensorFlow looks for devices: then it reads the variable, once.
    """
    if cache_dir is not None:
        flag = f"--tf_xla_persistent_cache_directory={os.path.expanduser(cache_dir)}"
        os.environ["TF_XLA_FLAGS"] = f"{os.environ.get('TF_XLA_FLAGS', '')} {flag}".strip()


def configure(*, precision: str, deterministic: bool, eager: bool) -> None:
    """Set Keras' precision policy and TensorFlow's determinism and eager mode for this process."""
    with silenced():
        _first_xla_program()
    keras.mixed_precision.set_dtype_policy(precision)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.config.run_functions_eagerly(eager)


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Turn TensorFlow's out-of-memory error into TrainingFailed with the remedy."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        reason = str(error).splitlines()[0]
        raise TrainingFailed(
            "the device's memory is full: lower train.global_batch_size, or raise optimizer.accumulate_steps "
            f"({reason})"
        ) from error


def describe_environment(process: ProcessInfo = ALONE) -> dict[str, Any]:
    """Versions, devices, host, launcher and git state, for environment.json."""
    names = ("bloodcell_dist", "tensorflow", "keras", "keras-cv", "numpy", "horovod")
    return {
        "python": platform.python_version(),
        "versions": {name: installed_version(name) for name in names},
        "host": platform.node(),
        "platform": platform.platform(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "cpus": os.cpu_count(),
        "launcher": process.launcher,
        "workers": process.world_size,
        "command": sys.argv,
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of the code, `-dirty` with local changes; None outside a checkout."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
