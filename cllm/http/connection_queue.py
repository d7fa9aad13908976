"""The connections that can go on, and who looks for more of them: few, hot workers.

Under the interpreter lock sixteen threads woken for sixteen events are slower than one that keeps
going, and each hand-over from a polling thread to a working one costs more than the request. So a
worker that finds the queue empty takes the *seat* and polls the sockets itself; the others sleep.
Two promises keep that safe, whoever pushes:

1. While the queue is not empty, a worker is awake, or about to be. If all that are awake are held
   by handlers, the acceptor looks once a millisecond (`look`) and wakes one more each time; every
   fifth time if the last one that took a connection lacks the processor.
2. While nobody is in the seat, the acceptor looks, or sleeps watching the poller (`vacant`).

Short responses may leave together (`hold`). While one is held, a worker sleeps that can be woken,
and after the acceptor's next look those that are held are taken before all others: so they leave
even if handlers block every worker that is awake.

A worker that was woken for a stall stays awake while there is work. If the queue flows and several
workers take turns, the acceptor has one of them sleep again: one is faster.

Each side first publishes what it did and then looks at what the other one published: the pusher
appends, then reads `_awake` and `_watched`; a worker or the acceptor says that it will sleep, then
reads the queue once more. So at least one of the two sees the other, and no wake-up is lost.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from time import monotonic
from typing import Generic, Protocol, TypeVar

from cllm.http.poller import DATA, EDGE, READ, Poller, WakeUp
from cllm.http.thread_state import ThreadStates
from cllm.http.workspace import FEW

LOOK_INTERVAL = 0.001  # s between two looks of the acceptor while there is work

# Responses that leave together. A response that leaves alone wakes its client, and a client on
# another processor sleeps again before the next one: that costs as much as a small handler.
# Enough have to wait in the queue that this processor works while the client reads.
MOST_HELD = 16
HOLD_TIME = 0.0005  # s; to answer sixteen small requests and to send sixteen takes less

# Fewer connections taken than this between two looks, with more waiting: the workers that are awake
# are held up in handlers. A worker that is only busy takes fifty in a millisecond.
STALLED = 8

# Nor is a worker held that is runnable and has not run: other programs have the processor, and one
# more would only contend for the interpreter lock. After so many looks one is woken all the same.
LACKING_LOOKS = 4

# Processor time for one connection after which a runnable worker is held: its handler computes. A
# whole turn of small requests takes less.
COMPUTING = 0.001  # s

# As many taken between two looks, and as many changes of the worker that takes: several workers are
# hot where one would do, and each system call hands the interpreter lock from one to another. It
# happens after other programs had the processor, which looks like a stall.
FLOWING = 16
TURNS = 4

# After so many looks without a poll the acceptor polls, although the queue moves: responses that
# always have more to send keep it from ever being empty.
UNPOLLED_LOOKS = 4

# Looks without work before the acceptor sleeps: waking it costs more than some empty looks.
QUIET_LOOKS = 3


class Wakeable(Protocol):
    """What the queue knows of a connection."""

    armed: int  # the interest that the poller has; 0: it must be told again

    def queue(self) -> bool:
        """The socket is ready: whether to push it, since it neither runs nor is in the queue."""


W = TypeVar("W", bound=Wakeable)


class ConnectionQueue(Generic[W]):
    """Deque and one condition variable; `push` from any thread, `take` by workers."""

    def __init__(
        self,
        poller: Poller,
        connections: dict[int, W],
        wake_acceptor: Callable[[], None],
    ) -> None:
        self._poller = poller
        self._connections = connections
        self._wake_acceptor = wake_acceptor
        self.items: deque[W] = deque()  # read by workers, changed here only
        self._held: deque[W] = deque()  # each has a response to send
        self._last_hold = 0.0  # time.monotonic()
        self._hold_before = 0.0  # the last one before those that are held now
        self._sending = False  # those held are taken before the others
        self._seat = threading.Lock()  # held by the worker that polls
        self._wake_up = WakeUp()  # ends that poll
        poller.register(self._wake_up.fileno(), READ, once=False)
        self._condition = threading.Condition(threading.Lock())
        # Under the condition's lock:
        self._awake = 0  # workers that will look at the queue before they sleep
        self._asleep = 0  # workers in wait(); the one that polls is in neither number
        self._called = False  # the one that polls is counted awake already, and `_wake_up` is set
        self._closed = False
        # The acceptor looks every LOOK_INTERVAL; cleared by the acceptor only, set by anybody.
        self._watched = False
        # Written without a lock: a lost count makes one look too cautious.
        self._taken = 0
        self._polls = 0
        self._taker = 0  # the thread that took the last one
        self._turns = 0  # how often that was another thread than before
        self._surplus = False  # the next worker that would take a turn is to sleep instead
        # The acceptor's own
        self._seen_taken = 0
        self._seen_polls = 0
        self._seen_turns = 0
        self._unpolled = 0
        self._quiet = 0
        self._lacking = 0  # looks for which no worker was woken
        self._seen_run = (0, 0, 0.0)  # the worker that took last, `_taken`, its processor time
        self._threads = ThreadStates()

    def __len__(self) -> int:
        return len(self.items) + len(self._held)

    def push(self, connection: W) -> None:
        """Have a worker run this connection. Any thread; never blocks for long."""
        self.items.append(connection)
        self._pushed()

    def hold(self, connection: W) -> None:
        """Have a worker run this connection soon, together with others. By a worker.

        It has a response to send. That does not wait if requests are slow, nor if none of the
        workers sleeps: handlers may then block all of them.
        """
        held = self._held
        now = monotonic()
        if not held:
            self._hold_before = self._last_hold
        self._last_hold = now
        held.append(connection)
        if (
            len(held) >= min(MOST_HELD, len(self.items) - FEW)
            or now - self._hold_before > HOLD_TIME
            or not self._asleep
        ):
            self._sending = True
        if not self._watched:
            self._watch()

    def _pushed(self) -> None:
        if not self._awake and self._wake_worker():
            return
        if not self._watched:  # a handler may hold the worker that is awake
            self._watch()

    # Workers

    def enter(self) -> None:
        """A worker begins."""
        with self._condition:
            self._awake += 1

    def take(self) -> W | None:
        """The next connection to run; waits for one. None once the queue is closed."""
        items, held = self.items, self._held
        me = get_ident()
        while not self._closed:
            if self._taker != me and self._surplus:
                self._surplus = False
                self._retire()
                continue
            try:
                connection = held.popleft() if self._sending else items.popleft()
            except IndexError:
                # In this order: a response that is held meanwhile is seen here, or marked later.
                self._sending = False
                if held:
                    self._sending = True
                elif not items:
                    if self._seat.acquire(False):
                        self._poll()
                    else:
                        self._sleep()
                continue
            self._taken += 1
            if self._taker != me:
                self._taker = me
                self._turns += 1
            return connection
        return None

    def _poll(self) -> None:
        """In the seat: wait for sockets that are ready and push their connections."""
        try:
            with self._condition:
                self._awake -= 1
                timeout = 0 if len(self) or self._closed else None
            try:
                events = self._poller.poll(timeout)
            finally:
                with self._condition:
                    if self._called:
                        self._called = False
                        if not self._closed:
                            self._wake_up.clear()
                    else:
                        self._awake += 1
        finally:
            self._seat.release()
        self._polls += 1
        self._dispatch(events)
        if not self._watched:
            self._watch()

    def _sleep(self) -> None:
        condition = self._condition
        with condition:
            self._awake -= 1
            if len(self) or self._closed:
                self._awake += 1
                return
            self._asleep += 1
            condition.wait()  # who wakes it corrects the counts

    def _retire(self) -> None:
        """Sleep although there is work: another worker does it. The acceptor looks meanwhile."""
        condition = self._condition
        with condition:
            if self._awake < 2 or self._closed:
                return
            self._awake -= 1
            self._asleep += 1
            condition.wait()

    # Whoever wakes

    def _wake_worker(self, *, even_if_awake: bool = False) -> bool:
        """Whether one was woken."""
        condition = self._condition
        with condition:
            if self._awake and not even_if_awake:
                return False
            if self._asleep:
                self._asleep -= 1
                self._awake += 1
                condition.notify()
                return True
            if self._seat.locked() and not self._called and not self._closed:
                self._called = True
                self._awake += 1
                self._wake_up.set()
                return True
            return False

    def _watch(self) -> None:
        self._watched = True
        if not self._closed:
            self._wake_acceptor()

    def _dispatch(self, events: list[tuple[int, int]]) -> None:
        get, append = self._connections.get, self.items.append
        for fd, mask in events:
            connection = get(fd)
            if connection is not None:
                if mask != DATA or connection.armed != EDGE:
                    connection.armed = 0
                if connection.queue():
                    append(connection)
        if self.items:
            self._pushed()

    # The acceptor

    @property
    def watched(self) -> bool:
        """Whether the acceptor must look every LOOK_INTERVAL."""
        return self._watched

    @property
    def vacant(self) -> bool:
        """Nobody polls."""
        return not self._seat.locked()

    def collect(self) -> None:
        """Push the connections whose sockets are ready now, and go on looking."""
        self._watched = True
        self._dispatch(self._poller.poll(0))

    def look(self) -> None:
        """Wake one more worker if all that are awake are stuck; poll if nobody does.

        Responses that are held leave before anything else is done.
        """
        taken, polls = self._taken, self._polls
        moved = taken - self._seen_taken
        stalled = moved < STALLED
        if not stalled:
            self._lacking = 0
        turns = self._turns
        self._surplus = moved >= FLOWING and turns - self._seen_turns >= TURNS
        self._seen_turns = turns
        self._unpolled = self._unpolled + 1 if polls == self._seen_polls else 0
        self._seen_taken, self._seen_polls = taken, polls
        if self._unpolled and self.vacant and (stalled or self._unpolled >= UNPOLLED_LOOKS):
            self._unpolled = 0
            self.collect()
        if self._held:
            self._sending = True
        if len(self):
            if stalled and not self._lacks_processor():
                self._wake_worker(even_if_awake=True)
        elif not moved:
            self._quiet += 1
            if self._quiet >= QUIET_LOOKS:
                self._quiet = 0
                self._watched = False
                if len(self):
                    self._watched = True
            return
        self._quiet = 0

    def _lacks_processor(self) -> bool:
        """While it stalls: whether the worker that took last is not held, but has to wait."""
        taker, taken, threads = self._taker, self._taken, self._threads
        lacks = self._lacking < LACKING_LOOKS and threads.is_runnable(taker)
        if lacks:
            ran = threads.processor_time(taker)
            if self._seen_run[:2] != (taker, taken):
                self._seen_run = taker, taken, ran
            lacks = ran - self._seen_run[2] < COMPUTING
        self._lacking = self._lacking + 1 if lacks else 0
        return lacks

    def close(self) -> None:
        """Send every worker home; what is still queued stays there."""
        with self._condition:
            self._closed = True
            self._awake += self._asleep
            self._asleep = 0
            self._condition.notify_all()
            self._wake_up.set()

    def release(self) -> None:
        """Free the descriptor; after `close`, when no worker polls any more."""
        self._wake_up.close()
