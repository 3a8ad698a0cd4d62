"""One answer of a web server, from a given byte on; gives up when nothing comes. Proxies are the environment's."""

from __future__ import annotations

import http.client
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from bloodcell_dist import __version__

BLOCK_BYTES = 2**20
RANGE_NOT_SATISFIABLE = 416


class Trouble(Exception):
    """The network or the server failed; the text is a short reason. `status` is the server's, if it gave one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Answer:
    """The bytes of a URL from `first` on, as far as the server heeds that.

    Args:
        url: http, https or file.
        first: number of the first byte wanted.
        timeout_s: for the answer to begin, whatever holds it up, and for each piece of it.

    Attributes:
        first: number of the first byte that comes: 0 from a server that knows only whole files.
        total: bytes of the whole file; None if the server does not say.

    Raises:
        Trouble: here and from `blocks`.
    """

    def __init__(self, url: str, first: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._response = _open(url, first, timeout_s)
        self.first = 0
        if self._response.status == http.client.PARTIAL_CONTENT:
            stated = re.match(r"bytes (\d+)-", self._response.headers.get("Content-Range", ""))
            self.first = int(stated[1]) if stated else -1
        length = self._response.headers.get("Content-Length", "")
        self.total = self.first + int(length) if length.isdecimal() else None

    def blocks(self) -> Iterator[bytes]:
        """What comes, as it comes. The end may be early: compare with `total`."""
        while block := self._read():
            yield block

    def __enter__(self) -> Answer:
        """The answer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Hang up."""
        self._response.close()

    def _read(self) -> bytes:
        try:
            # Not read(): that waits for a full block, and what had come of it is lost when the connection breaks.
            block: bytes = self._response.read1(BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise Trouble(_reason(error, self._timeout_s)) from None
        return block


def _open(url: str, first: int, timeout_s: float) -> Any:
    """The response, or Trouble after `timeout_s`.

    It is opened in a thread that can be left behind: urllib's own timeout does not count the look-up of the name, and
    counts anew for each of a server's addresses, so that on a node without internet a minute and more can pass.
    """
    box: list[Any] = []
    gone = threading.Event()
    guard = threading.Lock()

    def work() -> None:
        try:
            outcome = urllib.request.urlopen(_request(url, first), timeout=timeout_s)
        except Exception as error:
            outcome = error
        with guard:
            if gone.is_set() and hasattr(outcome, "close"):
                outcome.close()
            box.append(outcome)

    thread = threading.Thread(target=work, daemon=True, name="open-url")
    thread.start()
    try:
        thread.join(timeout_s)
    finally:
        with guard:
            gone.set()
    outcome = box[0] if box else TimeoutError()
    if not isinstance(outcome, Exception):
        return outcome
    if isinstance(outcome, urllib.error.HTTPError):
        outcome.close()
        raise Trouble(f"HTTP status {outcome.code} ({outcome.reason})", outcome.code)
    raise Trouble(_reason(outcome, timeout_s))


def _request(url: str, first: int) -> urllib.request.Request:
    headers = {"User-Agent": f"bloodcell-dist/{__version__}"}
    return urllib.request.Request(url, headers=headers | ({"Range": f"bytes={first}-"} if first else {}))


def _reason(error: BaseException, timeout_s: float) -> str:
    """In a few words, what an exception of urllib means."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
