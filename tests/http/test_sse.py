"""Framing of events: a client of WHATWG HTML section 9.2.6 reads what was sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.http import sse
from cllm.http.sse import EventStream, IterableEventStream


def read(stream: bytes) -> list[dict[str, str]]:
    """The events as section 9.2.6 makes a client read them."""
    text = stream.decode().replace("\r\n", "\n").replace("\r", "\n")
    events: list[dict[str, str]] = []
    current: dict[str, str] = {}
    for line in text.split("\n"):
        if not line:
            if "data" in current:
                events.append(current)
            current = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            current[name] = current[name] + "\n" + value if name in current else value
    return events


def test_one_line_is_one_data_field() -> None:
    assert sse.event("hello") == b"data: hello\n\n"
    assert sse.event(b"") == b"data: \n\n"


def test_fields_come_with_their_names() -> None:
    assert sse.event("x", event="delta", id="7", retry=10) == (
        b"event: delta\nid: 7\nretry: 10\ndata: x\n\n"
    )


@given(st.text())
def test_any_text_arrives_with_its_lines(text: str) -> None:
    (got,) = read(sse.event(text))
    assert got["data"] == text.replace("\r\n", "\n").replace("\r", "\n")


def test_only_the_line_ends_of_the_standard_split() -> None:
    assert sse.event("a\u2028b\x0bc\x85d").count(b"data:") == 1


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_json_is_one_line(value: object) -> None:
    try:
        framed = sse.json_event(value)
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8
        return
    assert framed.count(b"data:") == 1
    (got,) = read(framed)
    assert json.loads(got["data"]) == value


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b"])
def test_a_name_or_id_that_would_forge_fields_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="one line"):
        sse.event("x", event=value)
    with pytest.raises(ValueError, match="one line"):
        sse.event("x", id=value)
    with pytest.raises(ValueError, match="one line"):
        sse.comment(value)
    with pytest.raises(ValueError, match="retry"):
        sse.event("x", retry=-1)


def test_a_comment_is_no_event() -> None:
    assert read(sse.comment("still here") + sse.event("x")) == [{"data": "x"}]


def test_an_event_stream_frames_what_is_sent() -> None:
    stream = EventStream()
    stream.send("a\nb")
    stream.send({"token": "你"}, event_name="delta", id="1")
    assert read(b"".join(stream.take())) == [
        {"data": "a\nb"},
        {"data": '{"token":"你"}', "event": "delta", "id": "1"},
    ]


def test_an_iterable_becomes_events_and_its_bytes_stay_as_they_are() -> None:
    stream = IterableEventStream(["a", {"b": 1}, b": raw\n\n"])
    framed = [b"".join(stream.take()) for _ in range(3)]
    assert framed == [b"data: a\n\n", b'data: {"b":1}\n\n', b": raw\n\n"]


@pytest.mark.parametrize("stream", [EventStream(), IterableEventStream([])])
def test_a_stopped_stream_ends_with_an_error_event(
    stream: EventStream | IterableEventStream,
) -> None:
    (last,) = read(stream.end_event("the server stops"))
    assert json.loads(last["data"]) == {"error": "the server stops", "done": True}
