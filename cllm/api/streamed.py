"""JSON bodies that take long to encode: the worker that sends one encodes it, piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cllm.api.envelopes import JSON
from cllm.http import HttpResponse
from cllm.http.body_stream import IterableStream

_PIECE = 64 * 1024  # bytes; minimum size of the pieces in which a worker writes a response


def streamed(items: Iterator[bytes]) -> HttpResponse:
    """A response with these parts; vectors, for example, may take megabytes."""
    return HttpResponse.stream(IterableStream(_pieces(items)), JSON)


def _pieces(items: Iterator[bytes]) -> Iterator[bytes]:
    collected: list[bytes] = []
    size = 0
    for item in items:
        collected.append(item)
        size += len(item)
        if size >= _PIECE:
            yield b"".join(collected)
            collected, size = [], 0
    yield b"".join(collected)


def made_late(make: Callable[[], HttpResponse]) -> HttpResponse:
    """The JSON response that `make` returns, made when it is sent: not on the engine thread."""

    def body() -> Iterator[bytes]:
        made = make().body
        assert isinstance(made, bytes)
        yield made

    return streamed(body())
