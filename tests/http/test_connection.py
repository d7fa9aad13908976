"""Who may run a connection, and that no wake-up of one is lost."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable

import pytest

from cllm.http import HttpHandler
from cllm.http.connection import (
    AGAIN,
    HOLD,
    IDLE,
    QUEUED,
    RUNNING,
    RUNNING_AGAIN,
    Connection,
    Context,
    Schedule,
)
from cllm.http.intake import Intake
from cllm.http.limits import ServerConfig
from cllm.http.poller import READ, new_poller
from cllm.http.transport import PlainTransport
from cllm.http.workspace import Workspace
from tests.ctrl_c import pressed_at


class Scripted:
    """A protocol that calls back into the test while it runs."""

    def __init__(self) -> None:
        self.states: list[object] = []
        self.on_run: Callable[[], int] = lambda: READ
        self.idle: float | None = None

    def advance(self, connection: Connection, workspace: Workspace) -> int:
        self.states.append(connection.state)
        return self.on_run()

    attend = advance

    def lost(self, connection: Connection, workspace: Workspace) -> None:
        self.states.append("lost")

    def idle_since(self, connection: Connection) -> float | None:
        return self.idle

    def closed(self) -> None:
        self.states.append("closed")


class Bench:
    """A connection without a server: the test plays queue and worker."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.pushed: list[Connection] = []
        self.held: list[Connection] = []
        self.closes = 0
        poller = new_poller()
        poller.register(ours.fileno(), READ)
        table: dict[int, Connection] = {}
        context = Context(
            Intake(HttpHandler(), ServerConfig()),
            ServerConfig(),
            poller,
            table,
            self.pushed.append,
            self._closed,
            self.held.append,
        )
        self.protocol = Scripted()
        self.connection = Connection(
            context, PlainTransport(ours), self.protocol, ("", 0), READ, float("inf")
        )
        table[self.connection.fd] = self.connection
        self.connection.admitted()

    def _closed(self, connection: Connection) -> None:
        self.closes += 1

    def run(self) -> None:
        self.pushed.pop().run(Workspace(()))


@pytest.mark.parametrize(
    ("before", "after", "pushes"),
    [
        (IDLE, QUEUED, 1),
        (QUEUED, QUEUED, 0),
        (RUNNING, RUNNING_AGAIN, 0),
        (RUNNING_AGAIN, RUNNING_AGAIN, 0),
    ],
)
def test_a_wake_up_in_each_state(before: Schedule, after: Schedule, pushes: int) -> None:
    bench = Bench()
    bench.connection._state = before
    bench.connection.schedule()
    assert bench.connection.state is after
    assert len(bench.pushed) == pushes


@pytest.mark.parametrize(
    ("during", "again", "after"),
    [
        (RUNNING, False, IDLE),
        (RUNNING, True, QUEUED),
        (RUNNING_AGAIN, False, QUEUED),
        (RUNNING_AGAIN, True, QUEUED),
    ],
)
def test_the_end_of_a_run_in_each_state(during: Schedule, again: bool, after: Schedule) -> None:
    bench = Bench()
    bench.connection._state = during
    bench.connection._finish(again=again)
    assert bench.connection.state is after
    assert len(bench.pushed) == (after is QUEUED)


@pytest.mark.parametrize(("wake_ups", "after"), [(0, IDLE), (1, QUEUED), (2, QUEUED)])
def test_a_wake_up_while_a_response_is_held(wake_ups: int, after: Schedule) -> None:
    bench = Bench()
    bench.protocol.on_run = lambda: HOLD
    bench.connection.schedule()
    bench.run()
    assert bench.held == [bench.connection]
    assert not bench.connection.close_if_idle()
    for _ in range(wake_ups):
        bench.connection.schedule()
    assert bench.pushed == [], "its response leaves first"
    bench.protocol.on_run = lambda: READ
    bench.held.pop().run(Workspace(()))
    assert bench.connection.state is after
    assert len(bench.pushed) == (after is QUEUED)


def test_many_wake_ups_queue_it_once() -> None:
    bench = Bench()
    for _ in range(3):
        bench.connection.schedule()
    assert bench.pushed == [bench.connection]
    assert bench.connection.state is QUEUED


