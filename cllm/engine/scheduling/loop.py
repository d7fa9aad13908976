"""The engine thread's loop: take messages, do a step, tell clients, and end every request once."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

from cllm.engine.errors import DeadlineExceeded, EngineError, described
from cllm.engine.history import History, RequestRecord, record_of
from cllm.engine.request import FinishReason, Request, RequestWriter
from cllm.engine.scheduling.fairness import FairQueue, Queued
from cllm.engine.scheduling.inbox import Inbox
from cllm.engine.scheduling.lock_waits import lock_waits
from cllm.engine.sharing import EQUAL, Share
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_FAILURES_TO_GIVE_UP = 3  # steps in a row that ended in an unexpected exception


class Work(Queued, Protocol):
    """A request on the engine thread. deadline: by time.monotonic(); deadline_s: as asked for."""

    @property
    def deadline(self) -> float: ...
    @property
    def deadline_s(self) -> float | None: ...
    @property
    def request(self) -> Request: ...
    @property
    def writer(self) -> RequestWriter: ...


W = TypeVar("W", bound=Work)


class EngineLoop(ABC, Generic[W]):
    """Serves requests until it is stopped; a subclass says what a step does.

    submit, renew, cancel, check_open, stop, snapshot and the properties are for any thread; all
    else is the engine thread's.
    """

    def __init__(self, stats: EngineStats, waiting: FairQueue[W], gather_s: float = 0.0) -> None:
        """gather_s: see Inbox.take, for requests that come to an idle engine."""
        self._inbox: Inbox[W] = Inbox(stats.slots_total, stats.queue_limit)
        self.history = History()
        # The engine thread's own:
        self._stats = stats
        self._waiting = waiting
        self._running: list[W] = []  # admitted and kept over several steps
        self._changed: list[RequestWriter] = []
        self._gather_s = gather_s
        self._next_deadline = math.inf
        self._failures = 0
        self._works = False  # and has the interpreter lock given to it sooner

    # Any thread.

    def submit(self, work: W) -> None:
        """Queue a request. Raises QueueFull, EngineClosed, or EngineError if the thread died."""
        work.writer.begin_metering()
        try:
            self._inbox.put(work)
        except BaseException:
            work.writer.end_metering()
            raise

    def check_open(self, tenant: str, share: Share = EQUAL) -> None:
        """Raise what submit would raise now, before effort goes into preparing a request."""
        self._inbox.check_open(tenant, share)

    def renew(self, tenant: str, share: Share) -> None:
        """Give a tenant another share, also for its requests that wait."""
        self._inbox.renew(tenant, share)

    def cancel(self, request: Request) -> None:
        """End a request before the next step."""
        self._inbox.cancel(request)

    def stop(self) -> None:
        """Let run() return."""
        self._inbox.stop()

    @property
    def failure(self) -> Exception | None:
        """What made the loop give up, if it did."""
        return self._inbox.failure

    @property
    def ending(self) -> bool:
        """Whether the loop has ended, or is told to, for whatever reason."""
        return self._inbox.stopping

    @property
    def crowded(self) -> bool:
        """Whether a request that is submitted now has to wait for others."""
        return self._inbox.in_flight >= self._stats.slots_total

    def waiting(self, most: int) -> list[tuple[str, int, list[RequestRecord]]]:
        """Tenants with waiting requests: the name, how many wait, and the oldest `most` of them."""
        return [
            (tenant, count, [record_of(work.request, tenant) for work in oldest])
            for tenant, count, oldest in self._inbox.waiting(most)
        ]

    @property
    def in_callback(self) -> bool:
        """Whether the caller runs on a thread for which the engine thread waits."""
        return False

    @abstractmethod
    def snapshot(self) -> EngineStats:
        """Counters and gauges, as of now."""

    def _snapshot(self, working: int, **gauges: Any) -> EngineStats:
        """The counters, with gauges. working: requests that are not waiting."""
        return replace(
            self._stats,
            requests_submitted=self._inbox.submitted,
            requests_refused=self._inbox.refused,
            requests_finished=dict(self._stats.requests_finished),
            queue_depth=max(0, self._inbox.in_flight - working),
            **gauges,
        )

    # The engine thread.

    @abstractmethod
    def _step(self) -> None:
        """Do one step's work. May raise: then the requests in the step are ended."""

    @abstractmethod
    def _fail_step(self, message: str) -> None:
        """End the requests in a step that raised an exception."""

    @abstractmethod
    def _release(self, work: W) -> None:
        """Free what a request that ends holds."""

    def _rest(self) -> float:
        """Seconds that the engine thread may sleep if no message comes; 0: there is work."""
        return 0.0 if self._running or self._waiting else math.inf

    def _close(self, ending: EngineError) -> None:
        """The loop has ended: end what waits outside the queue."""

    def run(self) -> None:
        """Serve until stop(), or until nothing works any more."""
        try:
            while self._take_messages():
                self._guarded_step()
                self._notify()
        except BaseException as error:
            _log.exception("the engine thread gives up")
            self._inbox.fail(error)
        finally:
            self._waiting.extend(self._inbox.close())
            ending = self._inbox.ending()
            self._close(ending)
            for work in [*self._running, *self._waiting]:
                try:
                    self._finish(work, FinishReason.ERROR, ending)
                except Exception:  # the other requests must end too
                    _log.exception("request %s could not be ended", work.request.id)
                    work.writer.finish(FinishReason.ERROR, ending)
                    self._changed.append(work.writer)
            self._tell()
            self._note_work(False)

    def _take_messages(self) -> bool:
        """Take what other threads left; sleep while there is nothing to do. False: stop."""
        rest = self._rest()
        if rest > 0:
            self._note_work(False)
        messages = self._inbox.take(wait=rest > 0, gather_s=self._gather_s, longest=rest)
        if messages is None:
            return False
        self._note_work(True)
        if messages.arrivals:
            self._waiting.extend(messages.arrivals)
            for work in messages.arrivals:
                self._next_deadline = min(self._next_deadline, work.deadline)
        for tenant, share in messages.shares.items():
            self._waiting.renew(tenant, share)
        for work, refusal in messages.displaced:
            # One that was admitted or has ended meanwhile has left the queue already.
            if not (work.writer.admitted or work.request.done):
                self._finish(work, FinishReason.ERROR, refusal)
        if messages.cancelled:
            for work in [*self._running, *self._waiting]:
                if work.request in messages.cancelled:
                    self._finish(work, FinishReason.CANCELLED)
        return True

    def _note_work(self, works: bool) -> None:
        if works != self._works:
            self._works = works
            (lock_waits.shorten if works else lock_waits.restore)()

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception as error:
            _log.exception("a step failed; the requests in it are given up")
            self._fail_step(f"internal error: {described(error)}")
            self._count_failure(error)

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_GIVE_UP:
            self._inbox.fail(error)

    def _expire(self) -> None:
        """End the requests whose deadline has passed."""
        if self._next_deadline == math.inf:
            return
        now = time.monotonic()
        if now < self._next_deadline:
            return
        for work in [*self._running, *self._waiting]:
            if work.deadline <= now:
                assert work.deadline_s is not None
                self._finish(work, FinishReason.ERROR, DeadlineExceeded(work.deadline_s))
        alive = [*self._running, *self._waiting]
        self._next_deadline = min((work.deadline for work in alive), default=math.inf)

    def _finish(self, work: W, reason: FinishReason, error: EngineError | None = None) -> None:
        request = work.request
        if request.done:
            return
        self._release(work)
        self._waiting.leave(work)
        # Counted before clients are told: a client that sees the end finds room and the counts.
        finished = self._stats.requests_finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        timings = request.timings
        self._inbox.ended(work, timings.total_s - timings.queued_s)
        work.writer.finish(reason, error)
        self.history.note_end(request, work.tenant)
        self._changed.append(work.writer)

    def _notify(self) -> None:
        """After a step: tell clients what is new."""
        began = time.perf_counter()
        self._tell()
        self._stats.other_s += time.perf_counter() - began

    def _tell(self) -> None:
        """Call the callbacks of the requests that changed."""
        changed, self._changed = self._changed, []
        for writer in changed:
            writer.notify()
