"""Promises of POST /benchmark."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from cllm.api import ApiSettings
from cllm.api.native.benchmark import AT_ONCE, AT_ONCE_OF_ONE, _percentile
from cllm.engine import Engine
from tests.api.api_client import PATIENCE, Live, begin_post, eventually, frozen, idle, serving

KEYS = {
    "total_requests", "successful_requests", "failed_requests", "avg_response_time",
    "min_response_time", "max_response_time", "avg_throughput", "avg_tokens_per_second",
    "total_tokens_processed", "avg_generated_tokens", "total_time", "p50_response_time",
    "p95_response_time", "p99_response_time", "time_to_first_token",
}  # fmt: skip


def test_the_report_has_every_figure_and_they_agree(live: Live) -> None:
    data = live.ask("/benchmark", requests=12, concurrency=4, max_tokens=8, prompt="Hello")
    assert set(data) == KEYS
    assert data["total_requests"] == data["successful_requests"] == 12
    assert data["failed_requests"] == 0
    assert 0 < data["total_tokens_processed"] <= 12 * 8
    assert data["avg_generated_tokens"] == pytest.approx(data["total_tokens_processed"] / 12)
    assert data["avg_throughput"] == pytest.approx(
        data["total_tokens_processed"] / data["total_time"]
    )
    assert (
        0
        < data["min_response_time"]
        <= data["p50_response_time"]
        <= data["p95_response_time"]
        <= data["p99_response_time"]
        <= data["max_response_time"]
        <= data["total_time"]
    )
    assert data["min_response_time"] <= data["avg_response_time"] <= data["max_response_time"]
    assert 0 < data["time_to_first_token"] <= data["avg_response_time"]
    assert data["avg_tokens_per_second"] > 0


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_every_field_has_a_default(live: Live, body: bytes) -> None:
    data = live.post("/benchmark", body).json()["data"]
    assert data["successful_requests"] == 10
    assert data["avg_generated_tokens"] <= 50


def test_it_keeps_to_its_concurrency(live: Live) -> None:
    engine = live.engine
    with ThreadPoolExecutor(1) as pool:
        with frozen(engine):
            before = engine.stats().requests_submitted
            answer = pool.submit(
                live.ask, "/benchmark", requests=12, concurrency=3, max_tokens=4, prompt="Hello"
            )
            eventually(lambda: engine.stats().requests_submitted - before >= 3, "three are asked")
            for _ in range(20):
                live.get("/health")  # time in which a fourth would show
            assert engine.stats().requests_submitted - before == 3
        assert answer.result(PATIENCE)["successful_requests"] == 12
    assert engine.stats().requests_submitted - before == 12


def test_others_are_served_meanwhile(live: Live) -> None:
    fields = {"requests": 64, "concurrency": 16, "max_tokens": 100, "prompt": "Hello"}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(live.ask, "/benchmark", **fields)
        eventually(lambda: live.engine.stats().slots_busy == 8, "the benchmark runs")
        assert live.get("/health").status_code == 200
        assert live.ask("/generate", prompt="Hi", max_tokens=4, ignore_eos=True)["text"]
        assert live.stream("Hi", max_tokens=4)[-1]["done"] is True
        assert not answer.done(), "they were served while it ran"
        assert answer.result(PATIENCE)["successful_requests"] == 64


def test_more_in_flight_than_the_queue_holds_is_load_and_not_failure(narrow: Engine) -> None:
    with serving(narrow) as live:
        data = live.ask("/benchmark", requests=20, concurrency=10, max_tokens=2)
        assert data["successful_requests"] == 20 and data["failed_requests"] == 0


def test_requests_past_their_deadline_count_as_failed(narrow: Engine) -> None:
    with serving(narrow, ApiSettings(request_timeout=0.02)) as live:
        data = live.ask("/benchmark", requests=3, max_tokens=100_000, prompt="Hello", temperature=2)
        assert data["total_requests"] == 3
        assert data["failed_requests"] + data["successful_requests"] == 3
        assert data["failed_requests"] > 0


def test_it_is_cancelled_when_its_client_leaves(live: Live) -> None:
    submitted = live.engine.stats().requests_submitted
    fields = {"requests": 10_000, "concurrency": 8, "max_tokens": 50}
    peer = begin_post(live, "/benchmark", fields)
    eventually(lambda: live.engine.stats().slots_busy > 0, "the benchmark runs")
    peer.close()
    eventually(lambda: not _benchmarks(), "its thread has ended")
    eventually(lambda: idle(live.engine), "nothing of it is left in the engine")
    assert live.engine.stats().requests_submitted - submitted < 10_000


def test_stopping_the_server_cancels_it(narrow: Engine) -> None:
    with serving(narrow) as live:
        with begin_post(live, "/benchmark", {"requests": 10_000, "max_tokens": 50}):
            eventually(lambda: narrow.stats().slots_busy > 0, "the benchmark runs")
            live.server.stop(0)
        eventually(lambda: not _benchmarks(), "its thread has ended")
        eventually(lambda: idle(narrow), "the slot is free")


def test_at_most_so_many_run_at_once(narrow: Engine) -> None:
    """A client cannot have all of them."""
    with serving(narrow) as live, ExitStack() as stack:
        fields = {"requests": 10_000, "max_tokens": 50}

        def begin(source: str) -> socket.socket:
            return stack.enter_context(begin_post(live, "/benchmark", fields, source=source))

        mine = [begin("127.0.0.1") for _ in range(AT_ONCE_OF_ONE)]
        eventually(lambda: len(_benchmarks()) == AT_ONCE_OF_ONE, "its own run")
        response = live.post("/benchmark", fields)
        assert response.status_code == 429 and response.json()["retry_after"] == 5
        for _ in range(AT_ONCE - AT_ONCE_OF_ONE):
            begin("127.0.0.2")
        eventually(lambda: len(_benchmarks()) == AT_ONCE, "those of another client run")
        refused = begin("127.0.0.3")
        assert refused.recv(100).startswith(b"HTTP/1.1 429 ")
        for peer in mine:
            peer.close()
        eventually(lambda: len(_benchmarks()) == AT_ONCE - AT_ONCE_OF_ONE, "its own have ended")
        assert live.ask("/benchmark", requests=1, max_tokens=1)["successful_requests"] == 1
    eventually(lambda: not _benchmarks(), "all threads have ended")


@pytest.mark.parametrize(
    ("count", "fraction", "rank"),
    [(1, 0.5, 1), (1, 0.99, 1), (10, 0.5, 5), (10, 0.95, 10), (100, 0.95, 95), (100, 0.99, 99)],
)
def test_a_percentile_is_the_nearest_rank(count: int, fraction: float, rank: int) -> None:
    assert _percentile([float(n) for n in range(1, count + 1)], fraction) == rank


def _benchmarks() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "cllm-benchmark"]
