"""Promises of /monitor: what its events say, who sees what, and what watchers cost."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice, pairwise
from typing import Any, cast

import pytest
import requests

from cllm.api import ApiSettings
from cllm.api.native import monitor
from cllm.api.native.monitor import INTERVAL, LONGEST, SHARE, Encoded, Watch, pause
from cllm.api.native.monitor_view import View
from cllm.engine import Engine, SamplingParams
from cllm.http import HttpRequest, ServerConfig
from tests.api.api_client import PATIENCE, Live, begin_post, events, eventually, serving
from tests.api.keyed import RING, ask
from tests.embedding_models import bert
from tests.engine.engine_helpers import held
from tests.http.http2.http2_wire import Http2Client


@contextmanager
def watching(live: Live, key: str = "") -> Iterator[Iterator[dict[str, Any]]]:
    headers = {"x-api-key": key} if key else {}
    with requests.get(
        live.url + "/monitor", stream=True, timeout=PATIENCE, headers=headers
    ) as response:
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"].startswith("text/event-stream")
        yield events(response.iter_content(None))


def watched() -> bool:
    return any(thread.name == "cllm-monitor" for thread in threading.enumerate())


def unwatched() -> None:
    eventually(lambda: not watched(), "the monitor's thread ends after the last watcher")


def long_answer(engine: Engine, tenant: str = "") -> Any:
    params = SamplingParams(ignore_eos=True, temperature=0)
    return engine.submit("Once upon a time", params, tenant=tenant)


@pytest.fixture
def may_look(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """One snapshot is made each time that this is released."""
    released, make = threading.Semaphore(0), View

    def view(*arguments: Any) -> View:
        assert released.acquire(timeout=PATIENCE)
        return make(*arguments)

    monkeypatch.setattr(monitor, "View", view)
    return released


def test_events_come_at_most_four_times_a_second(live: Live, may_look: threading.Semaphore) -> None:
    told: list[dict[str, Any]] = []
    with watching(live) as seen:
        for _ in range(5):  # not before the last one has arrived, which it would replace
            may_look.release()
            told.append(next(seen))
    may_look.release()
    assert [event["number"] - told[0]["number"] for event in told] == [0, 1, 2, 3, 4]
    at = [event["at"] for event in told]
    # "at" is rounded to milliseconds.
    assert all(b - a >= INTERVAL - 0.001 for a, b in pairwise(at))
    unwatched()


def test_an_event_describes_the_engine_the_server_and_the_requests(live: Live) -> None:
    engine = live.engine
    with watching(live) as seen:
        running = [long_answer(engine, "a") for _ in range(8)]
        waiting = [long_answer(engine, "a") for _ in range(2)]
        told = next(
            event
            for event in seen
            if sum(
                (slot["request"] or {}).get("generated_tokens", 0) > 2 for slot in event["slots"]
            )
            == 8
        )
        for request in (*waiting, *running):
            request.cancel()
        ended: dict[str, Any] = {}
        for event in seen:
            ended |= {request["id"]: request for request in event["ended"]}
            if all(request.id in ended for request in (*running, *waiting)):
                break
    assert told["all"] is True
    assert told["engine"]["slots_busy"] == told["engine"]["slots_total"] == 8
    assert told["engine"]["limit"] in ("machine", "programs", "clients")
    assert told["server"]["connections"] >= 1 and told["server"]["requests_total"] >= 1
    (queue,) = told["queue"]
    assert queue["tenant"] == "a" and queue["count"] == 2 and queue["oldest_s"] > 0
    assert [request["state"] for request in queue["requests"]] == ["waiting", "waiting"]
    assert sum(step["decode_rows"] for step in told["steps"]) > 0
    assert all(step["decode_ms"] > 0 for step in told["steps"])
    assert {len(line) for line in told["timeline"].values()} == {60}
    request = told["slots"][0]["request"]
    assert request["state"] == "generating" and request["read_tokens"] == request["prompt_tokens"]
    assert request["gaps"]["max"] >= request["gaps"]["median"] > 0
    last = ended[running[0].id]
    assert last["state"] == "ended" and last["finish_reason"] == "cancelled"
    assert last["generated_tokens"] == running[0].usage.completion_tokens
    assert last["prompt_s"] > 0 and last["decode_s"] >= last["gaps"]["max"]
    never = ended[waiting[0].id]
    assert never["queued_s"] > 0 and never["prompt_s"] == 0 and never["slot"] is None
    unwatched()


def test_a_request_that_ended_is_told_to_each_watcher_once(live: Live) -> None:
    done = live.engine.generate("Hello", max_tokens=3)
    with watching(live) as seen:
        assert done.id in [request["id"] for request in next(seen)["ended"]]
        assert next(seen)["ended"] == []
        with watching(live) as late:
            assert done.id in [request["id"] for request in next(late)["ended"]]
        more = live.engine.generate("Hello", max_tokens=3)
        told = next(event["ended"] for event in seen if event["ended"])
    assert [request["id"] for request in told] == [more.id]
    unwatched()


def test_a_key_sees_only_its_own_and_an_admin_all(keyed: Live) -> None:
    ids = {name: ask(keyed, name).json()["data"]["id"] for name in ("alice", "bob")}
    body = {"prompt": "Once upon a time", "max_tokens": 4}
    with held(keyed.engine), begin_post(keyed, "/generate", body, key="bob"):
        eventually(lambda: any(slot.busy for slot in keyed.engine.slots()), "it runs")
        with watching(keyed, "alice") as seen:
            own = next(seen)
        with watching(keyed, "root") as seen:
            every = next(seen)
    assert [request["id"] for request in own["ended"]].count(ids["alice"]) == 1
    assert {request["tenant"] for request in own["ended"]} == {"alice"}
    assert own["all"] is False
    assert [own[part] for part in ("engine", "server", "timeline", "steps")] == [None] * 4
    assert all(slot["request"] is None for slot in own["slots"])
    assert sum(slot["busy"] for slot in own["slots"]) == 1  # as in /slots
    assert "bob" not in json.dumps(own)
    assert set(ids.values()) <= {request["id"] for request in every["ended"]}
    assert [slot["request"]["tenant"] for slot in every["slots"] if slot["busy"]] == ["bob"]
    assert every["engine"] is not None and every["server"] is not None
    assert keyed.get("/monitor").status_code == 401


def test_a_model_that_embeds_has_no_slots_but_steps() -> None:
    with Engine.load(bert(), flash_attn="off") as engine, serving(engine) as live:
        assert live.post("/embedding", {"content": "a cat"}).status_code == 200
        with watching(live) as seen:
            told = next(seen)
    assert told["slots"] == [] and told["engine"]["slots_busy"] == 0
    assert told["steps"][-1]["prompt_rows"] > 0 and told["steps"][-1]["decode_rows"] == 0
    (ended,) = told["ended"]
    assert ended["finish_reason"] == "stop" and ended["slot"] is None
    unwatched()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the snapshots that are made."""
    made: list[int] = []
    make: Any = vars(monitor)["View"]  # may_look's, if the test has it

    def view(service: Any, number: int, *more: Any) -> View:
        made.append(number)
        return cast(View, make(service, number, *more))

    monkeypatch.setattr(monitor, "View", view)
    return made


