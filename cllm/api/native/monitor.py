"""GET ``/monitor``: what the engine and the server do, as events, at most four a second.

A thread makes a snapshot for all watchers and exists only while there are some. Those with the same
rights share one encoding. A watcher whose connection is slow skips events: what it has not taken is
replaced.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from cllm.api.envelopes import encode
from cllm.api.native.monitor_view import View, ended_request
from cllm.api.service import Service, State
from cllm.api.tenants import tenant_of
from cllm.http import BodyStream, HttpError, HttpRequest, HttpResponse
from cllm.http.sse import EVENT_STREAM, end_event

if TYPE_CHECKING:
    from cllm.engine.history import RequestRecord
    from cllm.engine.step_records import Steps

log = logging.getLogger("cllm.api")

INTERVAL = 0.25  # s between two snapshots, or more:
SHARE = 0.005  # of a core, that they may take
LONGEST = 1.0  # s
MOST_WATCHERS = 256

_UNSTORED = (("Cache-Control", "no-store"),)


def pause(took: float) -> float:
    """Seconds to sleep after a snapshot that took so many seconds of a core."""
    return min(max(INTERVAL, took / SHARE), LONGEST)


class Encoded:
    """The events of one snapshot for watchers with the same rights.

    newest: the number after the last request that has ended. They differ only in where a watcher's
    list of ended requests goes on.
    """

    __slots__ = ("_ended", "_events", "_head", "newest")

    def __init__(self, head: bytes, ended: list[tuple[int, bytes]], newest: int) -> None:
        """head: the event's JSON, whose last field is an empty list of ended requests."""
        self._head = head.removesuffix(b"]}")
        self._ended = ended
        self._events: dict[int, bytes] = {}
        self.newest = newest

    def event(self, since: int) -> bytes:
        """For a watcher that has seen the ended requests before number `since`."""
        event = self._events.get(since)
        if event is None:
            ended = b",".join([each for number, each in self._ended if number >= since])
            event = self._events[since] = b"data: %b%b]}\n\n" % (self._head, ended)
        return event


class Watch(BodyStream):
    """One watcher's events; at most one of them waits for its connection."""

    __slots__ = ("_offered", "_since", "request")

    content_type = EVENT_STREAM
    endless = True

    def __init__(self, request: HttpRequest) -> None:
        super().__init__()
        self.request = request
        self._since = self._offered = 0

    def offer(self, snapshot: Encoded) -> None:
        """Put a snapshot in the place of one that has not been taken."""
        with self._lock:
            if self._closed or self.cancel_reason is not None:
                return
            if not self._chunks:
                self._since = self._offered
            event = snapshot.event(self._since)
            self._chunks = [event]
            self._pending = len(event)
            self._offered = snapshot.newest
            wake = self._wake_once()
        if wake is not None:
            wake()

    def end(self, reason: str) -> None:
        """Close the stream with a last event that says why."""
        with self._lock:
            if self._closed or self.cancel_reason is not None:
                return
            last = end_event(reason)
            self._chunks, self._pending = [last], len(last)
        self.close()

    def end_event(self, reason: str) -> bytes:
        return end_event(reason)


class Monitor:
    """The endpoint and its watchers. snapshots: made so far."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._watches: dict[Watch, None] = {}
        self._running = False
        # The monitor thread's own: ended requests as JSON, by number; the steps so far.
        self._ended: dict[int, tuple[RequestRecord, bytes]] = {}
        self._steps: Steps | None = None
        self.snapshots = 0

    def endpoint(self, request: HttpRequest) -> HttpResponse:
        """GET ``/monitor``. Raises HttpError 503 without a model or with too many watchers."""
        _ = self._service.known
        watch = Watch(request.without_body())
        watch.on_cancel(lambda _: self._leave(watch))
        with self._lock:
            if len(self._watches) >= MOST_WATCHERS:
                raise HttpError(503, f"{MOST_WATCHERS} clients watch already; try again later")
            self._watches[watch] = None
            start, self._running = not self._running, True
        if start:
            try:
                threading.Thread(target=self._run, name="cllm-monitor", daemon=True).start()
            except RuntimeError as error:  # no thread is to be had
                self._end(f"{error}; try again soon")
        return HttpResponse.stream(watch, EVENT_STREAM, headers=_UNSTORED)

    def _leave(self, watch: Watch) -> None:
        with self._lock:
            self._watches.pop(watch, None)

    def _run(self) -> None:
        """The thread: until the last watcher leaves."""
        try:
            while watches := self._present():
                began = time.thread_time()
                self._tick(watches)
                time.sleep(pause(time.thread_time() - began))
        except Exception:
            log.exception("the monitor failed; its watchers are closed")
            self._end("internal error; see the log")

    def _present(self) -> list[Watch]:
        with self._lock:
            if not self._watches:
                self._running = False
                self._ended, self._steps = {}, None
            return list(self._watches)

    def _end(self, reason: str) -> None:
        with self._lock:
            watches, self._watches = self._watches, {}
            self._running = False
        for watch in watches:
            watch.end(reason)

    def _tick(self, watches: list[Watch]) -> None:
        """Offer a snapshot to each watcher; those who may watch no longer are closed."""
        service, tenants = self._service, self._service.tenants
        if service.state is not State.READY:
            for watch in watches:
                self._close(watch, service.reason)
            return
        view = View(service, self.snapshots, self._steps)
        self.snapshots += 1
        self._steps = view.steps
        self._encode_ended(view)
        encoded: dict[str | None, Encoded] = {}
        for watch in watches:
            request = watch.request
            if not tenants.knows(tenants.of(request)):
                self._close(watch, "the key is no longer valid")
                continue
            rights = None if tenants.sees_all(request) else tenant_of(request)
            if rights not in encoded:
                encoded[rights] = self._encoded(view, rights)
            watch.offer(encoded[rights])

    def _close(self, watch: Watch, reason: str) -> None:
        self._leave(watch)
        watch.end(reason)

    def _encoded(self, view: View, tenant: str | None) -> Encoded:
        ended = [
            (number, event)
            for number, (record, event) in self._ended.items()
            if tenant is None or record.tenant == tenant
        ]
        newest = max(self._ended, default=-1) + 1
        return Encoded(encode(view.moment(tenant)), ended, newest)

    def _encode_ended(self, view: View) -> None:
        """Each request once: what its steps were is known best right after its end."""
        kept = self._service.known.history.ended_since(0)
        known = self._ended
        self._ended = {
            number: known.get(number) or (record, encode(ended_request(record, view.pace)))
            for number, record in kept
        }
