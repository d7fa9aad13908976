"""A handler of the embedding program's logging that raises or exits: the server goes on."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpResponse
from cllm.http.acceptor import Acceptor
from cllm.http.access_log import AccessLog
from cllm.http.connection import Connection
from cllm.http.connection_queue import ConnectionQueue
from cllm.http.poller import new_poller
from cllm.http.report import report, report_failure
from cllm.http.worker import Worker
from tests.http.http_wire import (
    PATIENCE,
    TRANSPORTS,
    Connect,
    Serve,
    any_version,
    basic_handler,
    encode,
)

PROTOCOLS = ("http/1.1", "https/1.1")

log = logging.getLogger("cllm.http")


class Raising(logging.Handler):
    """Counts what it was to write."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error
        self.records = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records += 1
        raise self.error


@pytest.fixture(params=[OSError, SystemExit])
def raising(request: pytest.FixtureRequest) -> Iterator[Raising]:
    handler = Raising(request.param)
    loggers = log, logging.getLogger("cllm.access")
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(handler)
        logger.setLevel(level)


@any_version
def test_requests_are_served_and_the_server_stops(
    serve: Serve, connect: Connect, raising: Raising
) -> None:
    server = serve(workers=1, access_log=True)
    client = connect(server)
    for _ in range(3):
        assert client.get().status == 200
    server.stop()
    assert raising.records > 3, "it listens, requests ended, it has stopped"


def test_handshakes_that_fail_end_no_worker(serve: Serve, raising: Raising) -> None:
    server = serve(tls=TRANSPORTS["https/1.1"][0], workers=2)
    before = raising.records
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
            sock.sendall(b"\x16\x03\x01\x00\x05hello")
            assert ended(sock)
    assert raising.records >= before + 4
    with TRANSPORTS["https/1.1"][1](server.port) as client:
        assert client.get().status == 200
    assert all(worker.thread.is_alive() for worker in server._workers)


def ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def unusable(body: str) -> HttpResponse:
    return HttpResponse(200, [("Bad\nName", "x")], body.encode())


def broken_deferred() -> DeferredResponse:
    deferred = DeferredResponse()
    changed = deferred.then(lambda response: 1 / 0)  # type: ignore[arg-type, return-value]
    deferred.resolve(HttpResponse.text("x"))
    return changed


@any_version
@pytest.mark.parametrize("path", ["/fails", "/unusable", "/deferred"])
def test_a_failure_in_a_handler_is_answered(
    serve: Serve, connect: Connect, raising: Raising, path: str
) -> None:
    handler = HttpHandler()
    handler.get("/fails", lambda request: 1 / 0)
    handler.get("/unusable", lambda request: unusable("x"))
    handler.get("/deferred", lambda request: broken_deferred())
    client = connect(serve(handler, workers=1))
    before = raising.records
    assert [client.get(path).status for _ in range(2)] == [500, 500]
    assert raising.records > before


def test_a_cancel_callback_that_fails_does_not_affect_the_others(raising: Raising) -> None:
    stream = BodyStream()
    called: list[str] = []
    stream.on_cancel(lambda reason: 1 / 0)
    stream.on_cancel(called.append)
    stream.cancel("gone")
    assert (called, raising.records) == (["gone"], 1)


def test_a_server_with_open_connections_stops(
    serve: Serve, connect: Connect, raising: Raising
) -> None:
    handler = basic_handler()
    handler.get("/stream", lambda request: HttpResponse.stream(BodyStream()))
    server = serve(handler)
    client = connect(server)
    client.send(encode(path="/stream"))
    client.reply_head()
    server.stop(grace=0.0)  # which warns; `serve` asserts that no thread is left
    assert not server.is_running


class Failing(ConnectionQueue[Connection]):
    """A queue whose first `take` fails; then it is closed."""

    taken = 0

    def take(self) -> Connection | None:
        self.taken += 1
        if self.taken == 1:
            raise MemoryError
        return None


def test_a_worker_outlives_a_queue_that_fails(raising: Raising) -> None:
    poller = new_poller()
    queue = Failing(poller, {}, lambda: None)
    worker = Worker(queue, 0)
    worker.thread.start()
    worker.thread.join(PATIENCE)
    assert (queue.taken, raising.records) == (2, 1)
    queue.release()
    poller.close()


def test_an_acceptor_outlives_a_turn_that_fails(
    serve: Serve, connect: Connect, raising: Raising, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, failures = Acceptor._turn, [MemoryError()]

    def turn(acceptor: Acceptor) -> None:
        if failures:
            raise failures.pop()
        original(acceptor)

    monkeypatch.setattr(Acceptor, "_turn", turn)
    assert connect(serve()).get().status == 200
    assert raising.records >= 2


def test_a_client_that_is_turned_away_costs_nothing_else(
    serve: Serve, connect: Connect, raising: Raising
) -> None:
    server = serve(max_connections_per_client=1)
    client = connect(server)
    assert client.get().status == 200
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        assert ended(sock)
    assert client.get().status == 200


def test_the_access_log_goes_on(raising: Raising) -> None:
    failed = threading.Event()
    written: list[str] = []

    def emit(record: logging.LogRecord) -> None:
        if record.name == "cllm.access" and failed.is_set():
            written.append(record.getMessage())
            return
        failed.set()
        raise raising.error  # also where the failure itself is logged

    raising.emit = emit  # type: ignore[method-assign]
    access_log = AccessLog()
    access_log.start()
    access_log.add(("192.0.2.1", 7), None, 200, 1, 0.0)
    assert failed.wait(PATIENCE)
    access_log.add(("192.0.2.1", 7), None, 200, 2, 0.0)
    assert access_log._thread.is_alive()
    access_log.stop()
    assert [" bytes=2 " in line for line in written] == [True]


def say(text: str) -> None:
    report(log, logging.WARNING, "%s", text)


def fail(text: str) -> None:
    try:
        raise ZeroDivisionError(text)
    except ZeroDivisionError:
        report_failure(log, "%s", text)


@pytest.mark.parametrize("how", [say, fail])
def test_standard_error_gets_what_a_handler_raises(
    raising: Raising, how: Callable[[str], None], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    how("mine")
    told = capsys.readouterr().err
    assert raising.error.__name__ in told
    assert ("ZeroDivisionError: mine" in told) is (how is fail)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    how("mine")
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr("sys.stderr", stream)
        how("mine")


@pytest.mark.parametrize("how", [say, fail])
def test_a_record_names_the_place_that_reports(
    how: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    how("mine")
    (record,) = caplog.records
    assert (record.funcName, record.getMessage()) == (how.__name__, "mine")
    assert (record.exc_info is not None) is (how is fail)
