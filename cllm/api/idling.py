"""Has a model unloaded that has been idle, and loaded again for the next request.

A request that needs the model calls `enter`. It either holds the model until its answer has ended,
or gets a future that is done once the model is loaded; no worker waits for it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING

from cllm.api.lanes import Answer, Endpoint
from cllm.api.rate_limits import retry_fields
from cllm.http import BodyStream, DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine.unloaded import Unloaded

log = logging.getLogger("cllm.api")

_LOOKS = 4  # in an idle period, at streams, whether they have ended
_RETRY_S = 5.0  # after which a client tries a load again that failed
_STREAMS = 64  # that are kept before those that have ended are dropped


class Idling:
    """Whether the model is in memory; one thread unloads and loads it.

    unload and load: of the program, which owns the engine; both run on that thread. If unload
    raises, the model is still loaded, and it is tried again after another idle period. If load
    raises, the requests that wait get 503, and the next one tries again.
    """

    def __init__(
        self,
        seconds: float,
        unload: Callable[[], Unloaded],
        load: Callable[[Unloaded], None],
    ) -> None:
        self._seconds = seconds
        self._unload = unload
        self._load = load
        self._changed = threading.Condition()
        # Under its lock:
        self._holders = 0  # requests that hold the model and have no stream yet
        self._streams: list[BodyStream] = []  # of responses that hold it, or did
        self._most_streams = _STREAMS
        self._idle_since = 0.0
        self._waking: Future[None] | None = None  # the model is unloaded until this is done
        self._wanted = False  # a request waits for it
        self._stopping = False
        self._loading = False
        self._thread = threading.Thread(target=self._run, name="cllm-idle", daemon=True)

    def start(self) -> None:
        """The model is loaded and idle from now on."""
        self._idle_since = monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Neither unload nor load any more; waits for the model to be unloaded, not for a load."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            loading = self._loading
        if self._thread.is_alive() and not loading:
            self._thread.join()

    # Requests, on any thread

    def enter(self) -> Future[None] | None:
        """Hold the model; where it is unloaded, have it loaded: the future is done after that."""
        with self._changed:
            if self._waking is None:
                self._holders += 1
            elif not self._wanted:
                self._wanted = True
                self._changed.notify()
            return self._waking

    def held(self, endpoint: Endpoint, request: HttpRequest) -> Answer:
        """The endpoint's answer. After `enter`: the model is held until the answer has ended."""
        try:
            answer = endpoint(request)
        except BaseException:
            self._leave()
            raise
        if isinstance(answer, DeferredResponse):
            answer.on_cancel(lambda _: self._leave())
            return answer.then(self._answered)
        return self._answered(answer)

    def _answered(self, response: HttpResponse) -> HttpResponse:
        self._leave(response.body if isinstance(response.body, BodyStream) else None)
        return response

    def _leave(self, stream: BodyStream | None = None) -> None:
        with self._changed:
            self._holders -= 1
            self._idle_since = monotonic()
            if stream is not None:
                self._streams.append(stream)
                if len(self._streams) > self._most_streams:
                    self._drop_ended()
                    self._most_streams = max(_STREAMS, 2 * len(self._streams))

    def _drop_ended(self) -> None:
        """Under the lock."""
        self._streams = [s for s in self._streams if not (s.finished or s.cancelled)]

    # The thread

    def _run(self) -> None:
        while self._wait_until_idle():
            log.info("no request for %g s: unloading the model", self._seconds)
            try:
                known = self._unload()
            except Exception:
                log.exception("the model cannot be unloaded and stays in memory")
                self._settle(None)
                continue
            gc.unfreeze()  # see cllm.startup.calm_collector
            gc.collect()  # what an engine holds includes circles
            return_memory()
            while self._waking is not None:
                if not self._wait_until_wanted():
                    return
                self._wake(known)

    def _wait_until_idle(self) -> bool:
        """False: to stop. After True, requests wait for the model."""
        with self._changed:
            while not self._stopping:
                before = len(self._streams)
                self._drop_ended()
                now = monotonic()
                if len(self._streams) < before:
                    self._idle_since = now  # at the latest
                if not (self._holders or self._streams):
                    left = self._idle_since + self._seconds - now
                    if left <= 0:
                        self._waking = Future()
                        return True
                    self._changed.wait(left)
                else:
                    # An answer without a stream that ends meanwhile begins a whole period.
                    self._changed.wait(self._seconds / (_LOOKS if self._streams else 1))
        return False

    def _wait_until_wanted(self) -> bool:
        """False: to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted or self._stopping)
            self._loading = not self._stopping
        if self._stopping:
            self._settle(HttpError(503, "the server is stopping"))
        return not self._stopping

    def _wake(self, known: Unloaded) -> None:
        began = monotonic()
        log.info("a request came: loading the model")
        try:
            self._load(known)
        except Exception as error:
            log.error("the model cannot be loaded again: %s; the next request tries again", error)
            # Not the reason: it may name files.
            message = "the model cannot be loaded again; the server's log says why"
            self._settle(HttpError(503, message, retry_fields(_RETRY_S)))
            return
        log.info("the model is loaded after %.1f s", monotonic() - began)
        self._settle(None)

    def _settle(self, error: HttpError | None) -> None:
        """Let the requests that wait go on, or fail."""
        with self._changed:
            waking, self._wanted, self._loading = self._waking, False, False
            self._waking = None if error is None else Future()
            self._idle_since = monotonic()
        assert waking is not None
        if error is None:
            waking.set_result(None)
        else:
            waking.set_exception(error)


def return_memory() -> None:
    """Give freed memory back to the system, where the C library would keep it (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
