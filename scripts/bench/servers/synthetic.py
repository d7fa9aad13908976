"""An embedded HTTP server whose streams are all fed by one thread at a set pace; no model.

Run by `scripts.bench streams --http-only`, as load of an engine with thousands of sequences on the
HTTP server. Arguments: port, workers.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import sys
import threading
import time
import uuid

from cllm.http import (
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Server,
    ServerConfig,
    StreamClosed,
)

Batch = tuple[list[EventStream], int, float]  # streams, tokens of each, tokens a second


class Batches:
    """Gathers streams; a batch that is complete is fed until its last token."""

    def __init__(self) -> None:
        self._gathering: list[EventStream] = []
        self._lock = threading.Lock()
        self._complete: queue.SimpleQueue[tuple[list[EventStream], int, float]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._feed, name="producer", daemon=True).start()

    def stream(self, request: HttpRequest) -> HttpResponse:
        """Join the batch of `size` streams, of `tokens` tokens each, at `pace` tokens a second."""
        asked = request.json()
        stream = EventStream()
        with self._lock:
            self._gathering.append(stream)
            if len(self._gathering) == asked["size"]:
                self._complete.put((self._gathering, asked["tokens"], asked["pace"]))
                self._gathering = []
        return HttpResponse.sse(stream)

    def _feed(self) -> None:
        while True:
            streams, tokens, pace = self._complete.get()
            fed = [(uuid.uuid4().hex, stream) for stream in streams]
            begin = time.monotonic()
            for number in range(tokens):
                time.sleep(max(0.0, begin + number / pace - time.monotonic()))
                for name, stream in fed:
                    _send(stream, {
                        "id": name, "token": f"token {number} ", "done": False,
                        "at": time.monotonic(),
                    })  # fmt: skip
            for name, stream in fed:
                _send(stream, {
                    "id": name, "token": "", "done": True, "finish_reason": "length",
                    "usage": {"completion_tokens": tokens}, "at": time.monotonic(),
                })  # fmt: skip
                stream.close()


def _send(stream: EventStream, event: dict[str, object]) -> None:
    # If the client left, the benchmark notices it by itself.
    with contextlib.suppress(StreamClosed):
        stream.send(event)


def main() -> None:
    """Serve until SIGTERM."""
    port, workers = int(sys.argv[1]), int(sys.argv[2])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # in every thread, for sigwait()
    handler = HttpHandler()
    batches = Batches()
    handler.post("/stream", batches.stream)
    handler.get("/health", lambda request: HttpResponse.json({"success": True}))
    config = ServerConfig(workers=workers, access_log=False, max_connections=20_000, grace=1.0)
    with Server(handler, "127.0.0.1", port, config):
        signal.sigwait([signal.SIGTERM])


if __name__ == "__main__":
    main()
