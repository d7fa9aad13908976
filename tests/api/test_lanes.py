"""Large bodies and generations that must wait are answered like others and hold no worker."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from cllm.api import ApiSettings, lanes
from cllm.api.lanes import LARGE
from cllm.engine import Engine, Generation, SamplingParams
from cllm.http import ServerConfig
from tests.api.api_client import PATIENCE, Live, begin_post, eventually, idle, serving

TEXT = "Once upon a time, 世界. " * (LARGE // 16)
PADDING = {"unknown": "x" * LARGE}


def test_a_large_text_is_encoded_and_decoded_back(live: Live) -> None:
    tokens = live.ask("/encode", text=TEXT)["tokens"]
    assert live.ask("/decode", tokens=tokens)["text"] == TEXT


def test_a_large_body_can_generate_and_stream(live: Live) -> None:
    small = live.ask("/generate", prompt="Hi", max_tokens=8, temperature=0)["text"]
    data = live.ask("/generate", prompt="Hi", max_tokens=8, temperature=0, **PADDING)
    assert data["text"] == small
    got = live.stream("Hi", max_tokens=8, temperature=0, **PADDING)
    assert "".join(event["token"] for event in got) == small


def test_a_large_body_is_refused_like_a_small_one(live: Live) -> None:
    assert live.refused("/generate", {"prompt": TEXT}).startswith("prompt")
    assert live.refused("/generate", {**PADDING}).startswith("prompt: missing")
    assert live.refused("/encode", b"[" * (LARGE + 1))
    assert live.refused("/decode", {"tokens": [-1], **PADDING}).startswith("tokens[0]")


def test_while_a_large_text_is_tokenized_the_only_worker_serves_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()
    tokenize = engine.tokenize

    def slow(text: str, add_special: bool = True, parse_special: bool = False) -> list[int]:
        if len(text) > LARGE:
            entered.set()
            assert release.wait(PATIENCE)
            text = text[:10]
        return tokenize(text, add_special, parse_special)

    monkeypatch.setattr(engine, "tokenize", slow)
    with (
        serving(engine, config=ServerConfig(workers=1, grace=5.0)) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            answer = pool.submit(live.ask, "/encode", text=TEXT)
            assert entered.wait(PATIENCE)
            assert live.get("/health").status_code == 200
            assert live.ask("/encode", text="Hello")["length"] > 0
            assert not answer.done()
        finally:
            release.set()
        assert answer.result(PATIENCE)["length"] > 0


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
def test_while_no_slot_is_free_the_only_worker_submits_no_generations(
    narrow: Engine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    entered, release = threading.Event(), threading.Event()
    running = narrow.submit("Hello", SamplingParams(max_tokens=100_000, ignore_eos=True))
    submit = narrow.submit

    def slow(*arguments: Any, **options: Any) -> Generation:
        entered.set()
        assert release.wait(PATIENCE)
        return submit(*arguments, **options)

    monkeypatch.setattr(narrow, "submit", slow)
    with (
        serving(narrow, config=ServerConfig(workers=1, grace=5.0)) as live,
        ThreadPoolExecutor(1) as pool,
    ):
        try:
            answer = pool.submit(live.post, path, {"prompt": "Hi", "max_tokens": 4})
            assert entered.wait(PATIENCE)
            assert live.get("/health").status_code == 200
            assert not answer.done()
        finally:
            release.set()
            running.cancel()
        assert answer.result(PATIENCE).status_code == 200


def test_a_client_that_leaves_cancels_a_generation_asked_in_a_large_body(live: Live) -> None:
    cancelled = live.engine.stats().requests_finished.get("cancelled", 0)
    fields = {"prompt": "Hi", "max_tokens": 100_000, "ignore_eos": True, **PADDING}
    peer = begin_post(live, "/generate", fields)
    eventually(lambda: live.engine.stats().slots_busy > 0, "the request is admitted")
    peer.close()
    eventually(lambda: idle(live.engine), "the slot is free")
    assert live.engine.stats().requests_finished.get("cancelled", 0) == cancelled + 1


def test_a_fault_in_a_large_request_is_500_with_an_id_that_the_log_has(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **more: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(live.engine, "tokenize", broken)
    with caplog.at_level(logging.ERROR):
        error = live.refused("/encode", {"text": "x", **PADDING}, 500)
    assert "secret" not in error
    assert error.split()[-1] in caplog.text and "secret detail" in caplog.text


def test_a_body_for_which_there_is_no_memory_while_it_waits_is_refused(engine: Engine) -> None:
    with serving(engine, ApiSettings(body_memory=LARGE)) as live:
        refused = live.post("/encode", {"text": "Hi", **PADDING})
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert str(LARGE) in refused.json()["error"]
        assert live.ask("/encode", text="Hi")["length"] > 0


def test_the_time_that_a_request_waits_on_a_lane_is_part_of_its_time(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "monotonic", lambda: monotonic() - 1e6)
    error = live.refused("/generate", {"prompt": "Hi", "max_tokens": 4, **PADDING}, 408)
    assert "deadline of 600 s" in error