def test_ten_watchers_share_a_snapshot(
    live: Live, may_look: threading.Semaphore, counted: list[int]
) -> None:
    with ExitStack() as stack:
        watchers = [stack.enter_context(watching(live)) for _ in range(10)]
        may_look.release(1000)  # from here on as often as they are due
        told = [list(islice(seen, 4)) for seen in watchers]
    numbers = {event["number"] for seen in told for event in seen}
    by_number = {event["number"]: event["at"] for seen in told for event in seen}
    assert all(event["at"] == by_number[event["number"]] for seen in told for event in seen)
    assert len(counted) == len(set(counted)) and numbers <= set(counted)
    assert sum(map(len, told)) == 40 and len(numbers) < 20
    unwatched()


def test_snapshots_that_take_longer_are_made_less_often() -> None:
    assert pause(0.0) == pause(0.001) == INTERVAL == 0.25
    assert pause(0.002) == 0.002 / SHARE == pytest.approx(0.4)
    assert pause(0.5) == LONGEST


def test_without_watchers_nothing_is_made(live: Live, counted: list[int]) -> None:
    with watching(live) as seen:
        next(seen)
    unwatched()  # the only thread that makes snapshots
    before = list(counted)
    live.engine.generate("Hello", max_tokens=3)
    assert counted == before