def test_a_run_without_a_wake_up_parks_it() -> None:
    bench = Bench()
    bench.connection.schedule()
    bench.run()
    assert bench.protocol.states == [RUNNING]
    assert bench.connection.state is IDLE
    assert bench.pushed == []


def test_a_wake_up_during_a_run_queues_it_again_once() -> None:
    bench = Bench()

    def woken_twice() -> int:
        bench.connection.schedule()
        bench.connection.schedule()
        assert bench.connection.state is RUNNING_AGAIN
        assert bench.pushed == [], "at most one thread has it"
        return READ

    bench.protocol.on_run = woken_twice
    bench.connection.schedule()
    bench.run()
    assert bench.pushed == [bench.connection]
    assert bench.connection.state is QUEUED


def test_what_could_go_on_queues_itself_behind_the_others() -> None:
    bench = Bench()
    bench.protocol.on_run = lambda: AGAIN
    bench.connection.schedule()
    bench.run()
    assert bench.pushed == [bench.connection]


def test_a_protocol_that_fails_closes_its_connection_only() -> None:
    bench = Bench()

    def fail() -> int:
        raise ZeroDivisionError

    bench.protocol.on_run = fail
    bench.connection.schedule()
    bench.run()
    assert bench.protocol.states == [RUNNING, "lost", "closed"]
    assert bench.closes == 1
    assert bench.theirs.recv(1) == b""


def test_late_wake_ups_of_a_closed_connection_do_nothing() -> None:
    bench = Bench()
    bench.connection.close()
    bench.connection.close()
    bench.connection.attend()
    bench.run()
    assert bench.closes == 1
    assert bench.protocol.states == ["closed"]
    assert bench.connection.state is IDLE


def test_only_an_idle_connection_is_closed_for_another_one() -> None:
    bench = Bench()
    assert not bench.connection.close_if_idle(), "the protocol is busy"
    bench.protocol.idle = 0.0
    bench.connection.schedule()
    assert not bench.connection.close_if_idle(), "the queue has it"
    bench.protocol.on_run = lambda: int(bench.connection.close_if_idle()) or READ
    bench.run()
    assert bench.closes == 0, "a worker has it"
    bench.theirs.send(b"G")
    assert not bench.connection.close_if_idle(), "a request has begun to come"
    bench.theirs.close()
    assert not bench.connection.close_if_idle(), "its first byte may still be read"
    assert bench.closes == 0


def test_a_wake_up_while_it_is_closed_for_another_one_finds_nothing_to_do() -> None:
    bench = Bench()
    bench.protocol.idle = 0.0
    closed = bench.protocol.closed

    def woken() -> None:
        bench.connection.schedule()
        closed()

    bench.protocol.closed = woken  # type: ignore[method-assign]
    assert bench.connection.close_if_idle()
    assert bench.pushed == [bench.connection]
    bench.run()
    assert bench.protocol.states == ["closed"]
    assert bench.connection.state is IDLE
    assert bench.theirs.recv(1) == b""


def test_a_wake_up_while_it_is_looked_at_is_not_lost() -> None:
    bench = Bench()

    def woken(connection: Connection) -> float | None:
        connection.schedule()
        return None

    bench.protocol.idle_since = woken  # type: ignore[method-assign]
    assert not bench.connection.close_if_idle()
    bench.run()
    assert bench.protocol.states == [RUNNING]


def test_wake_ups_from_many_threads_are_all_seen() -> None:
    """Each thread publishes, then schedules: the last run must see everything published."""
    bench = Bench()
    published = [0] * 4
    seen = [0] * 4

    def look() -> int:
        seen[:] = published
        return READ

    bench.protocol.on_run = look

    def publish(index: int) -> None:
        for count in range(1, 2001):
            published[index] = count
            bench.connection.schedule()

    threads = [threading.Thread(target=publish, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or bench.pushed:
        if bench.pushed:
            assert len(bench.pushed) == 1
            bench.run()
    assert seen == published == [2000] * 4


@pytest.mark.parametrize("place", range(1, 8))
def test_ctrl_c_at_any_moment_of_a_wake_up_leaves_no_lock_taken(place: int) -> None:
    """A program may answer on its main thread, where Python looks for signals at these events."""
    bench = Bench()

    def wake() -> None:
        for _ in range(7):
            bench.connection.queue()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert pressed_at(place, wake)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not bench.connection._lock.locked()
