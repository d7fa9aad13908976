"""Promises of POST /generate_stream."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

from cllm.engine import SamplingParams
from tests.api.api_client import Live, begin_post, events, eventually, idle, read_until

GREEDY = {"temperature": 0, "ignore_eos": True}


def test_each_event_has_exactly_the_keys_of_the_contract(live: Live) -> None:
    got = live.stream("Hello", max_tokens=6, **GREEDY)
    id = got[0]["id"]
    assert re.fullmatch("[0-9a-f]{32}", id)
    for event in got[:-1]:
        assert event == {"id": id, "token": event["token"], "done": False}
        assert event["token"]
    assert set(got[-1]) == {"id", "token", "done", "finish_reason", "usage"}
    assert got[-1]["id"] == id and got[-1]["token"] == "" and got[-1]["done"] is True
    assert got[-1]["finish_reason"] == "length"
    assert set(got[-1]["usage"]) == {"prompt_tokens", "completion_tokens", "cached_tokens"}
    assert got[-1]["usage"]["completion_tokens"] == 6


def test_the_bytes_are_those_of_the_contract(live: Live) -> None:
    body = {"prompt": "Hello", "max_tokens": 2, **GREEDY}
    with live.post("/generate_stream", body, stream=True) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        raw = response.content
    first, last = raw.split(b"\n\n")[0], raw.split(b"\n\n")[-2]
    assert re.fullmatch(rb'data: \{"id":"[0-9a-f]{32}","token":"[^"]+","done":false\}', first)
    assert re.fullmatch(
        rb'data: \{"id":"[0-9a-f]{32}","token":"","done":true,"finish_reason":"length",'
        rb'"usage":\{"prompt_tokens":\d+,"completion_tokens":2,"cached_tokens":\d+\}\}',
        last,
    )
    assert raw.endswith(b"}\n\n")


def test_there_is_one_event_for_each_delta_of_the_engine(live: Live) -> None:
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    generation = live.engine.submit("Hello", params)
    eventually(lambda: generation.done, "the generation ends")
    deltas = generation.take()
    assert [e["token"] for e in live.stream("Hello", max_tokens=40, **GREEDY)[:-1]] == deltas


def test_the_tokens_joined_are_the_text_of_generate(live: Live) -> None:
    fields = {"max_tokens": 64, "seed": 3, "temperature": 1.2}
    text = live.ask("/generate", prompt="Once", **fields)["text"]
    assert "".join(e["token"] for e in live.stream("Once", **fields)) == text


def test_text_that_json_must_escape_arrives_as_it_was(live: Live) -> None:
    for said in ("\n", '"', "\\", "\t"):
        (token,) = live.engine.tokenize(said, add_special=False)
        bias = {str(token): 100.0}
        got = live.stream("x", max_tokens=3, logit_bias=bias, **GREEDY)
        assert "".join(e["token"] for e in got) == said * 3


def test_eight_streams_at_once_equal_their_sequential_results(live: Live) -> None:
    prompts = [f"Chapter {n}. Once upon a time" for n in range(8)]
    alone = [live.stream(p, max_tokens=32, **GREEDY) for p in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda p: live.stream(p, max_tokens=32, **GREEDY), prompts))
    for one, other in zip(alone, together, strict=True):
        assert [e["token"] for e in one] == [e["token"] for e in other]
        assert one[-1]["finish_reason"] == other[-1]["finish_reason"]


def test_streams_blocking_requests_and_health_are_served_together(live: Live) -> None:
    def stream(n: int) -> int:
        return int(live.stream(f"S{n}", max_tokens=30, **GREEDY)[-1]["usage"]["completion_tokens"])

    def whole(n: int) -> int:
        data = live.ask("/generate", prompt=f"W{n}", max_tokens=30, **GREEDY)
        return int(data["usage"]["completion_tokens"])

    def healthy(n: int) -> int:
        return live.get("/health").status_code

    with ThreadPoolExecutor(24) as pool:
        jobs = [pool.submit(job, n) for n in range(20) for job in (stream, whole, healthy)]
        results = [job.result() for job in jobs]
    assert sorted(results) == [30] * 40 + [200] * 20


def test_an_event_leaves_before_the_generation_has_ended(live: Live) -> None:
    with begin_post(
        live, "/generate_stream", {"prompt": "Hi", "max_tokens": 100_000, **GREEDY}
    ) as peer:
        received = read_until(peer, b"\n\n")
        read_until(peer, b"data: ")
        assert live.engine.stats().slots_busy >= 1
        assert b'"done":true' not in received


def test_a_client_that_vanishes_frees_its_slot(live: Live) -> None:
    cancelled = live.engine.stats().requests_finished.get("cancelled", 0)
    peer = begin_post(live, "/generate_stream", {"prompt": "Hi", "max_tokens": 100_000, **GREEDY})
    read_until(peer, b"data: ")
    peer.close()
    eventually(lambda: idle(live.engine), "the slot is free")
    assert live.engine.stats().requests_finished.get("cancelled", 0) == cancelled + 1


def test_a_client_that_vanishes_from_a_blocking_request_frees_its_slot(live: Live) -> None:
    cancelled = live.engine.stats().requests_finished.get("cancelled", 0)
    peer = begin_post(live, "/generate", {"prompt": "Hi", "max_tokens": 100_000, **GREEDY})
    eventually(lambda: live.engine.stats().slots_busy > 0, "the request is admitted")
    peer.close()
    eventually(lambda: idle(live.engine), "the slot is free")
    assert live.engine.stats().requests_finished.get("cancelled", 0) == cancelled + 1


def test_the_connection_is_kept_for_the_next_request_after_a_stream(live: Live) -> None:
    with begin_post(live, "/generate_stream", {"prompt": "Hi", "max_tokens": 2, **GREEDY}) as peer:
        read_until(peer, b"0\r\n\r\n")
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert read_until(peer, b'"healthy"').startswith(b"HTTP/1.1 200")


def test_http_1_0_gets_its_events_until_the_close(live: Live) -> None:
    body = json.dumps({"prompt": "Hi", "max_tokens": 3, **GREEDY}).encode()
    with begin_post(live, "/generate", {"prompt": "x", "max_tokens": 1}) as peer:
        read_until(peer, b'"success"')
        peer.sendall(
            b"POST /generate_stream HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        received = b""
        while more := peer.recv(65536):
            received += more
    got = list(events(iter([received.split(b"\r\n\r\n", 1)[1]])))
    assert got[-1]["done"] is True and len(got) == 4
