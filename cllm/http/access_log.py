"""The access log: one line for each request, written in batches by a thread of its own.

A worker only appends a line to a list. The log's thread takes what has come every `INTERVAL` and
gives it to the logger `cllm.access`: as one batch where every handler has a method `write_access`
(`BatchHandler`), else as one record for each line. Lines keep their order, and a stop or the end of
the interpreter writes all of them.
"""

from __future__ import annotations

import atexit
import itertools
import json
import logging
import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from time import monotonic, time
from typing import Protocol, runtime_checkable

from cllm.http.report import report_failure
from cllm.http.request import HttpRequest

_log = logging.getLogger("cllm.access")
_own_log = logging.getLogger("cllm.http")

INTERVAL = 0.02  # s that a line may wait for others
BATCH = 512  # lines formatted at a time, so that other threads get the interpreter lock in between
JOIN_TIME = 2.0  # s
LONG_PATH = 256  # characters; lines of longer ones are not remembered, which would take memory
MOST_WAITING = 16_384  # lines; beyond it, workers wait for the log as for any other slow handler

_PLAIN = re.compile(r"[!#-<>-~]+").fullmatch  # visible ASCII without '"' and "="

# Named, so that a logging handler that writes objects finds the values in the record's args.
_LINE = (
    "client=%(client)s method=%(method)s path=%(path)s status=%(status)d bytes=%(bytes)d "
    "ms=%(ms).2f id=%(id)s"
)

_prefix = secrets.token_hex(4) + "-"  # differs in each process
_next = itertools.count(1).__next__

CLIENT_LEFT = 499  # nginx's code: the response was not sent completely


def request_id(request: HttpRequest) -> str:
    """The client's X-Request-Id, which the parser put into the request, else a new one."""
    return request.id or new_id()


def new_id() -> str:
    """An id for a request that has none."""
    return f"{_prefix}{_next():x}"


# One request: when it ended (time.monotonic()), its client, method, path, status, the bytes of its
# body, its seconds and its id. "-" for the parts of bytes that were no request. A plain tuple,
# since every request makes one.
AccessLine = tuple[float, tuple[str, int], str, str, int, int, float, str]


def beginning(client: tuple[str, int], method: str, path: str, status: int, size: int) -> str:
    """`client=… method=… path=… status=… bytes=…`."""
    make = _beginning if len(path) <= LONG_PATH else _beginning.__wrapped__
    return make(client, method, path, status, size)


@lru_cache(1024)  # clients repeat their requests
def _beginning(client: tuple[str, int], method: str, path: str, status: int, size: int) -> str:
    return (
        f"client={_client(client)} method={method} path={_path(path)} status={status} bytes={size}"
    )


def message(line: AccessLine) -> str:
    """`client=… method=… path=… status=… bytes=… ms=… id=…`."""
    _, client, method, path, status, size, seconds, identifier = line
    start = beginning(client, method, path, status, size)
    return f"{start} ms={seconds * 1000:.2f} id={identifier}"


def fields(line: AccessLine) -> dict[str, object]:
    """The values by name, as in the message."""
    _, client, method, path, status, size, seconds, identifier = line
    return {
        "client": _client(client),
        "method": method,
        "path": _path(path),
        "status": status,
        "bytes": size,
        "ms": round(seconds * 1000, 2),
        "id": identifier,
    }


def _client(client: tuple[str, int]) -> str:
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _path(path: str) -> str:
    return path if _PLAIN(path) else json.dumps(path)


@runtime_checkable
class BatchHandler(Protocol):
    """A logging handler that writes many lines at once, which takes a third of the time."""

    def write_access(self, lines: Sequence[AccessLine], epoch: float) -> None:
        """epoch: what to add to the time of a line for that since 1970. Raises nothing."""


class AccessLog:
    """One server's. `add` from any thread."""

    def __init__(self) -> None:
        self._waiting: deque[AccessLine] = deque()
        self._writing = threading.Lock()  # held while lines leave, so that they keep their order
        self._wake = threading.Event()
        self._awake = False  # the thread looks at `_waiting` before it sleeps
        self._ending = threading.Event()
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="cllm-access-log", daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self._at_exit)  # for programs that end without stopping their server

    def stop(self) -> None:
        """Write every line and end the thread; gives up on a handler that blocks."""
        self._ending.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(JOIN_TIME)
        atexit.unregister(self._at_exit)
        if not self._thread.is_alive():
            self.flush()

    def _at_exit(self) -> None:
        if self._process == os.getpid():  # a forked child has a copy of the lines
            self.flush()

    @property
    def enabled(self) -> bool:
        """Whether a line would be written anywhere."""
        return _log.isEnabledFor(logging.INFO)

    def add(
        self,
        client: tuple[str, int],
        request: HttpRequest | None,
        status: int,
        size: int,
        begun: float,
    ) -> None:
        """A request has ended; begun: `time.monotonic()`. None for bytes that were no request."""
        now = monotonic()
        if request is None:
            method = path = identifier = "-"
        else:
            method, path, identifier = request.method, request.path, request.id
        self._waiting.append((now, client, method, path, status, size, now - begun, identifier))
        if not self._awake:
            self._awake = True
            self._wake.set()
        elif len(self._waiting) > MOST_WAITING:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait. Raises nothing: a handler that fails costs its batch only."""
        with self._writing:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH))]
                try:
                    _emit(batch)
                except (Exception, SystemExit):
                    report_failure(_own_log, "the access log failed; it continues")

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._waiting and not self._ending.wait(INTERVAL):
                self.flush()
            # First this, then one more look: an `add` in between sees it, or is seen.
            self._awake = False
            if self._waiting:
                self._awake = True
                self._wake.set()


def _emit(lines: Sequence[AccessLine]) -> None:
    epoch = time() - monotonic()
    handlers = _handlers()
    if handlers is not None:
        for handler in handlers:
            handler.write_access(lines, epoch)
        return
    for line in lines:
        record = _log.makeRecord(_log.name, logging.INFO, "", 0, _LINE, (fields(line),), None)
        record.created = line[0] + epoch
        record.msecs = record.created % 1 * 1000
        _log.handle(record)


def _handlers() -> list[BatchHandler] | None:
    """Those that get the lines, if all of them take batches and nothing filters."""
    found: list[BatchHandler] = []
    logger: logging.Logger | None = _log
    if _log.filters or _log.disabled:
        return None
    while logger is not None:
        for handler in logger.handlers:
            if not isinstance(handler, BatchHandler) or handler.filters:
                return None
            if handler.level <= logging.INFO:
                found.append(handler)
        logger = logger.parent if logger.propagate else None
    return found or None  # none at all: the logging module has a handler of last resort
