"""Prompts with a common prefix that arrive together: the prefix is computed once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import PRECISE, Loader, Watched, finished, greedy, standing

SYSTEM = [20 + i % 300 for i in range(400)]
QUESTIONS = [[330 + i, 340 + i, 350 + i] for i in range(4)]


@pytest.fixture(params=["split", "unified"])
def sharing(request: pytest.FixtureRequest, load: Loader, f32_path: Path) -> Engine:
    return load(
        f32_path, **PRECISE, parallel=5, ctx_size=1024, kv_unified=request.param == "unified"
    )


@pytest.fixture
def alone(load: Loader, f32_path: Path) -> Callable[[list[int]], str]:
    engine = load(f32_path, **PRECISE, parallel=1, ctx_size=1024, cache_ram=0)
    return lambda prompt: finished(engine.submit(prompt, greedy(12))).text


def test_the_common_beginning_is_read_once(
    sharing: Engine, alone: Callable[[list[int]], str]
) -> None:
    before = sharing.stats()
    with standing(sharing):
        together = [sharing.submit(SYSTEM + question, greedy(12)) for question in QUESTIONS]
    done = [finished(generation) for generation in together]
    assert [d.text for d in done] == [alone(SYSTEM + question) for question in QUESTIONS]
    cached = [d.usage.cached_tokens for d in done]
    assert cached == [0, len(SYSTEM), len(SYSTEM), len(SYSTEM)]
    after = sharing.stats()
    assert after.cached_tokens - before.cached_tokens == sum(cached)
    assert after.prefix_hits - before.prefix_hits == 3


def test_who_waited_for_a_request_that_is_cancelled_goes_on(
    sharing: Engine, alone: Callable[[list[int]], str]
) -> None:
    with standing(sharing):
        first = sharing.submit(SYSTEM + QUESTIONS[0], greedy(12))
        others = [sharing.submit(SYSTEM + question, greedy(12)) for question in QUESTIONS[1:]]
        first.cancel()
    assert finished(first).finish_reason == "cancelled"
    done = [finished(other) for other in others]
    assert [d.text for d in done] == [alone(SYSTEM + question) for question in QUESTIONS[1:]]
    assert [d.usage.cached_tokens for d in done] == [0, len(SYSTEM), len(SYSTEM)]


def test_who_waits_can_be_cancelled(sharing: Engine) -> None:
    with standing(sharing):
        watched = [Watched(sharing, SYSTEM + question, greedy(12)) for question in QUESTIONS]
    watched[2].generation.cancel()
    for one in watched:
        one.wait_until_done()
    assert finished(watched[3].generation).usage.completion_tokens == 12
    assert sharing.stats().slots_busy <= 1


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_that_shares_beginnings_and_too_few_cells_is_served_right(
    load: Loader, memoryless_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    engine = load(memoryless_path, parallel=6, ctx_size=256, kv_unified=True, kv_cells=400)
    roomy = load(memoryless_path, parallel=1, ctx_size=256)
    requests = [
        ([30 + rng.randrange(3)] * rng.randint(60, 150) + QUESTIONS[rng.randrange(4)], n)
        for n in rng.choices(range(1, 60), k=24)
    ]
    together = [engine.submit(prompt, greedy(count)) for prompt, count in requests]
    for (prompt, count), generation in zip(requests, together, strict=True):
        assert finished(generation).text == finished(roomy.submit(prompt, greedy(count))).text
    stats = engine.stats()
    assert (stats.failed_decodes, stats.slots_busy) == (0, 0)
