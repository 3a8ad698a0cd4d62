"""Downloads from a real server on this machine that can be told to misbehave."""

from __future__ import annotations

import hashlib
import http.server
import logging
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from bloodcell_dist.errors import UserError, is_disk_full
from bloodcell_dist.models import download as module
from bloodcell_dist.models.download import DownloadFailed, download, has_hash, hash_of

CONTENT = np.random.default_rng(0).bytes(300_000)
HASH = hashlib.sha256(CONTENT).hexdigest()
EMPTY = hashlib.sha256(b"").hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under any path, with ranges. `plan` holds a misbehaviour for each of the next answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.heeds_ranges = True
        self.plan: list[tuple[str, int]] = []
        self.asked: list[str | None] = []
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/weights.h5"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        kind, number = self.server.plan.pop(0) if self.server.plan else ("whole", len(CONTENT))
        first = int(asked.strip("bytes=-")) if asked and self.server.heeds_ranges else 0
        if kind == "status" or first >= len(CONTENT):
            self.send_error(number if kind == "status" else 416)
            return
        stated = number if kind == "shifted" else first
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {stated}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if kind != "unsized":
            self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        piece = CONTENT[first:]
        self.wfile.write(bytes(number) if kind == "zeros" else piece[:number])
        if kind == "reset":  # closing without lingering sends an RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if kind == "stall":
            self.server.go_on.wait(30)
            self.wfile.write(piece[number:])

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as running:
        running.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up belong here
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / "weights.h5"


def part_of(target: Path, content: bytes | None = None) -> Path:
    """Where the unfinished file lies, after putting `content` there."""
    part = target.with_name("weights.h5.part")
    if content is not None:
        part.parent.mkdir(parents=True)
        part.write_bytes(content)
    return part


def assert_whole(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["weights.h5"]


def test_a_file_comes_whole_and_alone(server: Server, target: Path) -> None:
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)
    download(server.url, target, HASH.upper(), timeout_s=5)
    assert server.asked == [None], "the right file was there already"


def test_a_wrong_file_is_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(CONTENT[:1000])
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)


def test_a_folder_is_a_server_too(target: Path, tmp_path: Path) -> None:
    (tmp_path / "source.h5").write_bytes(CONTENT)
    download((tmp_path / "source.h5").as_uri(), target, HASH, timeout_s=5)
    assert_whole(target)
    with pytest.raises(DownloadFailed, match="nowhere.h5: No such file or directory"):
        download((tmp_path / "nowhere.h5").as_uri(), target.parent / "b.h5", HASH, timeout_s=5)


@pytest.mark.parametrize("kind", ["cut", "reset", "stall"])
def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, target: Path, kind: str) -> None:
    server.plan = [(kind, 100_000), (kind, 50_000)]
    download(server.url, target, HASH, timeout_s=0.7, tries=3)
    assert_whole(target)
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_what_came_is_kept_for_the_next_time(server: Server, target: Path) -> None:
    server.plan = [("cut", 100_000), ("cut", 100_000)]
    words = (
        "weights.h5: the connection ended 0.1 MB too early; 0.2 MB are there, and the same command goes on from them"
    )
    with pytest.raises(DownloadFailed, match=words):
        download(server.url, target, HASH, timeout_s=5, tries=2)
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:200_000]
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)
    assert server.asked[2:] == ["bytes=200000-"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_process_leaves_what_came(server: Server, target: Path, number: signal.Signals) -> None:
    server.plan = [("stall", 100_000)]
    code = (  # the handler: in the background of a script, Python ignores SIGINT
        "import pathlib, signal, sys; from bloodcell_dist.models.download import download; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"download({server.url!r}, pathlib.Path(sys.argv[1]), {HASH!r}, timeout_s=60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (part_of(target).exists() and part_of(target).stat().st_size >= 90_000):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(number)
    assert child.wait(30) != 0
    there = part_of(target).stat().st_size
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)
    assert server.asked == [None, f"bytes={there}-"]


def test_a_server_without_ranges_sends_all_again(server: Server, target: Path) -> None:
    part_of(target, b"x" * 5000)
    server.heeds_ranges = False
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)
    assert server.asked == ["bytes=5000-"]


def test_a_server_may_be_silent_about_the_size(server: Server, target: Path) -> None:
    server.plan = [("unsized", len(CONTENT))]
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)


@pytest.mark.parametrize(
    ("part", "asked"),
    [
        (CONTENT, [f"bytes={len(CONTENT)}-"]),  # only the renaming was left to do
        (CONTENT + b"more", [f"bytes={len(CONTENT) + 4}-", None]),
        (b"x" * len(CONTENT), [f"bytes={len(CONTENT)}-", None]),
        (b"x" * 5000, ["bytes=5000-", None]),
    ],
    ids=["complete", "longer", "wrong", "wrong beginning"],
)
def test_what_an_earlier_process_left(server: Server, target: Path, part: bytes, asked: list[str | None]) -> None:
    part_of(target, part)
    download(server.url, target, HASH, timeout_s=5)
    assert_whole(target)
    assert server.asked == asked


