"""Properties of the parser for every input: cuts do not matter, requests arrive whole."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cllm.http.errors import ProtocolError
from cllm.http.limits import Limits
from cllm.http.parser import ParserState, RequestParser


class Outcome(NamedTuple):
    """All that a stream of bytes led to."""

    requests: list[object]
    error: tuple[int, str] | None
    state: ParserState | None


def outcome(parts: Iterable[bytes], limits: Limits) -> Outcome:
    parser = RequestParser(limits)
    requests: list[object] = []
    for part in parts:
        parser.feed(part)
        try:
            while (request := parser.next_request()) is not None:
                requests.append(request)
        except ProtocolError as error:
            return Outcome(requests, (error.status, error.message), None)
    return Outcome(requests, None, parser.state)


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


# Pieces that make requests and break them, so that random sequences get past the request line.
PIECES = (
    b"GET / HTTP/1.1\r\nHost: x\r\n", b"POST /p HTTP/1.1\r\nHost: x\r\n", b"GET ", b"/a", b"/%41",
    b"/%4", b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0",
    b" ", b"\t", b":", b"A: b\r\n", b"Host: x", b"Host: y\r\n", b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n", b"Content-Length: 99\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n", b"Expect: 100-continue\r\n", b"Expect: x\r\n", b"3\r\n",
    b"abc", b"abc\r\n", b"0\r\n", b"0\r\n\r\n", b"1;e=v\r\n", b"a" * 30, b"ff\r\n", b"\xe4", b"*",
    b"http://h/", b"CONNECT h:1", b"OPTIONS *",
)  # fmt: skip

# Half of them begin with what leads past the request line, or into a chunked body.
beginnings = st.sampled_from(
    [b"", b"", PIECES[0], PIECES[1], PIECES[1] + b"Transfer-Encoding: chunked\r\n\r\n"]
)
pieces = st.one_of(st.sampled_from(PIECES), st.binary(max_size=4))
streams = st.builds(
    lambda first, rest: first + b"".join(rest), beginnings, st.lists(pieces, max_size=14)
)
narrow_limits = st.builds(
    Limits,
    request_line=st.integers(14, 60),
    head=st.integers(18, 90),
    fields=st.integers(1, 4),
    body=st.integers(0, 9),
    chunk_line=st.integers(16, 20),
    trailers=st.integers(0, 20),
)
limits_strategy = st.just(Limits()) | narrow_limits
places_strategy = st.lists(st.integers(0, 2**16), max_size=8)


@settings(max_examples=1500, deadline=None)
@given(streams, places_strategy, limits_strategy)
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [26], Limits(request_line=16, head=28))
@example(b"GET /aaaaaaaaa\rb\x00", [15], Limits(request_line=14))
@example(b"GET / HTTP/1.1\r\nAAAA\rb", [21], Limits(head=20))
@example(b"GET / HTTP/1.0\r\nContent-Length: 1\r\n\r\n\r\nGET /", [38], Limits())
@example(
    b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    [],
    Limits(trailers=0),
)
@example(b"GET / HTTP/1.1\r\nAAA\r\n\r\n", [21], Limits(head=20))
def test_any_split_gives_the_same(data: bytes, places: list[int], limits: Limits) -> None:
    whole = outcome([data], limits)
    assert outcome(cut(data, places), limits) == whole
    assert outcome((data[i : i + 1] for i in range(len(data))), limits) == whole


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), places_strategy)
def test_any_bytes_are_a_request_an_error_or_incomplete(data: bytes, places: list[int]) -> None:
    whole = outcome([data], Limits())
    assert outcome(cut(data, places), Limits()) == whole
    if whole.error is not None:
        assert 400 <= whole.error[0] <= 505


token = st.text("!#$%&'*+-.^_`|~0123456789abcXYZ", min_size=1, max_size=8)
field_value = st.text(
    st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20
).map(lambda value: value.strip(" \t"))
# None of these names means anything to the parser.
fields_strategy = st.lists(st.tuples(token.map("X-".__add__), field_value), max_size=5)
path_strategy = st.text("abc/-_~%41:@!$&'()*,;=", max_size=12).map(
    lambda path: "/" + path.replace("%", "%41")
)


class Sent(NamedTuple):
    """A request as a client means it, and as it writes it."""

    method: str
    path: str
    query: str
    fields: list[tuple[str, str]]
    body: bytes
    wire: bytes


@st.composite
def sent_requests(draw: st.DrawFn) -> Sent:
    method = draw(token.filter(lambda name: name != "CONNECT"))
    raw_path = draw(path_strategy)
    query = draw(st.text("abc=&+%20?/", max_size=8))
    fields = [("Host", "h"), *draw(fields_strategy)]
    body = draw(st.binary(max_size=60))
    if draw(st.booleans()):
        places = draw(st.lists(st.integers(0, 60), max_size=4))
        chunks = [part for part in cut(body, places) if part]
        extension = draw(st.sampled_from([b"", b";a=b", b" ; x"]))
        framed = b"".join(b"%x%b\r\n%b\r\n" % (len(c), extension, c) for c in chunks)
        trailer = draw(st.sampled_from([b"", b"Trailer-Field: x\r\n"]))
        fields.append(("Transfer-Encoding", "chunked"))
        payload = framed + b"0\r\n" + trailer + b"\r\n"
    else:
        fields.append(("Content-Length", str(len(body))))
        payload = body
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    head = f"{method} {raw_path}?{query} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")
    return Sent(method, raw_path.replace("%41", "A"), query, fields, body, head + payload)


@settings(max_examples=400, deadline=None)
@given(st.lists(sent_requests(), min_size=1, max_size=4), places_strategy)
def test_what_a_client_means_is_what_a_handler_sees(sent: list[Sent], places: list[int]) -> None:
    parser = RequestParser(Limits())
    got = []
    for part in cut(b"".join(request.wire for request in sent), places):
        parser.feed(part)
        while (request := parser.next_request()) is not None:
            got.append(
                (
                    request.method,
                    request.path,
                    request.query_string,
                    list(request.headers.items()),
                    request.body,
                )
            )
    assert got == [(s.method, s.path, s.query, s.fields, s.body) for s in sent]
    assert parser.state is ParserState.IDLE
    assert parser.buffered == 0
