"""Routing and middleware, without a socket; over 400 lines of short promises."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cllm.http import (
    BodyStream,
    DeferredResponse,
    EventStream,
    HttpError,
    HttpHandler,
    HttpRequest,
    HttpResponse,
    Route,
)
from cllm.http.handler import Answer, Next
from tests.http.handling import call, content, header, says
from tests.http.http_wire import Connect, Serve, any_version

PROTOCOLS = ("http/1.1",)


def fails(error: BaseException) -> Callable[[HttpRequest], str]:
    def endpoint(request: HttpRequest) -> str:
        raise error

    return endpoint


# Routes


def test_each_method_of_a_path_has_its_endpoint() -> None:
    handler = HttpHandler()
    handler.get("/a", says("get"))
    handler.post("/a", says("post"))
    handler.put("/a", says("put"))
    handler.delete("/a", says("delete"))
    for method in ("GET", "POST", "PUT", "DELETE"):
        assert call(handler, method, "/a?x=1").body == method.lower().encode()


def test_a_parameter_is_one_segment_that_is_not_empty() -> None:
    handler = HttpHandler()
    handler.get("/slots/{id}/of/{owner_1}", lambda request: dict(request.path_params))
    response = call(handler, "GET", "/slots/7%20x/of/%E4%BD%A0")
    assert content(response) == {"id": "7 x", "owner_1": "你"}
    for path in ("/slots//of/a", "/slots/1/2/of/a", "/slots/1/of/a/", "/slots/1/of/", "/x"):
        assert call(handler, "GET", path).status == 404


def test_a_template_is_text_and_no_expression() -> None:
    handler = HttpHandler()
    handler.get("/a.b/{id}", says("x"))
    assert call(handler, "GET", "/a.b/1").status == 200
    assert call(handler, "GET", "/aXb/1").status == 404


def test_an_exact_path_goes_before_a_parameter_but_hides_no_method() -> None:
    handler = HttpHandler()
    handler.post("/slots/{id}", says("any"))
    handler.get("/slots/{id}", says("any"))
    handler.get("/slots/all", says("all"))
    assert call(handler, "GET", "/slots/all").body == b"all"
    assert call(handler, "GET", "/slots/1").body == b"any"
    assert call(handler, "POST", "/slots/all").body == b"any"


def test_of_two_templates_the_earlier_wins() -> None:
    handler = HttpHandler()
    handler.get("/{a}/x", says("first"))
    handler.get("/y/{b}", says("second"))
    assert call(handler, "GET", "/y/x").body == b"first"
    assert call(handler, "GET", "/y/z").body == b"second"


def test_rfc9110_15_5_6_another_method_is_405_with_allow() -> None:
    handler = HttpHandler()
    handler.get("/a", says(""))
    handler.put("/a", says(""))
    handler.delete("/{name}", says(""))
    response = call(handler, "POST", "/a")
    assert response.status == 405
    assert header(response, "Allow") == "DELETE, GET, HEAD, OPTIONS, PUT"
    assert header(call(handler, "POST", "/b"), "Allow") == "DELETE, OPTIONS"


def test_rfc9110_15_5_5_an_unknown_path_is_404_for_every_method() -> None:
    handler = HttpHandler()
    handler.get("/a", says(""))
    for method in ("GET", "POST", "OPTIONS", "HEAD", "BREW"):
        response = call(handler, method, "/b")
        assert response.status == 404
        assert header(response, "Allow") is None


def test_rfc9110_9_3_2_head_is_answered_by_get() -> None:
    handler = HttpHandler()
    handler.get("/a", says("hello"))
    handler.post("/b", says("hello"))
    response = call(handler, "HEAD", "/a")
    # The connection leaves the body out; its length belongs to the head.
    assert (response.status, response.body) == (200, b"hello")
    assert call(handler, "HEAD", "/b").status == 405


def test_rfc9110_9_3_7_options_answers_allow() -> None:
    handler = HttpHandler()
    handler.get("/a", says(""))
    handler.post("/b/{c}", says(""))
    response = call(handler, "OPTIONS", "/a")
    assert (response.status, header(response, "Allow")) == (204, "GET, HEAD, OPTIONS")
    response = call(handler, "OPTIONS", "*")
    assert (response.status, header(response, "Allow")) == (204, "GET, HEAD, OPTIONS, POST")


def test_rfc9110_9_1_methods_have_case() -> None:
    handler = HttpHandler()
    handler.get("/a", says(""))
    assert call(handler, "get", "/a").status == 405


def test_the_handler_tells_what_it_serves() -> None:
    handler = HttpHandler()
    handler.get("/a", says(""))
    handler.post_streaming("/b/{c}", says(""))
    assert handler.routes() == [Route("GET", "/a"), Route("POST", "/b/{c}")]
    assert handler.has_handler("GET", "/a")
    assert handler.has_handler("HEAD", "/a")
    assert handler.has_handler("POST", "/b/1")
    assert handler.has_handler("POST", "/b/{c}")
    assert not handler.has_handler("POST", "/a")
    assert not handler.has_handler("POST", "/b/1/2")
    assert not handler.has_handler("GET", "*")


@pytest.mark.parametrize("path", ["a", "", "/{id", "/x{id}", "/{id}y", "/{}", "/{1a}", "/{a}/{a}"])
def test_a_path_that_cannot_be_served_is_refused_when_it_is_registered(path: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        HttpHandler().get(path, says(""))


@pytest.mark.parametrize("path", ["/a", "/{a}"])
def test_a_second_endpoint_for_the_same_is_refused(path: str) -> None:
    handler = HttpHandler()
    handler.get(path, says(""))
    with pytest.raises(ValueError, match="already"):
        handler.get_streaming(path, says(""))


# What endpoints give


@pytest.mark.parametrize(
    ("value", "status", "content_type", "body"),
    [
        ("ä", 200, "text/plain; charset=utf-8", "ä".encode()),
        (b"\x00", 200, "application/octet-stream", b"\x00"),
        ({"a": "ä"}, 200, "application/json", '{"a":"ä"}'.encode()),
        ([1, 2], 200, "application/json", b"[1,2]"),
        (None, 204, None, b""),
        (HttpResponse(201, body=b"x"), 201, None, b"x"),
    ],
)
def test_plain_values_become_responses(
    value: object, status: int, content_type: str | None, body: bytes
) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: value)
    response = call(handler, "GET", "/")
    assert (response.status, header(response, "Content-Type"), response.body) == (
        status,
        content_type,
        body,
    )


def test_a_deferred_response_passes_through() -> None:
    handler = HttpHandler()
    deferred = DeferredResponse()
    handler.get("/", lambda request: deferred)
    assert handler.handle_request(HttpRequest.build("GET", "/")) is deferred


def test_anything_else_is_a_bug_of_the_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    handler = HttpHandler()
    handler.get("/", lambda request: 5)
    assert call(handler, "GET", "/").status == 500
    assert "returned a int" in caplog.text


# Streaming endpoints


def drain(response: HttpResponse) -> bytes:
    assert header(response, "Content-Type") == "text/event-stream"
    stream = response.body
    assert isinstance(stream, BodyStream)
    data = b""
    while not stream.finished and not stream.cancelled:
        data += b"".join(stream.take())
    return data


@pytest.mark.parametrize(
    ("value", "events"),
    [
        (["a", {"b": 1}, b": c\n\n"], b'data: a\n\ndata: {"b":1}\n\n: c\n\n'),
        ([], b""),
        ("one", b"data: one\n\n"),
        ({"one": 1}, b'data: {"one":1}\n\n'),
    ],
)
def test_what_a_streaming_endpoint_yields_is_sent_as_events(value: Any, events: bytes) -> None:
    handler = HttpHandler()
    handler.get_streaming("/", lambda request: value)
    handler.post_streaming("/", lambda request: (item for item in [*value]))
    assert drain(call(handler, "GET", "/")) == events
    if isinstance(value, list):
        assert drain(call(handler, "POST", "/")) == events


def test_a_streaming_endpoint_may_give_its_own_stream_or_response() -> None:
    handler = HttpHandler()
    stream = EventStream()
    handler.get_streaming("/stream", lambda request: stream)
    handler.get_streaming("/busy", lambda request: HttpResponse.text("busy", 429))
    assert call(handler, "GET", "/stream").body is stream
    assert call(handler, "GET", "/busy").status == 429


def test_a_generator_that_fails_before_its_first_item_has_a_proper_status() -> None:
    def endpoint(request: HttpRequest) -> Iterator[str]:
        yield str(request.json()["prompt"])

    handler = HttpHandler()
    handler.post_streaming("/", endpoint)
    assert call(handler, "POST", "/", body=b"{").status == 400
    assert drain(call(handler, "POST", "/", body=b'{"prompt":"a"}')) == b"data: a\n\n"


# Errors


def test_an_http_error_is_its_status_text_and_fields() -> None:
    handler = HttpHandler()
    handler.get("/", fails(HttpError(429, "busy", [("Retry-After", "5")])))
    response = call(handler, "GET", "/")
    assert (response.status, header(response, "Retry-After")) == (429, "5")
    assert content(response) == {"success": False, "error": "busy"}


def test_any_other_exception_is_500_with_an_id_that_the_log_has(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handler = HttpHandler()
    handler.get("/", fails(RuntimeError("secret")))
    request = HttpRequest.build("GET", "/")
    request.id = "request-id-7"
    response = handler.handle_request(request)
    assert isinstance(response, HttpResponse)
    assert response.status == 500
    error = content(response)["error"]
    assert "request-id-7" in error
    assert "secret" not in error
    assert "Traceback" not in error
    assert "request-id-7" in caplog.text
    assert "secret" in caplog.text


def test_a_request_without_id_gets_one_for_its_500(caplog: pytest.LogCaptureFixture) -> None:
    handler = HttpHandler()
    handler.get("/", fails(RuntimeError("secret")))
    id = content(call(handler, "GET", "/"))["error"].split()[-1]
    assert len(id) == 32
    assert id in caplog.text


def test_the_error_body_is_the_programs_to_choose() -> None:
    handler = HttpHandler()
    handler.error_body = lambda status, message, request: (f"{status}!".encode(), "text/x")
    response = call(handler, "GET", "/")
    assert (response.body, header(response, "Content-Type")) == (b"404!", "text/x")
    assert handler.error_response(HttpError(413, "big")).body == b"413!"


def test_an_error_body_that_fails_gives_the_default_one(caplog: pytest.LogCaptureFixture) -> None:
    handler = HttpHandler()
    handler.error_body = lambda status, message, request: (b"%d" % (1 // 0), "")
    response = call(handler, "GET", "/")
    assert (response.status, content(response)["success"]) == (404, False)
    assert "error_body" in caplog.text


def test_so_does_one_whose_content_type_cannot_be_sent(caplog: pytest.LogCaptureFixture) -> None:
    handler = HttpHandler()
    handler.error_body = lambda status, message, request: (b"", "a\r\nb")
    assert content(call(handler, "GET", "/"))["success"] is False
    assert "error_body" in caplog.text


@pytest.mark.parametrize("body", ["text", bytearray(b"x"), None, {"a": 1}])
def test_so_does_one_whose_body_is_no_bytes(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, body: Any
) -> None:
    handler = HttpHandler()
    handler.error_body = lambda status, message, request: (body, "text/x")
    client = connect(serve(handler))
    reply = client.get("/")
    assert (reply.status, reply.json()["success"]) == (404, False)
    client.send(b"bad\r\n\r\n")
    assert client.reply().status == 400, "where there is no request too"
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 2


@any_version
@pytest.mark.parametrize("error", [CancelledError, SystemExit, BaseException])
def test_an_exception_that_is_no_Exception_is_500_too(  # noqa: N802
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    handler = HttpHandler()
    handler.get("/", fails(error()))
    client = connect(serve(handler))
    assert client.get("/").status == 500
    assert client.get("/").status == 500, "the connection goes on"
    assert error.__name__ in caplog.text


def test_errors_are_for_errors() -> None:
    with pytest.raises(ValueError, match="400"):
        HttpError(200, "fine")


# Middleware


def marking(name: str, trace: list[str]) -> Callable[[HttpRequest, Next], Answer]:
    def middleware(request: HttpRequest, next: Next) -> Answer:
        trace.append(f"{name} before")
        answer = next(request)
        trace.append(f"{name} after")
        return answer

    return middleware


def test_the_first_middleware_added_is_the_outermost() -> None:
    trace: list[str] = []
    handler = HttpHandler()
    handler.add_middleware(marking("a", trace))
    handler.get("/", lambda request: trace.append("endpoint"))
    call(handler, "GET", "/")
    handler.add_middleware(marking("b", trace))  # also when requests were answered before
    trace.clear()
    call(handler, "GET", "/")
    assert trace == ["a before", "b before", "endpoint", "b after", "a after"]


def test_middleware_may_answer_itself_and_hand_on_what_it_knows() -> None:
    def authenticate(request: HttpRequest, next: Next) -> Answer:
        if "authorization" not in request.headers:
            raise HttpError(401, "who are you?", [("WWW-Authenticate", "Bearer")])
        request.context["user"] = request.headers["authorization"]
        return next(request)

    handler = HttpHandler()
    handler.add_middleware(authenticate)
    handler.get("/", lambda request: str(request.context["user"]))
    assert call(handler, "GET", "/").status == 401
    assert call(handler, "GET", "/", ("Authorization", "me")).body == b"me"


@pytest.mark.parametrize(
    ("path", "status"), [("/nothing", 404), ("/boom", 500), ("/busy", 429), ("/text", 200)]
)
def test_middleware_sees_responses_and_never_exceptions(path: str, status: int) -> None:
    seen: list[int] = []

    def watch(request: HttpRequest, next: Next) -> Answer:
        answer = next(request)
        assert isinstance(answer, HttpResponse)
        seen.append(answer.status)
        return answer

    handler = HttpHandler()
    handler.add_middleware(watch)
    handler.get("/boom", fails(RuntimeError()))
    handler.get("/busy", fails(HttpError(429, "busy")))
    handler.get("/text", says("x"))
    assert call(handler, "GET", path).status == status
    assert seen == [status]


def test_outer_middleware_sees_what_inner_middleware_raises() -> None:
    seen: list[int] = []

    def watch(request: HttpRequest, next: Next) -> Answer:
        answer = next(request)
        assert isinstance(answer, HttpResponse)
        seen.append(answer.status)
        return answer

    def broken(request: HttpRequest, next: Next) -> Answer:
        raise RuntimeError

    handler = HttpHandler()
    handler.add_middleware(watch)
    handler.add_middleware(broken)
    assert call(handler, "GET", "/").status == 500
    assert seen == [500]


# Requests as handlers use them


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "empty"),
        (b'{"a":', "line 1, column 6"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "too deep"),
        (b"9" * 10_000, None),
        (b"\xef\xbb\xbf{}", "BOM"),
    ],
    ids=["empty", "cut off", "not UTF-8", "deep", "long number", "BOM"],
)
def test_a_body_that_is_no_json_is_400_and_says_why(body: bytes, message: str | None) -> None:
    request = HttpRequest.build("POST", "/", body=body)
    if message is None:  # some Pythons take numbers of any length
        try:
            request.json()
        except HttpError as error:
            assert error.status == 400
        return
    with pytest.raises(HttpError, match=message) as refused:
        request.json()
    assert refused.value.status == 400


def test_text_and_json_are_utf_8() -> None:
    request = HttpRequest.build("POST", "/", body='{"a":"你"}'.encode())
    assert request.text() == '{"a":"你"}'
    assert request.json() == {"a": "你"}


def test_the_query_is_decoded_and_its_last_value_wins() -> None:
    request = HttpRequest.build("GET", "/?a=1&a=%E4%BD%A0+x&b&c=100%")
    assert request.query == {"a": "你 x", "b": "", "c": "100%"}
