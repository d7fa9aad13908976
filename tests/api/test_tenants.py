"""Clients that share the server: which request is next, and which is refused."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cllm.api import ApiSettings, tenants
from cllm.api.tenants import TENANT, tenant_of
from cllm.engine import Engine
from cllm.http import HttpRequest
from tests.api.api_client import (
    PATIENCE,
    Live,
    begin_post,
    events,
    eventually,
    frozen,
    idle,
    read_until,
    serving,
)
from tests.random_model import random_path

LONG: dict[str, Any] = {"prompt": "Hello", "max_tokens": 60, "ignore_eos": True}
SHORT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}
KEYS = ("sk-first", "sk-second")

# Two clients of one server, in both ways in which they are told apart.
BY_ADDRESS = ({"source": "127.0.0.1"}, {"source": "127.0.0.2"})
BY_KEY = ({"key": KEYS[0]}, {"key": KEYS[1]})


@pytest.fixture
def small() -> Iterator[Engine]:
    """Two slots, three requests that may wait, and texts without an end."""
    with Engine.load(random_path(), parallel=2, max_queue=3, context_shift=True) as engine:
        yield engine


@pytest.mark.parametrize(("busy", "other"), [BY_ADDRESS, BY_KEY], ids=["address", "key"])
def test_a_client_with_many_requests_does_not_keep_another_waiting(
    busy: dict[str, str], other: dict[str, str]
) -> None:
    settings = ApiSettings(api_keys=KEYS if "key" in busy else ())
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.load(random_path(), parallel=2, ctx_size=256))
        live = stack.enter_context(serving(engine, settings))

        def begin(fields: dict[str, Any], client: dict[str, str]) -> socket.socket:
            return stack.enter_context(begin_post(live, "/generate_stream", fields, **client))

        many = [begin(LONG, busy) for _ in range(30)]
        eventually(lambda: engine.stats().requests_submitted == 30, "all are there")
        eventually(lambda: engine.stats().slots_busy == 2, "both slots are taken")
        few = begin(SHORT, other)
        begun = _in_order_of_first_event([*many, few])
        # Those that run, one that is given the slot before, and some that come within one poll.
        assert begun.index(few) < 15
        for peer in (*many, few):
            peer.close()
        eventually(lambda: idle(engine), "nothing is left")


def test_a_full_queue_refuses_the_newest_of_who_has_most_waiting(small: Engine) -> None:
    with serving(small) as live, ExitStack() as stack:
        with frozen(small):
            many = []
            for count in range(1, 6):
                many.append(stack.enter_context(begin_post(live, "/generate", LONG)))
                _wait_until_submitted(small, count)
            few = stack.enter_context(begin_post(live, "/generate", SHORT, source="127.0.0.2"))
            eventually(lambda: small.stats().requests_refused == 1, "one gives way")
            refused = live.post("/generate", LONG)  # of the first client too
            assert refused.status_code == 429
        # The same answer, whether refused at once or later.
        answer = _answer(many[-1])
        assert answer == (429, refused.headers["Retry-After"], refused.json())
        assert refused.headers["Retry-After"] == str(small._runner._inbox._retry_after())
        assert [_answer(peer)[0] for peer in (*many[:-1], few)] == [200] * 5


def test_a_stream_that_gives_way_ends_with_an_error_event(small: Engine) -> None:
    with serving(small) as live, ExitStack() as stack:
        with frozen(small):
            for count in range(1, 6):
                newest = stack.enter_context(begin_post(live, "/generate_stream", LONG))
                _wait_until_submitted(small, count)
            stack.enter_context(begin_post(live, "/generate", SHORT, source="127.0.0.2"))
            eventually(lambda: small.stats().requests_refused == 1, "one gives way")
        received = read_until(newest, b"\r\n0\r\n\r\n").split(b"\r\n\r\n", 1)[1]
        (last,) = events(iter([received.split(b"\r\n", 1)[1].split(b"\r\n0\r\n")[0]]))
        assert last["done"] is True and "the queue is full" in last["error"]
    eventually(lambda: idle(small), "nothing is left")


def test_an_answer_of_several_parts_is_refused_as_one(small: Engine) -> None:
    asked = {"model": "any", "prompt": "Hello", "n": 5, "max_tokens": 100_000, "ignore_eos": True}
    with serving(small) as live, ExitStack() as stack:
        with frozen(small):
            whole = stack.enter_context(begin_post(live, "/v1/completions", asked))
            eventually(lambda: small.stats().requests_submitted == 6, "all parts wait")
            few = stack.enter_context(begin_post(live, "/generate", SHORT, source="127.0.0.2"))
            eventually(lambda: small.stats().requests_refused == 1, "one gives way")
        status, _, answer = _answer(whole)
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        assert _answer(few)[0] == 200
    finished = small.stats().requests_finished
    assert (finished["error"], finished["cancelled"]) == (1, 4)


@pytest.mark.parametrize(
    ("address", "tenant"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_without_keys_the_address_says_whose_a_request_is(address: str, tenant: str) -> None:
    assert tenant_of(HttpRequest("POST", "/", "/", client=(address, 1))) == tenant


def test_a_key_says_whose_a_request_is_and_is_not_told(engine: Engine) -> None:
    seen: list[Any] = []
    settings = ApiSettings(api_keys=(KEYS[0], KEYS[0], KEYS[1]))
    with serving(engine, settings) as live:
        handler = live.server._handler

        def note(request: HttpRequest, next: Any) -> Any:
            seen.append(tenant_of(request) if TENANT in request.context else None)
            return next(request)

        handler.add_middleware(note)
        for key in (*KEYS, KEYS[0]):
            assert live.get("/model/info", headers={"x-api-key": key}).status_code == 200
        live.get("/health")
    assert seen == ["key 1", "key 2", "key 1", None]


def _usage(live: Live) -> dict[str, tuple[int, int, dict[str, int]]]:
    """By tenant: requests, generated tokens, refusals."""
    told = live.get("/usage").json()["data"]["tenants"]
    return {t["tenant"]: (t["requests"], t["generated_tokens"], t["refused"]) for t in told}


def _post(live: Live, source: str, **more: Any) -> int:
    """The status of a short generation."""
    with begin_post(live, "/generate", {**SHORT, **more}, source=source) as peer:
        return _answer(peer)[0]


def test_without_keys_usage_is_told_by_address(small: Engine) -> None:
    with serving(small) as live:
        assert _usage(live) == {}, "a GET request is not counted"
        assert [_post(live, f"127.0.0.{n}") for n in (1, 2, 2)] == [200] * 3
        assert _usage(live) == {"127.0.0.1": (1, 4, {}), "127.0.0.2": (2, 8, {})}
        with frozen(small), ExitStack() as stack:
            for count in range(1, 6):
                stack.enter_context(begin_post(live, "/generate", LONG, source="127.0.0.2"))
                _wait_until_submitted(small, count + 3)
            assert _post(live, "127.0.0.2") == 429
        assert _usage(live)["127.0.0.2"][::2] == (8, {"queue": 1})
        assert _usage(live)["127.0.0.1"] == (1, 4, {})
    eventually(lambda: idle(small), "nothing is left")


def test_addresses_beyond_the_bound_are_counted_together(
    small: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tenants, "MOST_ADDRESSES", 2)
    with serving(small) as live:
        assert [_post(live, f"127.0.0.{n}") for n in (1, 2, 3, 4, 1)] == [200] * 5
        told = {address: counts[:2] for address, counts in _usage(live).items()}
        assert told == {"127.0.0.1": (2, 8), "127.0.0.2": (1, 4), "": (2, 8)}


def _wait_until_submitted(engine: Engine, count: int) -> None:
    """count: of requests, without the one that holds the engine."""
    eventually(lambda: engine.stats().requests_submitted == count + 1, "they wait")


def _in_order_of_first_event(peers: list[socket.socket]) -> list[socket.socket]:
    """Read until each has had an event."""
    waiting = {peer.fileno(): peer for peer in peers}
    received = dict.fromkeys(waiting, b"")
    order: list[socket.socket] = []
    poller = select.poll()
    for number in waiting:
        poller.register(number, select.POLLIN)
    while len(order) < len(peers):
        ready = poller.poll(PATIENCE * 1000)
        assert ready, "nothing happened in time"
        for number, _ in ready:
            data = waiting[number].recv(65536)
            assert data, received[number]
            received[number] += data
            if b"data: " in received[number]:
                order.append(waiting[number])
                poller.unregister(number)
    return order


def _answer(peer: socket.socket) -> tuple[int, str | None, Any]:
    """Status, Retry-After and JSON of a whole answer."""
    head, _, body = read_until(peer, b"\r\n\r\n").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(fields["content-length"]):
        more = peer.recv(65536)
        assert more, body
        body += more
    return int(lines[0].split()[1]), fields.get("retry-after"), json.loads(body)
