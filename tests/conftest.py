"""What all tests share: a quiet TensorFlow on few threads, and the real cells."""

import contextlib
import functools
import http.server
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

# TensorFlow and OpenBLAS read these once, when they are imported; what the caller has set stays.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(threads, "2")

# On a machine with a GPU, several test processes share it.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

# Weight files that a person keeps must not change what the tests train. Removed when the tests end.
_keras_home = tempfile.TemporaryDirectory(prefix="keras-home-")
os.environ["KERAS_HOME"] = _keras_home.name
os.environ.pop("BLOODCELL_WEIGHTS", None)

# The same examples every time: a check that fails once in ten runs is no check.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared_programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Processes that tests start find what XLA compiled for others: half of what a short training takes is that."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    flags = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_persistent_cache_directory={folder / 'xla'}"
    os.environ["TF_XLA_FLAGS"] = flags.strip()


@pytest.fixture(scope="session")
def serve() -> Callable[[Path], contextlib.AbstractContextManager[str]]:
    """serve(folder): a context with the address of a server of its files, a hospital's mirror say."""
    return _served


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not write to the terminal."""

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def real_data() -> Path:
    """$BLOODCELL_TEST_DATA: training_set.npz, test_set.npz, contaminated.npz, pbc96/ and pbc_raw/."""
    folder = os.environ.get("BLOODCELL_TEST_DATA")
    if folder:
        return Path(folder)
    reason = "real cells are needed: set BLOODCELL_TEST_DATA to the folder that holds them"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
