"""If the shared cache is too small, requests are computed again and none is lost.

Texts are compared on a model without attention, whose logits do not depend on the cache's layout
(test_batching.py says why), and then on a whole model in F32, where "no room" is injected.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cllm.engine import SamplingParams
from tests.engine.engine_helpers import PRECISE, Loader, Watched, break_decode, finished, greedy

# 4 sequences may grow to 256 tokens each, and all of them share 512.
CROWDED = {"parallel": 4, "ctx_size": 256, "kv_unified": True, "kv_cells": 512}


def sampled(seed: int) -> SamplingParams:
    return SamplingParams(
        max_tokens=200,
        temperature=1.2,
        seed=seed,
        ignore_eos=True,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
    )


def test_preempted_requests_give_the_text_they_would_have_given_alone(
    load: Loader, memoryless_path: Path
) -> None:
    roomy = load(memoryless_path, parallel=1, ctx_size=256)
    expected = [finished(roomy.submit(f"Story {i}", sampled(i))).text for i in range(8)]
    crowded = load(memoryless_path, **CROWDED)
    together = [crowded.submit(f"Story {i}", sampled(i)) for i in range(8)]
    done = [finished(generation) for generation in together]
    assert [d.text for d in done] == expected
    assert [d.usage.completion_tokens for d in done] == [200] * 8
    stats = crowded.stats()
    assert stats.preemptions > 0, "otherwise this test has tested nothing"
    assert stats.recomputed_tokens > 0
    assert stats.requests_finished == {"length": 8}


def test_the_oldest_request_is_never_preempted(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, **CROWDED)
    oldest = Watched(engine, "Story", greedy(200))
    oldest.wait_for_tokens(1)
    others = [engine.submit(f"Other {i}", greedy(200)) for i in range(5)]
    finished(oldest.generation)
    first_done = [other.done for other in others]
    for other in others:
        finished(other)
    assert engine.stats().preemptions > 0
    assert not all(first_done)


def test_stop_strings_survive_a_preemption(load: Loader, memoryless_path: Path) -> None:
    roomy = load(memoryless_path, parallel=1, ctx_size=256)
    full = [finished(roomy.submit(f"Story {i}", sampled(i))).text for i in range(6)]
    stops = [text[-12:] for text in full]
    crowded = load(memoryless_path, **CROWDED)
    together = [
        crowded.submit(f"Story {i}", replace(sampled(i), stop=(stop,)))
        for i, stop in enumerate(stops)
    ]
    for text, stop, generation in zip(full, stops, together, strict=True):
        done = finished(generation)
        assert done.text == text[: text.index(stop)]
        assert done.finish_reason == "stop"
    assert crowded.stats().preemptions > 0


def test_long_prompts_that_do_not_fit_together_take_turns(
    load: Loader, memoryless_path: Path
) -> None:
    engine = load(memoryless_path, **CROWDED)
    prompts = [[10 + i] * 240 for i in range(6)]
    together = [engine.submit(prompt, greedy(10)) for prompt in prompts]
    roomy = load(memoryless_path, parallel=1, ctx_size=256)
    for prompt, generation in zip(prompts, together, strict=True):
        assert finished(generation).text == finished(roomy.submit(prompt, greedy(10))).text


def test_kept_prefixes_give_way_first(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, **CROWDED)
    for i in range(4):  # fills the cache with prefixes that nobody needs
        finished(engine.submit([20 + i] * 100, greedy(20)))
    done = finished(engine.submit([99] * 200, greedy(50)))
    assert done.usage.completion_tokens == 50
    assert engine.stats().preemptions == 0


def test_a_preempted_request_can_be_cancelled(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, **CROWDED)
    together = [Watched(engine, f"Story {i}", greedy(200)) for i in range(4)]
    together[0].wait_until(lambda: engine.stats().preemptions > 0 or together[0].generation.done)
    assert engine.stats().preemptions > 0
    for watched in together:
        watched.generation.cancel()
    for watched in together:
        watched.wait_until_done()
    assert engine.stats().slots_busy == 0


def test_what_is_computed_again_is_what_was_there(load: Loader, f32_path: Path) -> None:
    roomy = load(f32_path, parallel=1, ctx_size=256, **PRECISE)
    expected = [finished(roomy.submit(f"Story {i}", greedy(30))).text for i in range(4)]
    engine = load(f32_path, parallel=4, ctx_size=256, **PRECISE)

    def now_and_then() -> Iterator[int]:
        rng = random.Random(1)
        while True:
            # One sequence alone always finds room: without it there is nobody to give way.
            crowded = len(engine._scheduler._running) > 2
            yield 1 if crowded and rng.random() < 0.3 else 0

    break_decode(engine, now_and_then())
    together = [engine.submit(f"Story {i}", greedy(30)) for i in range(4)]
    assert [finished(generation).text for generation in together] == expected
    assert engine.stats().preemptions > 0