def test_a_slow_watcher_skips_events() -> None:
    taken: list[str] = []
    watch = Watch(HttpRequest.build("GET", "/monitor"))
    watch.attach(lambda: taken.append("wake"))
    records = [(number, b'{"id":%d}' % number) for number in range(4)]
    for number in range(3):
        head = b'{"number":%d,"ended":[]}' % number
        watch.offer(Encoded(head, records[: number + 1], number + 1))
    (event,) = watch.take()
    assert taken == ["wake"]
    assert json.loads(event[6:]) == {"number": 2, "ended": [{"id": 0}, {"id": 1}, {"id": 2}]}
    watch.offer(Encoded(b'{"number":3,"ended":[]}', records, 4))
    (event,) = watch.take()
    assert json.loads(event[6:]) == {"number": 3, "ended": [{"id": 3}]}
    assert watch.pending == 0 and not watch.finished


def test_a_watcher_that_does_not_read_holds_no_more_than_an_event(
    live: Live, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "pause", lambda took: 0.001)
    pending: list[int] = []
    offer = Watch.offer

    def noted(watch: Watch, snapshot: Encoded) -> None:
        offer(watch, snapshot)
        pending.append(watch.pending)

    monkeypatch.setattr(Watch, "offer", noted)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", live.server.port))
        peer.sendall(b"GET /monitor HTTP/1.1\r\nHost: x\r\n\r\n")
        # Until events were replaced: more were made than one that waits.
        eventually(lambda: len(pending) > 50 and min(pending[-20:]) > 0, "the socket is full")
        assert max(pending[-20:]) < 2**17
    unwatched()


def test_watchers_end_when_the_server_stops(engine: Engine) -> None:
    with serving(engine, config=ServerConfig(grace=PATIENCE)) as live, watching(live) as seen:
        next(seen)
        stopper = threading.Thread(target=live.server.stop)
        stopper.start()
        *_, last = seen
        stopper.join(PATIENCE)
        assert not stopper.is_alive()
    assert last["done"] is True and "stopping" in last["error"]
    unwatched()


def test_watchers_of_http2_end_when_the_server_stops(engine: Engine) -> None:
    with serving(engine) as live, Http2Client(live.server.port) as client:
        streams = [client.open("GET", "/monitor") for _ in range(10)]
        for stream in streams:
            client.first_data(stream)
        stopper = threading.Thread(target=live.server.stop)
        stopper.start()
        replies = [client.reply(stream) for stream in streams]
        stopper.join(PATIENCE)
        assert not stopper.is_alive()
    for reply in replies:
        last = list(events(iter([reply.body])))[-1]
        assert last["done"] is True and "stopping" in last["error"]
    unwatched()


def test_a_watcher_whose_key_is_revoked_ends(engine: Engine) -> None:
    with serving(engine, ApiSettings(key_ring=RING)) as live, watching(live, "alice") as seen:
        next(seen)
        live.service.tenants.renew(type(RING)((), RING.default))
        *_, last = seen
    assert "key" in last["error"]
    unwatched()
