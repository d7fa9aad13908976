"""Whether a thread is held or only lacks the processor, and what the queue makes of it."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cllm.http import connection_queue
from cllm.http.connection import Connection
from cllm.http.connection_queue import COMPUTING, LACKING_LOOKS, ConnectionQueue
from cllm.http.poller import new_poller
from cllm.http.thread_state import ThreadStates
from tests.http.http_wire import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


class Holder:
    """A thread that blocks, or computes without the interpreter lock, until the test ends."""

    def __init__(self, *, computes: bool) -> None:
        self.computes = computes
        self.ending = threading.Event()

    def hold(self) -> None:
        while not self.ending.is_set():
            if self.computes:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)  # about 0.1 s
            else:
                self.ending.wait(PATIENCE)


@pytest.fixture
def holding() -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def start(**how: bool) -> Holder:
        holders.append(Holder(**how))
        return holders[-1]

    yield start
    for holder in holders:
        holder.ending.set()


def test_a_thread_that_computes_is_runnable_and_one_that_waits_is_not(
    holding: Callable[..., Holder],
) -> None:
    states = ThreadStates()
    threads = []
    for computes in (True, False):
        thread = threading.Thread(target=holding(computes=computes).hold)
        thread.start()
        threads.append(thread)
        assert thread.ident is not None
        wait_until(
            lambda ident=thread.ident, computes=computes: (  # type: ignore[misc]
                states.is_runnable(ident) is computes
            ),
            f"it is seen that a thread {'computes' if computes else 'waits'}",
        )
    assert not states.is_runnable(1)  # no thread's


def test_the_processor_time_of_a_thread_is_its_own(holding: Callable[..., Holder]) -> None:
    states = ThreadStates()
    thread = threading.Thread(target=holding(computes=True).hold)
    thread.start()
    computing, mine = thread.ident or 0, threading.get_ident()
    wait_until(lambda: states.processor_time(computing) > 0.01, "it computes")
    before = time.thread_time()
    assert before <= states.processor_time(mine) <= time.thread_time()
    assert states.processor_time(1) == 0.0  # no thread's


class Queue:
    """Two workers; the first takes an item and is held, a second item waits."""

    def __init__(self, holder: Holder) -> None:
        self.poller = new_poller()
        self.queue: ConnectionQueue[Connection] = ConnectionQueue(self.poller, {}, lambda: None)
        self.holder = holder
        self.taken = threading.Semaphore(0)
        self.threads = [threading.Thread(target=self._work) for _ in range(2)]
        for thread in self.threads:
            self.queue.enter()
            thread.start()
        wait_until(lambda: self.queue._awake == 0, "both wait for work")
        self.queue.push(object())  # type: ignore[arg-type]
        assert self.taken.acquire(timeout=PATIENCE)
        self.queue.push(object())  # type: ignore[arg-type]

    def _work(self) -> None:
        while self.queue.take() is not None:
            self.taken.release()
            self.holder.hold()

    def close(self) -> None:
        self.holder.ending.set()
        self.queue.close()
        for thread in self.threads:
            thread.join(6 * PATIENCE)  # on a busy machine
            assert not thread.is_alive()
        self.queue.release()
        self.poller.close()


def test_a_further_worker_is_woken_at_once_if_the_first_is_blocked(
    holding: Callable[..., Holder],
) -> None:
    queue = Queue(holding(computes=False))
    states = ThreadStates()
    wait_until(lambda: not states.is_runnable(queue.queue._taker), "it is blocked")
    queue.queue.look()
    assert queue.taken.acquire(timeout=PATIENCE)
    queue.close()


def test_a_further_worker_is_woken_once_the_first_has_computed_for_a_while(
    holding: Callable[..., Holder],
) -> None:
    queue = Queue(holding(computes=True))
    states, taker = ThreadStates(), queue.queue._taker
    wait_until(lambda: states.is_runnable(taker), "it computes")
    queue.queue.look()
    seen = states.processor_time(taker)
    wait_until(
        lambda: states.processor_time(taker) > seen + COMPUTING and states.is_runnable(taker),
        "it goes on",
    )
    queue.queue.look()
    assert queue.queue._awake == 2
    assert queue.taken.acquire(timeout=PATIENCE)
    queue.close()


def test_a_further_worker_is_woken_after_some_looks_if_the_first_does_not_get_on(
    holding: Callable[..., Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No test can take the processor from a thread, so however long it runs counts as nothing.
    monkeypatch.setattr(connection_queue, "COMPUTING", float("inf"))
    queue = Queue(holding(computes=True))
    states, taker = ThreadStates(), queue.queue._taker
    wait_until(lambda: states.is_runnable(taker), "it computes")
    for _ in range(LACKING_LOOKS):
        queue.queue.look()
    assert queue.queue._awake == 1
    queue.queue.look()
    assert queue.queue._awake == 2
    assert queue.taken.acquire(timeout=PATIENCE)
    queue.close()
