"""What a response's head says, and what its bodies are."""

from __future__ import annotations

from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from types import SimpleNamespace

import pytest

from cllm.http import HttpHandler
from cllm.http import response as response_module
from cllm.http.body_stream import BodyStream
from cllm.http.response import HttpResponse
from tests.http.http_wire import HTTP_1, Connect, Serve, any_version

PROTOCOLS = HTTP_1


def lines(response: HttpResponse, **arguments: object) -> list[str]:
    arguments.setdefault("keep_alive", True)
    raw = response.encode_head(**arguments)  # type: ignore[arg-type]
    assert raw.endswith(b"\r\n\r\n")
    return raw.decode("latin-1")[:-4].split("\r\n")


def fields(response: HttpResponse, **arguments: object) -> dict[str, str]:
    pairs = [line.split(": ", 1) for line in lines(response, **arguments)[1:]]
    names = [name for name, _ in pairs]
    assert len(set(names)) == len(names)
    return {pair[0]: pair[1] for pair in pairs}


# The head


def test_rfc9112_4_a_status_line_has_version_status_and_phrase() -> None:
    assert lines(HttpResponse(200))[0] == "HTTP/1.1 200 OK"
    assert lines(HttpResponse(404))[0] == "HTTP/1.1 404 Not Found"
    assert lines(HttpResponse(599))[0] == "HTTP/1.1 599 Unknown"


@pytest.mark.parametrize("status", [0, 99, 600, 999, 1000, -200])
def test_rfc9110_15_a_final_status_is_200_to_599(status: int) -> None:
    with pytest.raises(ValueError, match="200 to 599"):
        HttpResponse(status).encode_head(keep_alive=True)


def test_rfc9110_8_6_a_body_of_bytes_has_its_length() -> None:
    assert fields(HttpResponse(200, body=b"hello"))["Content-Length"] == "5"
    assert fields(HttpResponse(200))["Content-Length"] == "0"


def test_heads_that_were_made_before_in_this_second_are_no_other_response_s() -> None:
    first = HttpResponse.json({"a": 1})
    assert fields(first) == fields(HttpResponse.json({"a": 2}))
    assert fields(HttpResponse.json({"a": 11}))["Content-Length"] == "8"
    assert fields(HttpResponse.text("1234567"))["Content-Type"].startswith("text/plain")
    first.headers += [("Vary", "Accept")]
    assert fields(first)["Vary"] == "Accept"
    assert "Vary" not in fields(HttpResponse.json({"a": 1}))
    assert lines(HttpResponse.json({"a": 1}, 404))[0] == "HTTP/1.1 404 Not Found"
    assert fields(first, server="other")["Server"] == "other"
    assert fields(first, request_id="x-1")["X-Request-Id"] == "x-1"
    assert "X-Request-Id" not in fields(first)
    assert fields(first, keep_alive=False)["Connection"] == "close"


def test_heads_that_never_repeat_take_no_memory() -> None:
    for number in range(2 * response_module.MAX_KNOWN_STARTS):
        made = HttpResponse.json({}, headers=[("X-Number", str(number))])
        assert fields(made)["X-Number"] == str(number)
    large = HttpResponse.json({}, headers=[("X-Large", "x" * response_module.MAX_KNOWN_START)])
    assert len(fields(large)["X-Large"]) == response_module.MAX_KNOWN_START
    _second, known = response_module._starts
    assert len(known) <= response_module.MAX_KNOWN_STARTS + 8  # and a beginning for each status
    assert all(len(start) <= response_module.MAX_KNOWN_START for start in known.values())


@pytest.mark.parametrize("status", [100, 101, 102, 103, 199])
def test_rfc9110_15_2_an_informational_status_is_no_response(status: int) -> None:
    with pytest.raises(ValueError, match=f"200 to 599, not {status}"):
        HttpResponse(status).encode_head(keep_alive=True)


def test_rfc9110_15_3_6_a_205_has_no_content() -> None:
    for body in (b"x", b"", BodyStream()):
        response = HttpResponse(205, body=body)
        assert not response.has_body
        assert fields(response)["Content-Length"] == "0"


@pytest.mark.parametrize("status", [204, 304])
def test_rfc9110_8_6_a_status_without_body_has_no_length(status: int) -> None:
    response = HttpResponse(status, body=b"x")
    assert not response.has_body
    assert not {"Content-Length", "Transfer-Encoding"} & set(fields(response))
    assert "Transfer-Encoding" not in fields(HttpResponse(status, body=BodyStream()), chunked=True)


def test_rfc9112_7_a_stream_is_chunked_or_ended_by_the_close() -> None:
    response = HttpResponse.stream(BodyStream())
    assert fields(response, chunked=True)["Transfer-Encoding"] == "chunked"
    closing = fields(response, keep_alive=False)
    assert not {"Content-Length", "Transfer-Encoding"} & set(closing)
    assert closing["Connection"] == "close"
    with pytest.raises(ValueError, match="closing"):
        response.encode_head(keep_alive=True)


def test_rfc9112_9_3_the_connection_field_says_what_follows() -> None:
    assert fields(HttpResponse(200), keep_alive=True)["Connection"] == "keep-alive"
    assert fields(HttpResponse(200), keep_alive=False)["Connection"] == "close"


