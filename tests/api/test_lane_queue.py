"""Requests that wait on a lane: the memory they take, whose turn it is, what ends their waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from cllm.api.lanes import AWAITED, Lane
from cllm.engine import ConstraintPending
from cllm.http import DeferredResponse, HttpError, HttpHandler, HttpRequest, HttpResponse
from cllm.http.incoming import BodyMemory

PATIENCE = 30.0
BODY = 100  # bytes


def request(name: str, client: str = "192.0.2.1") -> HttpRequest:
    path = f"/{name}"
    return HttpRequest("POST", path, path, body=b"x" * BODY, client=(client, 1))


class Busy:
    """A lane with room for three bodies that wait, on which a first request runs until `go`."""

    def __init__(self) -> None:
        self.memory = BodyMemory(3 * BODY)
        self.lane = Lane(HttpHandler(), "lane", self.memory)
        self.seen: list[str] = []
        self.go, self._entered = threading.Event(), threading.Event()
        self.first = self.lane.run(self._hold, request("first"))
        assert self._entered.wait(PATIENCE)

    def _hold(self, request: HttpRequest) -> HttpResponse:
        self._entered.set()
        assert self.go.wait(PATIENCE)
        return self.answer(request)

    def answer(self, request: HttpRequest) -> HttpResponse:
        self.seen.append(request.path[1:])
        return HttpResponse.text("done")


@pytest.fixture
def busy() -> Iterator[Busy]:
    busy = Busy()
    yield busy
    busy.go.set()


def result(answer: DeferredResponse) -> HttpResponse:
    there = threading.Event()
    answer.attach(there.set)
    assert there.wait(PATIENCE)
    assert answer.response is not None
    return answer.response


def test_what_waits_has_its_memory_and_no_more(busy: Busy) -> None:
    answers = [busy.lane.run(busy.answer, request(f"{number}")) for number in range(3)]
    with pytest.raises(HttpError, match="300 bytes") as refused:
        busy.lane.run(busy.answer, request("too many"))
    assert refused.value.status == 503
    busy.go.set()
    assert [result(answer).status for answer in answers] == [200] * 3
    assert busy.memory.used == 0
    assert "too many" not in busy.seen


def test_a_client_that_leaves_keeps_nothing_and_its_request_does_not_run(busy: Busy) -> None:
    settled: Future[Any] = Future()
    pending = ConstraintPending(settled)
    leaving = [
        busy.lane.run(busy.answer, request("left")),
        busy.lane.run_after(pending, busy.answer, request("left")),
    ]
    assert busy.memory.used == 2 * BODY
    for answer in leaving:
        answer.cancel("the client left")
    assert busy.memory.used == 0
    settled.set_result(None)
    staying = busy.lane.run(busy.answer, request("stayed"))
    busy.go.set()
    assert result(staying).status == 200
    assert busy.seen == ["first", "stayed"]


def test_clients_take_turns(busy: Busy) -> None:
    answers = [busy.lane.run(busy.answer, request(f"many {number}")) for number in range(2)]
    answers.append(busy.lane.run(busy.answer, request("other", "192.0.2.2")))
    busy.go.set()
    for answer in answers:
        result(answer)
    assert busy.seen == ["first", "many 0", "other", "many 1"]


def test_a_request_that_waits_again_for_a_constraint_is_not_counted_twice() -> None:
    memory = BodyMemory(BODY)  # just for one
    lane = Lane(HttpHandler(), "lane", memory)
    settled: Future[Any] = Future()
    waits = threading.Event()

    def first(request: HttpRequest) -> DeferredResponse:
        again = lane.run_after(ConstraintPending(settled), second, request)
        waits.set()
        return again

    def second(request: HttpRequest) -> HttpResponse:
        return HttpResponse.text("done")

    answer = lane.run(first, request("one"))
    assert waits.wait(PATIENCE)
    settled.set_result(None)
    assert result(answer).status == 200
    assert memory.used == 0


def test_a_constraint_that_was_awaited_is_held_until_the_request_has_run() -> None:
    lane = Lane(HttpHandler(), "lane", BodyMemory(BODY))
    settled: list[Future[Any]] = [Future(), Future()]
    waits = threading.Event()
    held = []

    def endpoint(request: HttpRequest) -> Any:
        held.append(list(request.context.get(AWAITED, ())))
        if len(held) <= 2:
            again = lane.run_after(ConstraintPending(settled[len(held) - 1]), endpoint, request)
            waits.set()
            return again
        return HttpResponse.text("done")

    asked = request("one")
    answer = lane.run(endpoint, asked)
    assert waits.wait(PATIENCE)
    for each in settled:
        each.set_result(None)
    assert result(answer).status == 200
    assert held == [[], settled[:1], settled]
    assert AWAITED not in asked.context


def test_where_no_thread_can_start_requests_are_refused_until_one_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lane = Lane(HttpHandler(), "lane", BodyMemory(3 * BODY))

    def endpoint(request: HttpRequest) -> HttpResponse:
        return HttpResponse.text("done")

    def failing(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", failing)
        settled: Future[Any] = Future()
        after = lane.run_after(ConstraintPending(settled), endpoint, request("after"))
        settled.set_result(None)
        assert result(after).status == 503
        assert result(lane.run(endpoint, request("now"))).status == 503
    assert not lane.busy
    assert result(lane.run(endpoint, request("later"))).status == 200


def test_an_answer_that_is_none_does_not_end_the_lane(busy: Busy) -> None:
    def broken(request: HttpRequest) -> Any:
        return None

    answers = [busy.lane.run(broken, request("broken")), busy.lane.run(busy.answer, request("ok"))]
    busy.go.set()
    assert [result(answer).status for answer in answers] == [500, 200]
