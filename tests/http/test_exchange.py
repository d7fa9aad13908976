"""An exchange hands its response to any protocol: whole, deferred or piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    IterableStream,
    ServerConfig,
)
from cllm.http.connection import Context
from cllm.http.exchange import BROKEN, MORE, SENT, WAIT, Exchange, Step, split
from cllm.http.intake import Intake
from cllm.http.poller import new_poller
from cllm.http.stats import Counters
from cllm.http.transport import Buffer


class Records:
    """A protocol that keeps what it is given: the sink, and the source of the request."""

    client = ("192.0.2.1", 1)

    def __init__(self, context: Context) -> None:
        self.exchange = Exchange(context)
        self.counters = Counters()
        self.heads: list[tuple[int, bytes | None]] = []
        self.pieces: list[bytes] = []
        self.ended = False
        self.wakes = 0

    def head(self, response: HttpResponse, body: bytes | None) -> None:
        response.encode_head(keep_alive=True, chunked=body is None)
        self.heads.append((response.status, body))

    def data(self, pieces: Sequence[Buffer], *, ended: bool) -> int:
        self.pieces += map(bytes, pieces)
        self.ended = ended
        return sum(map(len, pieces))

    def schedule(self) -> None:
        self.wakes += 1

    def answer(self, method: str = "GET", most: int = 0) -> Step:
        request = HttpRequest.build(method, "/")
        return self.exchange.answer(request, self, self, self.counters, most)


Begin = Callable[[Any], Records]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """A protocol whose handler gives this answer."""
    pollers = []

    def make(answer: Any) -> Records:
        handler = HttpHandler()
        handler.get("/", lambda request: answer)
        config = ServerConfig()
        pollers.append(new_poller())
        return Records(
            Context(
                Intake(handler, config),
                config,
                pollers[-1],
                {},
                lambda _: None,
                lambda _: None,
                lambda _: None,
            )
        )

    yield make
    for poller in pollers:
        poller.close()


def test_a_whole_response_is_handed_over_at_once(begin: Begin) -> None:
    protocol = begin(HttpResponse.text("all"))
    assert protocol.answer() is SENT
    assert protocol.heads == [(200, b"all")]
    protocol.exchange.finish(protocol.counters)
    assert (protocol.counters.requests, protocol.counters.bytes_sent) == (1, 3)


def test_a_head_request_gets_no_body(begin: Begin) -> None:
    protocol = begin(HttpResponse.text("all"))
    assert protocol.answer("HEAD") is SENT
    assert protocol.heads == [(200, b"")]


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200, [("Bad name", "x")]),
        HttpResponse(200, [], "text"),  # type: ignore[arg-type]
    ],
)
def test_a_response_that_cannot_be_sent_becomes_a_500(begin: Begin, response: HttpResponse) -> None:
    protocol = begin(response)
    assert protocol.answer() is SENT
    assert [status for status, _ in protocol.heads] == [500]


def test_a_deferred_response_wakes_its_source(begin: Begin) -> None:
    deferred = DeferredResponse()
    protocol = begin(deferred)
    assert (protocol.answer(), protocol.heads, protocol.wakes) == (WAIT, [], 0)
    deferred.resolve(HttpResponse.text("late"))
    assert protocol.wakes == 1
    assert protocol.exchange.advance(protocol) is SENT
    assert protocol.heads == [(200, b"late")]


def test_a_stream_is_handed_over_piece_by_piece(begin: Begin) -> None:
    stream = BodyStream()
    protocol = begin(HttpResponse.stream(stream))
    assert protocol.answer() is WAIT
    assert protocol.heads == [(200, None)]
    stream.write(b"one")
    assert protocol.exchange.advance(protocol) is WAIT
    stream.write(b"two")
    stream.close()
    assert protocol.exchange.advance(protocol) is SENT
    assert (protocol.pieces, protocol.ended) == ([b"one", b"two"], True)


@pytest.mark.parametrize("most", [1, 2, 3, 5, 7, 100])
@pytest.mark.parametrize("pull", [False, True])
def test_a_protocol_with_a_window_gets_no_more_than_it_asks_for(
    begin: Begin, most: int, pull: bool
) -> None:
    parts = [b"ab", b"cdefg", b"h", b"ijk"]
    stream: BodyStream
    if pull:
        stream = IterableStream(parts)
    else:
        stream = BodyStream()
        for part in parts:
            stream.write(part)
        stream.close()
    protocol = begin(HttpResponse.stream(stream))
    step = protocol.answer(most=most)
    sizes = [sum(map(len, protocol.pieces))]
    while step is not SENT:
        assert step is MORE or pull, "a stream that is whole waits for nothing"
        before = sum(map(len, protocol.pieces))
        step = protocol.exchange.advance(protocol, most)
        sizes.append(sum(map(len, protocol.pieces)) - before)
    assert max(sizes) <= most
    assert b"".join(protocol.pieces) == b"abcdefghijk"
    assert protocol.ended


@pytest.mark.parametrize("pull", [False, True])
def test_a_wake_up_while_there_is_a_rest_is_not_lost(begin: Begin, pull: bool) -> None:
    """A protocol that continues only after MORE, and after wake-ups that find no rest."""
    stream = IterableStream([b"abcdef"]) if pull else BodyStream()
    protocol = begin(HttpResponse.stream(stream))
    step = protocol.answer(most=4)
    if not pull:
        stream.write(b"abcdef")
        step = protocol.exchange.advance(protocol, 4)
    assert step is MORE
    if not pull:
        stream.close()
    for _ in range(3):  # what came until here was for the rest
        if step is not MORE:
            break
        step = protocol.exchange.advance(protocol, 4)
    assert step is SENT
    assert b"".join(protocol.pieces) == b"abcdef"


def test_a_window_leaves_the_rest_in_the_stream() -> None:
    stream = BodyStream()
    stream.high_water = 10
    for _ in range(5):
        stream.write(b"xy")
    assert stream.take(3) == [b"xy", b"xy"]
    assert stream.more
    stream.write(b"abcd")  # there is room for what was taken, and no more
    assert stream.take(8) == [b"xy"] * 3 + [b"abcd"]
    assert not stream.more


def test_pieces_are_split_without_copies() -> None:
    pieces = [b"abc", b"defg"]
    for most in range(1, 9):
        first, left = split(pieces, most)
        assert b"".join([*first, *left]) == b"abcdefg"
        assert sum(map(len, first)) == min(most, 7)
        assert all(map(len, [*first, *left]))
        assert all(
            part is whole or isinstance(part, memoryview)
            for part in [*first, *left]
            for whole in pieces
            if bytes(part) == whole
        )


def test_a_cancelled_stream_breaks_the_exchange(begin: Begin) -> None:
    stream = BodyStream()
    protocol = begin(HttpResponse.stream(stream))
    protocol.answer()
    stream.cancel("enough")
    assert protocol.exchange.broken
    assert protocol.exchange.advance(protocol) is BROKEN
    assert protocol.exchange.broken_by == "enough"
    protocol.exchange.cancel("enough", protocol.counters)
    assert (protocol.counters.clients_left, protocol.exchange.request) == (1, None)


def test_a_stop_ends_a_stream_with_its_last_event(begin: Begin) -> None:
    stream = EventStream()
    protocol = begin(HttpResponse.sse(stream))
    protocol.answer()
    assert protocol.exchange.end(protocol) is SENT
    assert protocol.ended and b"stopping" in protocol.pieces[-1]
    assert stream.cancelled


def test_a_stop_in_the_middle_of_an_event_completes_it_first(begin: Begin) -> None:
    stream = EventStream()
    stream.write(b"data: long\n\n")
    protocol = begin(HttpResponse.sse(stream))
    assert protocol.answer(most=7) is MORE
    assert protocol.exchange.end(protocol) is SENT
    assert b"".join(protocol.pieces).startswith(b"data: long\n\ndata: ")


def test_a_stop_breaks_a_stream_that_has_no_last_event(begin: Begin) -> None:
    protocol = begin(HttpResponse.stream(BodyStream()))
    protocol.answer()
    assert protocol.exchange.end(protocol) is BROKEN


def test_a_stop_answers_what_is_deferred(begin: Begin) -> None:
    protocol = begin(DeferredResponse())
    protocol.answer()
    assert protocol.exchange.end(protocol) is SENT
    assert [status for status, _ in protocol.heads] == [503]


def test_a_deferred_stream_that_was_not_taken_is_cancelled(begin: Begin) -> None:
    deferred, stream = DeferredResponse(), BodyStream()
    protocol = begin(deferred)
    protocol.answer()
    deferred.resolve(HttpResponse.stream(stream))
    protocol.exchange.cancel("gone", protocol.counters)
    assert stream.cancel_reason == "gone"


def test_an_exchange_takes_the_next_request(begin: Begin) -> None:
    protocol = begin(HttpResponse.text("x"))
    for _ in range(2):
        assert protocol.answer() is SENT
        protocol.exchange.finish(protocol.counters)
    assert protocol.counters.by_status == {200: 2}