def test_another_range_than_asked_for_is_not_taken(server: Server, target: Path) -> None:
    part_of(target, CONTENT[:5000])
    server.plan = [("shifted", 6000)]
    download(server.url, target, HASH, timeout_s=5, tries=2)
    assert_whole(target)
    assert server.asked == ["bytes=5000-", None]


@pytest.mark.parametrize(("left", "answers"), [(0, 1), (5000, 2)])
def test_a_wrong_file_is_refused(server: Server, target: Path, left: int, answers: int) -> None:
    part_of(target, CONTENT[:left])
    server.plan = [("zeros", len(CONTENT) - left), ("zeros", len(CONTENT))]
    received = hashlib.sha256(bytes(len(CONTENT))).hexdigest()
    with pytest.raises(DownloadFailed, match=f"{server.url}: what came has the hash {received}, expected {HASH}"):
        download(server.url, target, HASH, timeout_s=5, tries=3)
    assert len(server.asked) == answers
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(("status", "words"), [(404, "Not Found"), (403, "Forbidden"), (503, "Service Unavailable")])
def test_a_server_that_refuses_is_asked_once(server: Server, target: Path, status: int, words: str) -> None:
    server.plan = [("status", status)]
    with pytest.raises(DownloadFailed, match=rf"^{server.url}: HTTP status {status} \({words}\)$"):
        download(server.url, target, HASH, timeout_s=5, tries=3)
    assert len(server.asked) == 1
    assert not target.parent.exists(), "an empty folder was left"


def test_silence_is_given_up(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/weights.h5"
        begun = time.monotonic()
        with pytest.raises(DownloadFailed, match=f"^{url}: no answer within 0.2 s$"):
            download(url, target, HASH, timeout_s=0.2)
    assert time.monotonic() - begun < 5


def test_a_look_up_of_the_name_that_hangs_is_given_up(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no timeout of its own, and takes half a minute where the name server is out of reach."""
    answered = threading.Event()

    def hang(*_: object, **__: object) -> None:
        answered.wait(30)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(DownloadFailed, match="no answer within 0.2 s"):
        download("http://weights.invalid/weights.h5", target, HASH, timeout_s=0.2)
    answered.set()
    with pytest.raises(DownloadFailed, match="Temporary failure in name resolution"):
        download("http://weights.invalid/weights.h5", target, HASH, timeout_s=5)


def test_a_port_where_nobody_listens(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DownloadFailed, match="Connection refused$"):
        download(f"http://127.0.0.1:{port}/weights.h5", target, HASH, timeout_s=5)


def test_two_at_once_download_once(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.plan = [("stall", 100_000)]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(download, server.url, target, HASH, timeout_s=30) for _ in range(2)]
        wait_for_words(caplog, "waits for another process")
        server.go_on.set()
        for one in both:
            one.result(30)
    assert_whole(target)
    assert server.asked == [None]


def test_who_waited_in_vain_does_not_try_again(server: Server, target: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many ranks of a node without internet give up together, not one after the other."""
    caplog.set_level(logging.INFO)
    target.parent.mkdir()
    server.plan = [("stall", 0)]
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(download, server.url, target, HASH, timeout_s=1) for _ in range(2)]
        wait_for_words(caplog, "waits for another process")
        messages = sorted(str(one.exception(30)) for one in both)
    assert messages == [
        f"{server.url}: another process asked for it at the same time and did not get it",
        f"{server.url}: no answer within 1 s",
    ]
    assert server.asked == [None]


def wait_for_words(caplog: pytest.LogCaptureFixture, words: str) -> None:
    deadline = time.monotonic() + 30
    while words not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        time.sleep(0.01)


def test_a_full_disk_is_said_as_such(server: Server, target: Path) -> None:
    target.parent.mkdir()
    part_of(target).symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        download(server.url, target, HASH, timeout_s=5)
    assert is_disk_full(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(("place", "words"), [("file/weights.h5", "File exists|Not a directory"), ("/proc/w.h5", "No")])
def test_a_target_that_cannot_be_written(server: Server, tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{place}: cannot be written \\({words}.*; give another folder"):
        download(server.url, tmp_path / place, HASH, timeout_s=5)
    assert server.asked == []


def test_hashes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    assert hash_of(path, like=HASH) == HASH
    assert hash_of(path, like="0" * 32) == hashlib.md5(CONTENT).hexdigest()
    assert has_hash(path, hashlib.md5(CONTENT).hexdigest())
    assert not has_hash(path, EMPTY)
    assert not has_hash(tmp_path / "b", HASH)
    assert not has_hash(tmp_path, HASH)
