"""The queue; over 400 lines, since the cases share one simulated set of workers.

No wake-up is lost, and a blocked handler holds up only its own connection.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import cast

import pytest

from cllm.http import BodyStream, DeferredResponse, HttpHandler, HttpResponse, Server
from cllm.http.connection import Connection
from cllm.http.connection_queue import LOOK_INTERVAL, ConnectionQueue
from cllm.http.poller import READ, Poller, new_poller
from tests.http.http_wire import (
    PATIENCE,
    Connect,
    Gate,
    RawClient,
    Serve,
    any_version,
    basic_handler,
    encode,
    wait_until,
)

PROTOCOLS = ("http/1.1",)

# The queue alone. Nobody looks at it once a millisecond here: every wake-up has to be the pusher's.


class Item:
    """Stands in for a connection, which the queue only passes on."""

    def __init__(self) -> None:
        self.taken = threading.Event()


class Takers:
    """Workers that take and do nothing else."""

    def __init__(self, count: int, *, endless: bool = False) -> None:
        self.endless = endless  # what was taken is pushed again
        self.poller = new_poller()
        self.connections: dict[int, Connection] = {}
        self.queue = ConnectionQueue(self.poller, self.connections, lambda: None)
        self.threads: list[threading.Thread] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        self.threads.append(threading.Thread(target=self._run))
        # Not enter(): the condition may be held by a test, and nobody else counts now.
        self.queue._awake += 1
        self.threads[-1].start()

    def _run(self) -> None:
        while (item := self.queue.take()) is not None:
            cast(Item, item).taken.set()
            if self.endless:
                time.sleep(0)  # as a system call: another thread may get the interpreter lock
                self.queue.push(item)

    def push(self, item: Item) -> None:
        self.queue.push(cast(Connection, item))

    def close(self) -> None:
        self.queue.close()
        for thread in self.threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "close() sends every worker home"
        self.queue.release()
        self.poller.close()


@pytest.fixture(params=[1, 2, 4])
def takers(request: pytest.FixtureRequest) -> Iterator[Takers]:
    takers = Takers(request.param)
    yield takers
    takers.close()


def test_one_push_at_a_time_is_always_seen(takers: Takers) -> None:
    # Each push meets workers that are about to fall asleep: where a lost wake-up would show.
    for _ in range(3000):
        item = Item()
        takers.push(item)
        assert item.taken.wait(PATIENCE)


def test_pushes_of_many_threads_are_all_seen(takers: Takers) -> None:
    items = [[Item() for _ in range(1000)] for _ in range(4)]

    def push(mine: list[Item]) -> None:
        for item in mine:
            takers.push(item)

    threads = [threading.Thread(target=push, args=(mine,)) for mine in items]
    for thread in threads:
        thread.start()
    for mine in items:
        for item in mine:
            assert item.taken.wait(PATIENCE)


def test_all_sleep_when_nothing_is_left(takers: Takers) -> None:
    for _ in range(100):
        takers.push(Item())
    wait_until(lambda: takers.queue._awake == 0, "no worker is awake")
    assert len(takers.queue) == 0
    assert_quiet(takers.queue)


class Unlucky:
    """A seat that is taken, and tells that somebody saw so."""

    def __init__(self) -> None:
        self.tried = threading.Event()

    def acquire(self, blocking: bool) -> bool:
        self.tried.set()
        return False


def test_a_push_just_before_a_worker_sleeps_is_seen() -> None:
    takers = Takers(0)
    queue = takers.queue
    seat, queue._seat = queue._seat, cast(threading.Lock, Unlucky())
    item = Item()
    with queue._condition:  # the worker found the queue empty and the seat taken, and stops here
        takers.add()
        assert cast(Unlucky, queue._seat).tried.wait(PATIENCE)
        takers.push(item)
    assert item.taken.wait(PATIENCE)
    queue._seat = seat
    takers.close()


class Overtaken:
    """A condition whose lock another push takes first: it wakes the worker."""

    def __init__(self, queue: ConnectionQueue[Connection]) -> None:
        self.queue = queue
        self.condition = queue._condition

    def __enter__(self) -> None:
        self.condition.__enter__()
        self.queue._awake += 1

    def __exit__(self, *_: object) -> None:
        self.condition.__exit__(None, None, None)


def test_the_acceptor_watches_a_push_that_finds_the_worker_just_woken() -> None:
    calls: list[None] = []
    queue: ConnectionQueue[Connection]
    queue = ConnectionQueue(new_poller(), {}, lambda: calls.append(None))
    queue._condition = Overtaken(queue)  # type: ignore[assignment]
    queue.push(cast(Connection, Item()))
    assert queue.watched and calls, "the woken worker may be held by the other push's handler"


def test_a_push_just_before_a_worker_polls_is_seen() -> None:
    takers = Takers(0)
    queue = takers.queue
    item = Item()
    with queue._condition:  # the worker found the queue empty and took the seat, and stops here
        takers.add()
        wait_until(queue._seat.locked, "the worker is in the seat")
        takers.push(item)
    assert item.taken.wait(PATIENCE)
    takers.close()


def test_of_workers_that_take_turns_one_stays_awake() -> None:
    takers = Takers(4, endless=True)
    queue = takers.queue
    for _ in range(8):
        takers.push(Item())

    def one_is_left() -> bool:
        queue.look()
        return queue._awake == 1

    wait_until(one_is_left, "one worker does it all")
    item = Item()
    takers.push(item)
    assert item.taken.wait(PATIENCE)
    takers.close()


def test_a_worker_that_works_alone_is_never_sent_to_sleep() -> None:
    takers = Takers(1, endless=True)
    queue = takers.queue
    takers.push(Item())
    queue._awake += 1  # another one is held up in a handler
    for _ in range(50):
        queue.look()
        assert not queue._surplus
        before = queue._taken
        wait_until(lambda before=before: queue._taken > before + 50, "it works")  # type: ignore[misc]
    queue._awake -= 1
    takers.close()


class Parked:
    """Stands in for a parked connection whose socket becomes ready."""

    def __init__(self) -> None:
        self.armed = READ
        self.scheduled = threading.Event()

    def queue(self) -> bool:
        self.scheduled.set()
        return False


def test_sockets_are_looked_at_although_the_queue_is_never_empty() -> None:
    ours, theirs = socket.socketpair()
    parked = Parked()
    takers = Takers(1, endless=True)
    takers.connections[ours.fileno()] = cast(Connection, parked)
    takers.poller.register(ours.fileno(), READ)
    takers.push(Item())
    theirs.send(b"x")
    for _ in range(1000):
        takers.queue.look()
        if parked.scheduled.wait(LOOK_INTERVAL):
            break
    assert parked.scheduled.is_set()
    takers.close()
    ours.close()
    theirs.close()


# The queue in a server, with handlers that block


@any_version
def test_health_answers_while_all_other_workers_are_blocked(serve: Serve, connect: Connect) -> None:
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, workers=16)
    blocked = [connect(server) for _ in range(15)]
    for client in blocked:
        client.send(encode(path="/gate"))
    gate.wait_entered(15)
    client = connect(server)
    for _ in range(100):
        assert client.get("/health").status == 200
    gate.opened.set()
    assert [client.reply().body for client in blocked] == [b"through"] * 15


@any_version
def test_every_worker_can_be_put_to_use(serve: Serve, connect: Connect) -> None:
    gate = Gate()
    handler = HttpHandler()
    handler.get("/", gate)
    server = serve(handler, workers=8)
    clients = [connect(server) for _ in range(9)]
    for client in clients:
        client.send(encode())
    gate.wait_entered(8)
    wait_until(lambda: server.stats().queue_depth == 1, "the ninth waits in the queue")
    assert server.stats().workers_busy == 8
    gate.opened.set()
    assert [client.reply().status for client in clients] == [200] * 9


class Blocked:
    """A server of four workers, one of them held by a handler and the acceptor asleep."""

    def __init__(self, serve: Serve, connect: Connect) -> None:
        self.gate = Gate()
        self.deferred: list[DeferredResponse] = []
        self.asked = threading.Semaphore(0)
        self.stream = BodyStream()
        handler = basic_handler()
        handler.get("/gate", self.gate)
        handler.get("/later", lambda request: self.defer())
        handler.get_streaming("/stream", lambda request: self.stream)
        self.server = serve(handler, workers=4)
        self.queue = self.server._acceptor.queue
        self._connect = connect

    def connect(self) -> RawClient:
        return self._connect(self.server)

    def defer(self) -> DeferredResponse:
        self.deferred.append(DeferredResponse())
        self.asked.release()
        return self.deferred[-1]

    def block(self, count: int) -> None:
        for _ in range(count):
            self.connect().send(encode(path="/gate"))
        self.gate.wait_entered(count)

    def wait_until_acceptor_sleeps(self) -> None:
        wait_until(lambda: not self.queue.watched, "the acceptor has gone to sleep")


@pytest.fixture
def blocked(serve: Serve, connect: Connect) -> Iterator[Blocked]:
    blocked = Blocked(serve, connect)
    yield blocked
    blocked.gate.opened.set()


@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_response_from_outside_is_sent_while_handlers_block_and_the_acceptor_sleeps(
    blocked: Blocked, held: int
) -> None:
    client = blocked.connect()
    for number in range(20):
        client.send(encode(path="/later"))
        assert blocked.asked.acquire(timeout=PATIENCE)
        if number == 0:
            blocked.block(held)
        if number % 5 == 0:
            blocked.wait_until_acceptor_sleeps()
        blocked.deferred[-1].resolve(HttpResponse.text("later"))
        assert client.reply().body == b"later"


@pytest.mark.parametrize("held", [1, 2, 3])
def test_tokens_from_outside_are_sent_while_handlers_block(blocked: Blocked, held: int) -> None:
    client = blocked.connect()
    client.send(encode(path="/stream"))
    client.reply_head()
    blocked.block(held)
    for number in range(200):
        if number % 50 == 0:
            blocked.wait_until_acceptor_sleeps()
        blocked.stream.write(b"token")
        assert client.chunk() == b"token"


@any_version
def test_a_parked_connection_is_served_when_the_polling_worker_gets_held(
    serve: Serve, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.http.acceptor.SWEEP_MOST", 1000.0)  # a sweep would see it, later
    long = dict.fromkeys(("head_timeout", "body_timeout", "write_timeout"), 1e4)
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, keep_alive_timeout=1e4, **long)
    holder, client = connect(server), connect(server)
    assert [holder.get().status, client.get().status] == [200, 200]
    assert_sleeps(server)
    assert not server._acceptor.queue.vacant
    holder.send(encode(path="/gate"))
    gate.wait_entered()
    assert client.get("/health").status == 200
    gate.opened.set()


@pytest.mark.parametrize("held", [1, 2, 3])
def test_parked_and_new_connections_are_served_while_handlers_block(
    blocked: Blocked, held: int
) -> None:
    parked = blocked.connect()
    assert parked.get().status == 200
    blocked.block(held)
    for _ in range(3):
        blocked.wait_until_acceptor_sleeps()
        assert parked.get("/health").status == 200
        blocked.wait_until_acceptor_sleeps()
        assert blocked.connect().get("/health").status == 200


def test_a_free_worker_takes_over_when_the_polling_one_is_held(
    serve: Serve, connect: Connect
) -> None:
    gate = Gate()
    handler = basic_handler()
    handler.get("/gate", gate)
    server = serve(handler, workers=2)
    for _ in range(20):
        holder, client = connect(server), connect(server)
        holder.send(encode(path="/gate"))
        gate.wait_entered()
        assert client.get("/health").status == 200
        gate.opened.set()
        assert holder.reply().status == 200
        gate.opened.clear()


@any_version
def test_an_idle_server_sleeps(serve: Serve, connect: Connect) -> None:
    server = serve()
    client = connect(server)
    for _ in range(50):
        client.get()
    assert_sleeps(server)
    assert not server._acceptor.queue.vacant, "one worker waits in the poll: no hand-over is needed"


def test_a_server_sleeps_over_requests_that_wait_for_their_turn(
    serve: Serve, connect: Connect
) -> None:
    stream, deferred = BodyStream(), DeferredResponse()
    handler = basic_handler()
    handler.get_streaming("/stream", lambda request: stream)
    handler.get("/later", lambda request: deferred)
    server = serve(handler)
    for path in ("/stream", "/later"):
        client = connect(server)
        client.send(encode(path=path))
        wait_until(lambda: server.stats().queue_depth == 0, "it is taken")
        client.send(encode(path="/health") * 10)
    wait_until(lambda: server.stats().requests_total == 2, "both are asked")
    assert_sleeps(server)
    stream.close()
    deferred.resolve(HttpResponse.text("made"))


def test_a_server_sleeps_after_wake_ups_from_outside(blocked: Blocked) -> None:
    client = blocked.connect()
    client.send(encode(path="/stream"))
    client.reply_head()
    for _ in range(50):
        blocked.stream.write(b"token")
        client.chunk()
    assert_sleeps(blocked.server)


def assert_sleeps(server: Server) -> None:
    """Nobody is awake, and nobody wakes up by himself again and again."""
    queue = server._acceptor.queue
    wait_until(lambda: not queue.watched, "the acceptor has gone to sleep")
    wait_until(lambda: queue._awake == 0, "no worker is awake")
    assert_quiet(queue)


def assert_quiet(queue: ConnectionQueue[Connection]) -> None:
    polls, taken = queue._polls, queue._taken
    threading.Event().wait(0.05)
    assert queue._polls - polls < 5
    assert queue._taken - taken < 5


@any_version
def test_responses_without_end_leave_room_for_others(serve: Serve, connect: Connect) -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "x" * 1000

    handler = basic_handler()
    handler.get_streaming("/endless", lambda request: endless())
    server = serve(handler, workers=1)
    readers = [connect(server) for _ in range(3)]
    for reader in readers:
        reader.send(encode(path="/endless"))
        reader.reply_head()
    stop = threading.Event()

    def read(index: int) -> None:
        while not stop.is_set():
            readers[index].chunk()

    threads = [threading.Thread(target=read, args=(index,)) for index in range(len(readers))]
    for thread in threads:
        thread.start()
    try:
        client = connect(server)
        for _ in range(20):
            assert client.get("/health").status == 200
            assert connect(server).get("/health").status == 200
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


def test_a_pipelined_flood_leaves_room_for_others(serve: Serve, connect: Connect) -> None:
    server = serve(workers=1)
    flood, client = connect(server), connect(server)
    requests = encode(path="/health") * 2000
    sender = threading.Thread(target=flood.send, args=(requests,))
    sender.start()
    for _ in range(10):
        assert client.get("/health").status == 200
    for _ in range(2000):
        assert flood.reply().status == 200
    sender.join(PATIENCE)


# Accidents


def test_a_push_while_a_worker_falls_asleep_wakes_it_without_the_acceptor() -> None:
    """Between the worker's look at the queue and its sleep, as if another thread ran just then."""

    class Racing(deque[Connection]):
        """At the worker's last look another thread pushes, as far as it gets."""

        def __init__(self) -> None:
            super().__init__()
            self.pusher: threading.Thread | None = None
            self.appended = threading.Event()

        def __len__(self) -> int:
            count = super().__len__()
            if self.pusher is not None and queue._condition._is_owned():  # type: ignore[attr-defined]
                pusher, self.pusher = self.pusher, None
                pusher.start()
                assert self.appended.wait(PATIENCE)
                pusher.join(0.2)  # it ends at once where it sees a worker awake, else it waits
            return count

        def __bool__(self) -> bool:
            return len(self) > 0  # before 3.11 a deque's own test of truth does not ask __len__

        def append(self, item: Connection) -> None:
            super().append(item)
            self.appended.set()

    takers = Takers(0)
    queue = takers.queue
    seat, queue._seat = queue._seat, cast(threading.Lock, Unlucky())
    item = Item()
    queue.items = items = Racing()
    items.pusher = threading.Thread(target=takers.push, args=(item,))
    takers.add()
    assert item.taken.wait(PATIENCE)
    queue._seat = seat
    takers.close()


def test_a_worker_outlives_a_failure_while_it_looks_for_work(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(workers=2)
    client = connect(server)
    assert client.get("/health").status == 200
    queue = server._acceptor.queue
    wait_until(lambda: queue._awake == 0, "no worker is awake")
    poller, failures = queue._poller, iter([MemoryError("no room")] * 3)

    class Failing:
        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            for failure in failures:
                raise failure
            return poller.poll(timeout)

    queue._poller = cast(Poller, Failing())
    for _ in range(20):  # the worker in the seat still polls the real one
        assert client.get("/health").status == 200
    wait_until(lambda: next(failures, None) is None, "every failure has come")
    assert "no room" in caplog.text
    wait_until(lambda: queue._awake == 0, "the numbers are right")
    assert [worker.thread.is_alive() for worker in server._workers] == [True, True]
    assert connect(server).get("/health").status == 200
