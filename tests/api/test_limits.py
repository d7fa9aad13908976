"""Full queues, deadlines, slow readers, a stopping server, and faults of our own."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cllm.api import ApiSettings
from cllm.api.native.frames import NativeFrames
from cllm.api.stream import GenerationStream
from cllm.engine import Engine, Generation, QueueFull, SamplingParams
from cllm.http import ServerConfig
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

LONG: dict[str, Any] = {"prompt": "Hello", "max_tokens": 100_000, "ignore_eos": True}


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_a_full_queue_is_429_with_exactly_this_body(narrow: Engine, path: str) -> None:
    with serving(narrow) as live, frozen(narrow):
        # The frozen engine may still hold its own request's place: fill whatever is left.
        waiting = _fill(narrow)
        response = live.post(path, LONG)
        for generation in waiting:
            generation.cancel()
    assert response.status_code == 429
    seconds = narrow._runner._inbox._retry_after()
    assert response.headers["Retry-After"] == str(seconds)
    assert response.headers["retry-after-ms"] == str(1000 * seconds)
    answer = response.json()
    assert isinstance(answer.pop("message"), str)
    assert answer == {
        "success": False,
        "error": "Too many concurrent requests",
        "retry_after": seconds,
    }


def test_other_endpoints_answer_while_the_queue_is_full(narrow: Engine) -> None:
    with serving(narrow) as live, frozen(narrow):
        waiting = _fill(narrow)
        assert live.get("/health").status_code == 200
        assert live.get("/metrics").status_code == 200
        assert live.get("/model/info").status_code == 200
        assert live.ask("/encode", text="Hello")["length"] > 0
        for generation in waiting:
            generation.cancel()


def test_a_request_past_its_deadline_is_408(narrow: Engine) -> None:
    with serving(narrow, ApiSettings(request_timeout=0.02)) as live:
        error = live.refused("/generate", LONG, 408)
        assert "0.02" in error
        eventually(lambda: idle(narrow), "the slot is free")


def test_a_stream_past_its_deadline_ends_with_an_error_event(narrow: Engine) -> None:
    with serving(narrow, ApiSettings(request_timeout=0.02)) as live:
        got = live.stream(**LONG)
        last = got[-1]
        assert last["done"] is True and last["token"] == "" and last["id"] == got[0]["id"]
        assert "deadline" in last["error"] and last["finish_reason"] == "error"
        assert all(event["done"] is False for event in got[:-1])
        eventually(lambda: idle(narrow), "the slot is free")


def test_a_deadline_that_passes_in_the_queue_is_408_too(narrow: Engine) -> None:
    with (
        serving(narrow, ApiSettings(request_timeout=0.02)) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        with frozen(narrow):
            begun = time.monotonic()
            answer = pool.submit(live.post, "/generate", LONG)
            eventually(lambda: narrow.stats().queue_depth > 0, "the request is queued")
            eventually(lambda: time.monotonic() - begun > 0.05, "its deadline has passed")
        assert answer.result(PATIENCE).status_code == 408


def test_a_client_that_leaves_while_queued_leaves_the_queue(narrow: Engine) -> None:
    with serving(narrow) as live:
        with frozen(narrow):
            peer = begin_post(live, "/generate_stream", LONG)
            read_until(peer, b"\r\n\r\n")
            peer.close()
        eventually(lambda: idle(narrow), "nothing is left")
        assert narrow.stats().requests_finished.get("cancelled") == 1


def streamed(engine: Engine, max_tokens: int) -> tuple[GenerationStream, Generation]:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    made: list[Generation] = []

    def submit(on_update: Callable[[], None]) -> list[Generation]:
        made.append(engine.submit("Hello", params, on_update=on_update))
        return made

    return GenerationStream("r", submit, NativeFrames, lambda generation: None), made[0]


def test_a_reader_that_falls_behind_is_cut_off_and_its_generation_cancelled(narrow: Engine) -> None:
    woken = threading.Event()
    stream, generation = streamed(narrow, max_tokens=100_000)
    stream.high_water = 64
    stream.attach(woken.set)
    # Nobody takes: the pending text passes the mark long before 100,000 tokens are made.
    eventually(lambda: stream.cancelled, "the stream is cancelled")
    eventually(lambda: generation.done, "the generation is cancelled")
    assert generation.finish_reason == "cancelled"
    assert generation.usage.completion_tokens < 100_000
    assert "too slow" in (stream.cancel_reason or "")
    assert stream.take() == [] and not stream.finished


def test_a_reader_that_is_behind_is_woken_once_until_it_takes(narrow: Engine) -> None:
    woken: list[None] = []
    with frozen(narrow):
        stream, generation = streamed(narrow, max_tokens=50)
        stream.attach(lambda: woken.append(None))
    eventually(lambda: generation.done, "the generation ends")
    assert len(woken) == 1
    (piece,) = stream.take()
    assert piece.count(b'"done":true') == 1 and stream.finished


def test_stopping_the_server_ends_a_stream_with_a_last_event(narrow: Engine) -> None:
    with serving(narrow, config=ServerConfig(grace=0.0)) as live:
        peer = begin_post(live, "/generate_stream", LONG)
        received = read_until(peer, b"data: ")
        live.server.stop(0)
        while more := peer.recv(65536):
            received += more
        peer.close()
    body = _unchunk(received.split(b"\r\n\r\n", 1)[1])
    got = list(events(iter([body])))
    assert got[-1]["done"] is True and got[-1]["error"] and got[-1]["id"] == got[0]["id"]
    eventually(lambda: idle(narrow), "the slot is free")


def test_a_fault_is_500_with_an_id_that_the_log_has(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(live.engine, "tokenize", broken)
    with caplog.at_level(logging.ERROR):
        error = live.refused("/encode", {"text": "x"}, 500)
    assert "secret" not in error and "Traceback" not in error
    found = [word for word in re.findall(r"[\w-]{8,}", error) if word in caplog.text]
    assert found, (error, caplog.text)
    assert "secret detail" in caplog.text


def _fill(engine: Engine) -> list[Generation]:
    """Submit as the client does until the queue is full; the engine must be frozen."""
    waiting = []
    try:
        while True:
            params = SamplingParams(max_tokens=1)
            waiting.append(engine.submit("wait", params, tenant="127.0.0.1"))
            assert len(waiting) < 10
    except QueueFull:
        return waiting


def _unchunk(body: bytes) -> bytes:
    out = b""
    while body:
        size, body = body.split(b"\r\n", 1)
        out += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return out
