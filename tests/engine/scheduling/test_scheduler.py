"""The order of requests, the limit of the queue, and the consequences of failures."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import pytest

from cllm.engine import EngineError, Generation, InvalidRequest, QueueFull
from cllm.engine.scheduling import admission
from tests.engine.engine_helpers import (
    Loader,
    Watched,
    break_decode,
    finished,
    greedy,
    standing,
    streaming,
)


def test_requests_are_served_first_come_first_served(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=128)
    order: list[int] = []
    generations = []
    for i in range(10):
        generations.append(engine.submit("Hello", greedy(1), on_update=partial(order.append, i)))
    for generation in generations:
        finished(generation)
    finished(engine.submit("last", greedy(1)))
    assert order == list(range(10))


@pytest.mark.parametrize(("share", "slots"), [(0.0, [3, 4, 5, 6]), (1e6, [3, 6, 6, 6])])
def test_admissions_are_spread_over_steps_of_streams_that_are_short_next_to_them(
    load: Loader, monkeypatch: pytest.MonkeyPatch, share: float, slots: list[int]
) -> None:
    monkeypatch.setattr(admission, "_GAP_S", 0.0)
    monkeypatch.setattr(admission, "_GAP_SHARE", share)
    engine = load(parallel=6, ctx_size=2048)
    with streaming(engine, 3, lambda engine: engine.stats().slots_busy) as busy:
        waiting = [engine.submit([50 + n], greedy(20)) for n in range(3)]
    for each in waiting:
        finished(each)
    assert busy[:4] == slots


def test_a_tenant_with_few_requests_does_not_wait_for_one_with_many(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=128)
    order: list[str] = []

    def submit(tenant: str, name: str) -> Generation:
        noted = partial(order.append, name)
        return engine.submit("Hello", greedy(1), on_update=noted, tenant=tenant)

    with standing(engine):
        asked = [submit("many", f"many {number}") for number in range(8)]
        asked += [submit("few", f"few {number}") for number in range(2)]
    for generation in asked:
        finished(generation)
    first = list(dict.fromkeys(order))  # a token and the end may be two updates
    assert [name for name in first if name.startswith("many")] == [f"many {n}" for n in range(8)]
    assert first.index("few 0") <= 1 and first.index("few 1") <= 3


def test_whoever_waits_for_a_busy_slot_lets_others_go_ahead(load: Loader) -> None:
    engine = load(parallel=2, context_shift=True)
    busy = Watched(engine, "a", greedy(None), slot=0)
    busy.wait_for_tokens(1)
    waiting = Watched(engine, "b", greedy(2), slot=0)
    passing = engine.submit("c", greedy(2))
    assert finished(passing) and passing.slot == 1
    assert not waiting.generation.done and waiting.generation.slot is None
    busy.generation.cancel()
    assert finished(waiting.generation).finish_reason == "length"
    assert waiting.generation.slot == 0


def test_a_slot_that_is_not_there_is_refused(load: Loader) -> None:
    engine = load(parallel=2)
    for slot in (-1, 2):
        with pytest.raises(InvalidRequest, match="slot"):
            engine.submit("a", greedy(2), slot=slot)
    assert engine.stats().requests_submitted == 0


def test_more_may_not_wait_than_configured(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, max_queue=3, context_shift=True)
    accepted = [engine.submit("Hello", greedy(None)) for _ in range(5)]
    with pytest.raises(QueueFull) as caught:
        engine.submit("Hello", greedy(1))
    assert caught.value.retry_after >= 1
    assert engine.stats().requests_refused == 1
    accepted[0].cancel()
    finished(accepted[0])
    accepted.append(engine.submit("Hello", greedy(1)))
    for generation in accepted:
        generation.cancel()


def test_a_full_queue_makes_room_for_another_tenant(load: Loader) -> None:
    engine = load(parallel=1, max_queue=3)
    with standing(engine):
        many = [engine.submit("Hello", greedy(1), tenant="many") for _ in range(3)]
        few = engine.submit("Hello", greedy(1), tenant="few")
        with pytest.raises(QueueFull):
            engine.submit("Hello", greedy(1), tenant="many")
    with pytest.raises(QueueFull, match="3 requests wait"):
        finished(many[2])
    for generation in (*many[:2], few):
        assert finished(generation).usage.completion_tokens == 1
    stats = engine.stats()
    assert (stats.requests_refused, stats.queue_depth) == (2, 0)
    assert stats.requests_finished["error"] == 1


def test_without_a_queue_free_slots_still_serve(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, max_queue=0, context_shift=True)
    for _ in range(3):
        pair = [Watched(engine, "Hello", greedy(None)) for _ in range(2)]
        with pytest.raises(QueueFull):
            engine.submit("Hello", greedy(1))
        for watched in pair:
            watched.wait_for_tokens(1)
            watched.generation.cancel()
            finished(watched.generation)


def test_refused_requests_leave_no_trace(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048, max_queue=0, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(1)
    for _ in range(50):
        with pytest.raises(QueueFull):
            engine.submit("Hello", greedy(1))
    assert engine.stats().queue_depth == 0
    running.generation.cancel()
    finished(running.generation)
    assert finished(engine.submit("Hello", greedy(1))).usage.completion_tokens == 1


@pytest.mark.parametrize("code", [2, -1, -2, -3])
def test_a_failed_decode_fails_its_requests_and_no_others(
    load: Loader, memoryless_path: Path, code: int
) -> None:
    engine = load(memoryless_path, parallel=2, ctx_size=256, context_shift=True)
    expected = finished(engine.submit("Hello", greedy(20))).text
    running = [Watched(engine, f"Prompt {i}", greedy(None)) for i in range(2)]
    waiting = engine.submit("Hello", greedy(20))
    running[1].wait_for_tokens(2)
    break_decode(engine, [code] * 3)  # of both, and then of each alone
    for watched in running:
        watched.wait_until_done()
        assert watched.generation.finish_reason == "error"
        with pytest.raises(EngineError, match=str(code)):
            finished(watched.generation)
    assert finished(waiting).text == expected
    assert engine.healthy
    assert engine.stats().failed_decodes == 3


def test_no_room_for_a_lone_request_is_an_error_and_not_a_loop(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=256)
    break_decode(engine, repeat(1, 20))
    with pytest.raises(EngineError, match="code 1"):
        finished(engine.submit("Hello", greedy(20)))
    assert engine.healthy


def test_an_unexpected_exception_costs_its_step_only(
    load: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(parallel=1, ctx_size=256)
    break_decode(engine, [ZeroDivisionError("surprise")])
    hit, spared = engine.submit("Hello", greedy(5)), engine.submit("World", greedy(5))
    with pytest.raises(EngineError, match="surprise"):
        finished(hit)
    assert finished(spared).usage.completion_tokens == 5
    assert engine.healthy
    assert "surprise" in caplog.text


def test_an_engine_that_always_fails_gives_up_and_says_so(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=256)
    all_submitted = threading.Event()

    def outcomes() -> Iterator[Exception]:
        all_submitted.wait()
        yield from repeat(ZeroDivisionError("broken"), 100)

    break_decode(engine, outcomes())
    generations = [engine.submit("Hello", greedy(5)) for _ in range(6)]
    all_submitted.set()
    for generation in generations:
        with pytest.raises(EngineError, match="broken"):
            finished(generation)
    assert not engine.healthy
    assert not engine.stats().healthy
    assert isinstance(engine.failure, ZeroDivisionError)
    with pytest.raises(EngineError, match="broken"):
        engine.submit("Hello")
    engine.close()