def test_rfc9110_6_6_1_the_date_is_now() -> None:
    before = datetime.now(timezone.utc).replace(microsecond=0)
    date = parsedate_to_datetime(fields(HttpResponse(200))["Date"])
    assert before <= date <= datetime.now(timezone.utc)


def test_the_date_goes_on_with_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for second in (784111777.0, 784111777.9, 784111778.0):
        monkeypatch.setattr(response_module, "time", SimpleNamespace(time=lambda s=second: s))
        seen.append(fields(HttpResponse(200))["Date"])
    # The first is the example of RFC 9110 section 5.6.7.
    assert seen == ["Sun, 06 Nov 1994 08:49:37 GMT"] * 2 + ["Sun, 06 Nov 1994 08:49:38 GMT"]


def test_rfc9110_10_2_4_the_server_names_itself_if_it_has_a_name() -> None:
    assert fields(HttpResponse(200), server="cLLM")["Server"] == "cLLM"
    assert "Server" not in fields(HttpResponse(200), server="")


def test_a_request_id_is_given_back() -> None:
    assert fields(HttpResponse(200), request_id="abc")["X-Request-Id"] == "abc"
    assert "X-Request-Id" not in fields(HttpResponse(200))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0b"),
        ("X", "\x7f"),
        ("X", "你"),
        ("X\r\nY", "a"),
        ("X:", "a"),
        ("X Y", "a"),
        ("", "a"),
        ("X\n", "a"),
        ("X", "a\n"),
        ("Ä", "a"),
    ],
)
def test_rfc9110_5_what_would_break_out_of_a_field_is_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="field"):
        HttpResponse(200, [(name, value)]).encode_head(keep_alive=True)


def test_a_request_id_cannot_break_out_either() -> None:
    with pytest.raises(ValueError, match="X-Request-Id"):
        HttpResponse(200).encode_head(keep_alive=True, request_id="a\r\nb")


@pytest.mark.parametrize(
    "name", ["Content-Length", "transfer-encoding", "Connection", "DATE", "Server"]
)
def test_fields_that_the_connection_writes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot set"):
        HttpResponse(200, [(name, "5")]).encode_head(keep_alive=True)


@pytest.mark.parametrize(
    "response",
    [
        HttpResponse(200, [("X", 5)]),  # type: ignore[list-item]
        HttpResponse(200, [["X", "5"]]),  # type: ignore[list-item]
        HttpResponse("200"),  # type: ignore[arg-type]
        HttpResponse(299.5),  # type: ignore[arg-type]
        HttpResponse(None),  # type: ignore[arg-type]
        HttpResponse(True),
        HttpResponse(200, body="text"),  # type: ignore[arg-type]
        HttpResponse(200, body=None),  # type: ignore[arg-type]
    ],
)
def test_parts_of_the_wrong_type_are_refused_the_same_way(response: HttpResponse) -> None:
    with pytest.raises(ValueError, match="wrong type"):
        response.encode_head(keep_alive=True)


def test_fields_keep_their_order_and_may_repeat() -> None:
    response = HttpResponse(200, [("Set-Cookie", "a"), ("X", ""), ("Set-Cookie", "caf\xe9")])
    assert lines(response)[-4:-1] == ["Set-Cookie: a", "X: ", "Set-Cookie: caf\xe9"]


# The bodies


def test_json_is_compact_and_unescaped() -> None:
    response = HttpResponse.json({"text": "你好", "n": [1, None]}, 201)
    assert response.body == '{"text":"你好","n":[1,null]}'.encode()
    assert response.status == 201
    assert ("Content-Type", "application/json") in response.headers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_has_no_form_for_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        HttpResponse.json({"value": value})


def test_each_body_names_its_type() -> None:
    stream = BodyStream()
    assert fields(HttpResponse.text("ä"))["Content-Type"] == "text/plain; charset=utf-8"
    assert HttpResponse.text("ä").body == "ä".encode()
    assert fields(HttpResponse.bytes(b"", "image/png"))["Content-Type"] == "image/png"
    assert fields(HttpResponse.stream(stream, "a/b"), chunked=True)["Content-Type"] == "a/b"
    events = fields(HttpResponse.sse(stream), chunked=True)
    assert events["Content-Type"] == "text/event-stream"
    assert events["Cache-Control"] == "no-store"
    assert "Content-Type" not in fields(HttpResponse.empty())


# In a server


@any_version
@pytest.mark.parametrize("status", [100, 103, 199, 600, 299.5])
def test_rfc9110_15_a_status_that_is_no_final_one_is_answered_500(
    serve: Serve, connect: Connect, status: int
) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse(status))
    handler.get("/stream", lambda request: HttpResponse.stream(BodyStream(), status=status))
    client = connect(serve(handler))
    assert client.get("/").status == 500
    assert client.get("/stream").status == 500


@any_version
def test_rfc9110_15_3_6_a_205_leaves_the_connection_in_step(serve: Serve, connect: Connect) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: HttpResponse(205, body=b"body"))
    client = connect(serve(handler))
    for _ in range(2):
        reply = client.get("/")
        assert (reply.status, reply.body, reply.headers["content-length"]) == (205, b"", "0")
