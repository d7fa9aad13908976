"""What a deferred response promises to its producer, its middleware and its connection."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from cllm.http import DeferredResponse, HttpHandler, HttpResponse
from cllm.http.body_stream import BodyStream
from tests.http.http_wire import HTTP_1, Connect, Serve, any_version, encode, wait_until

PROTOCOLS = HTTP_1


def test_the_first_response_wins() -> None:
    deferred = DeferredResponse()
    first, second = HttpResponse(200), HttpResponse(500)
    assert deferred.resolve(first)
    assert not deferred.resolve(second)
    assert deferred.response is first


def test_of_many_threads_one_wins_and_one_wake_up_comes() -> None:
    def give(deferred: DeferredResponse, start: threading.Barrier, status: int) -> None:
        start.wait(10)
        if deferred.resolve(HttpResponse(status)):
            won.append(status)

    for _ in range(50):
        deferred = DeferredResponse()
        woken = threading.Semaphore(0)
        won: list[int] = []
        deferred.attach(woken.release)
        start = threading.Barrier(4)
        threads = [threading.Thread(target=give, args=(deferred, start, 200 + i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert deferred.response is not None
        assert won == [deferred.response.status]
        assert woken.acquire(blocking=False)
        assert not woken.acquire(blocking=False)


def test_whoever_attaches_late_is_woken_at_once() -> None:
    deferred = DeferredResponse()
    deferred.resolve(HttpResponse(200))
    woken: list[None] = []
    deferred.attach(lambda: woken.append(None))
    assert len(woken) == 1


def test_cancelling_tells_the_producer_once_and_refuses_its_response() -> None:
    deferred = DeferredResponse()
    reasons: list[str] = []
    deferred.on_cancel(reasons.append)
    assert deferred.cancel("gone")
    assert not deferred.cancel("again")
    deferred.on_cancel(reasons.append)
    assert reasons == ["gone", "gone"]
    assert not deferred.resolve(HttpResponse(200))
    assert deferred.response is None
    assert deferred.cancelled


def test_a_response_that_is_there_cannot_be_cancelled() -> None:
    deferred = DeferredResponse()
    reasons: list[str] = []
    deferred.on_cancel(reasons.append)
    deferred.resolve(HttpResponse(200))
    assert not deferred.cancel("gone")
    deferred.on_cancel(reasons.append)
    assert reasons == []


def test_a_stream_that_comes_too_late_is_cancelled() -> None:
    deferred = DeferredResponse()
    deferred.cancel("gone")
    stream = BodyStream()
    assert not deferred.resolve(HttpResponse.stream(stream))
    assert stream.cancel_reason == "gone"


def test_one_failing_cancel_callback_does_not_keep_the_others_from_it() -> None:
    deferred = DeferredResponse()
    reasons: list[str] = []
    deferred.on_cancel(lambda reason: 1 / 0)
    deferred.on_cancel(reasons.append)
    assert deferred.cancel("gone")
    assert reasons == ["gone"]


@pytest.mark.parametrize("resolved_first", [True, False])
def test_then_changes_the_response_whenever_it_comes(resolved_first: bool) -> None:
    deferred = DeferredResponse()
    if resolved_first:
        deferred.resolve(HttpResponse(200))
    changed = deferred.then(lambda response: HttpResponse(response.status + 1))
    if not resolved_first:
        assert changed.response is None
        deferred.resolve(HttpResponse(200))
    assert changed.response is not None
    assert changed.response.status == 201


def test_cancelling_what_then_gave_cancels_the_producer() -> None:
    deferred = DeferredResponse()
    changed = deferred.then(lambda response: response).then(lambda response: response)
    changed.cancel("gone")
    assert deferred.cancel_reason == "gone"


@pytest.mark.parametrize("attached_first", [True, False])
def test_a_producer_that_cancels_wakes_whoever_waits(attached_first: bool) -> None:
    deferred = DeferredResponse()
    changed = deferred.then(lambda response: response)
    woken: list[str] = []
    if attached_first:
        changed.attach(lambda: woken.append("woken"))
    deferred.cancel("gone")
    if not attached_first:
        changed.attach(lambda: woken.append("woken"))
    assert (changed.cancel_reason, woken) == ("gone", ["woken"])
    assert deferred.then(lambda response: response).cancel_reason == "gone"


def test_a_change_that_fails_gives_500_and_cancels_the_stream() -> None:
    deferred = DeferredResponse()
    changed = deferred.then(lambda response: HttpResponse(1 // 0))
    stream = BodyStream()
    deferred.resolve(HttpResponse.stream(stream))
    assert changed.response is not None
    assert changed.response.status == 500
    assert stream.cancelled


@pytest.mark.parametrize("wrong", [None, {}, "text", b"bytes", BodyStream()])
@any_version
def test_what_is_no_response_is_refused_and_its_client_answered(
    serve: Serve, connect: Connect, wrong: Any
) -> None:
    deferred = DeferredResponse()
    handler = HttpHandler()
    handler.get("/", lambda request: deferred)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    wait_until(lambda: server.stats().requests_total == 1, "it is asked")
    with pytest.raises(TypeError, match=type(wrong).__name__):
        deferred.resolve(wrong)
    assert client.reply().status == 500
    assert not deferred.resolve(HttpResponse())


@any_version
def test_a_middleware_that_makes_no_response_is_answered_500(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    deferred = DeferredResponse()
    handler = HttpHandler()
    handler.add_middleware(
        lambda request, next: next(request).then(lambda r: None)  # type: ignore
    )
    handler.get("/", lambda request: deferred)
    server = serve(handler)
    client = connect(server)
    client.send(encode())
    wait_until(lambda: server.stats().requests_total == 1, "it is asked")
    assert deferred.resolve(HttpResponse())
    assert client.reply().status == 500
    assert "NoneType" in caplog.text
