"""Embed the HTTP server: JSON, a path parameter, middleware, events, an answer that comes later.

    python docs/examples/embed_http.py --port 8090
    curl http://127.0.0.1:8090/notes -d '{"text": "buy milk"}'
    curl http://127.0.0.1:8090/notes/1
    curl -N http://127.0.0.1:8090/countdown
    curl http://127.0.0.1:8090/next-note        # answered when a note is added

Ctrl-C or SIGTERM ends it. llama.cpp is not imported.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from cllm.http import (
    DeferredResponse,
    HttpError,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Server,
    ServerConfig,
)
from cllm.http.handler import Answer, Next


class Notes:
    """Texts by number, and the clients that wait for the next one. Endpoints run in any worker."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._waiting: list[DeferredResponse] = []
        self._lock = threading.Lock()

    def add(self, request: HttpRequest) -> HttpResponse:
        body = request.json()  # answers 400 itself where it is not JSON
        if not isinstance(body, dict) or not isinstance(body.get("text"), str):
            raise HttpError(400, 'text: a string is expected, as in {"text": "buy milk"}')
        with self._lock:
            self._texts.append(body["text"])
            note = {"number": len(self._texts), "text": body["text"]}
            waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.resolve(HttpResponse.json(note))
        return HttpResponse.json(note, 201)

    def read(self, request: HttpRequest) -> dict[str, Any]:
        number = request.path_params["number"]
        with self._lock:
            if number.isdecimal() and 1 <= int(number) <= len(self._texts):
                return {"number": int(number), "text": self._texts[int(number) - 1]}
        raise HttpError(404, f"there is no note {number}")

    def wait_for_next(self, request: HttpRequest) -> DeferredResponse:
        """Returns at once: no thread is held while the client waits."""
        deferred = DeferredResponse()
        with self._lock:
            self._waiting.append(deferred)
        deferred.on_cancel(lambda reason: self._forget(deferred))  # the client has gone
        return deferred

    def _forget(self, deferred: DeferredResponse) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._waiting.remove(deferred)


def countdown(request: HttpRequest) -> Iterator[dict[str, int]]:
    """Each dict becomes one server-sent event."""
    for number in (3, 2, 1):
        yield {"number": number}


def timed(request: HttpRequest, next: Next) -> Answer:
    """Middleware: add the time that the endpoint took."""
    begun = time.perf_counter()

    def add_time(response: HttpResponse) -> HttpResponse:
        taken = f"{(time.perf_counter() - begun) * 1000:.2f}"
        response.headers.append(("X-Milliseconds", taken))
        return response

    answer = next(request)
    return answer.then(add_time) if isinstance(answer, DeferredResponse) else add_time(answer)


def main() -> None:
    """Serve until a signal comes; stop() then answers what has begun."""
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--port", type=int, default=8090)
    port = options.parse_args().port

    notes = Notes()
    handler = HttpHandler()
    handler.add_middleware(timed)
    handler.post("/notes", notes.add)
    handler.get("/notes/{number}", notes.read)
    handler.get("/next-note", notes.wait_for_next)
    handler.get_streaming("/countdown", countdown)

    # Blocked until sigwait(): a handler could miss the moment in which this thread falls asleep.
    ends = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with Server(handler, "127.0.0.1", port, ServerConfig(workers=4)) as server:
        print(f"http://127.0.0.1:{server.port}", flush=True)
        signal.sigwait(ends)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)  # a second one ends it at once


if __name__ == "__main__":
    main()
