"""Long steps hold nothing up: they are bounded, and interrupted when no longer needed."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import DeadlineExceeded, Engine, EngineClosed, Generation, llama
from tests.engine.engine_helpers import (
    PRECISE,
    WAIT,
    Loader,
    Watched,
    finished,
    greedy,
    recorded_steps,
)
from tests.engine.engine_models import write_hybrid, write_recurrent, write_windowed

LONG = [300 + i % 97 for i in range(1500)]


def within_steps(engine: Engine, act: Callable[[int], object]) -> list[tuple[int, int]]:
    """Call act(n) within the n-th step from here on; the steps' tokens and codes."""
    context = engine._scheduler._context
    real, steps = context.decode, list[tuple[int, int]]()

    def decode(batch: llama.Batch, count: int) -> int:
        act(len(steps))
        code = real(batch, count)
        steps.append((count, code))
        return code

    context.decode = decode  # type: ignore[method-assign]
    return steps


def longest(engine: Engine) -> Generation:
    """The request of the longest prompt that runs."""
    return max(engine._scheduler._running, key=lambda s: s.n_prompt).generation


def slowed(engine: Engine, tokens_per_s: float) -> None:
    """Let the engine believe that it reads prompts so slowly."""
    planner = engine._scheduler._planner
    real = planner.learn

    def learn(plan: Any, shape: Any, seconds: float) -> None:
        real(plan, shape, shape.tokens / tokens_per_s)

    planner.learn = learn  # type: ignore[method-assign]


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("step", [0, 1, 3])
def test_no_token_of_a_cancelled_prompt_is_read(
    load: Loader, f32_path: Path, kv_unified: bool, step: int
) -> None:
    engine = load(f32_path, parallel=2, ctx_size=2048, kv_unified=kv_unified, **PRECISE)
    slowed(engine, 50)
    expected = finished(engine.submit(LONG, greedy(4))).text

    def act(n: int) -> None:
        if n == step:
            longest(engine).cancel()

    steps = within_steps(engine, act)
    cancelled = engine.submit([5, *LONG], greedy(4))
    assert finished(cancelled).finish_reason == "cancelled"
    assert [code for _, code in steps] == [llama.DONE] * step + [llama.INTERRUPTED]
    assert finished(engine.submit([5, *LONG], greedy(4), fresh=True)).text
    assert finished(engine.submit(LONG, greedy(4), fresh=True)).text == expected
    assert engine.stats().failed_decodes == 0


@pytest.mark.parametrize(
    ("write", "config"),
    [
        (None, {"kv_unified": False}),
        (None, {"kv_unified": True}),
        (write_windowed, {"kv_unified": False}),
        (write_windowed, {"kv_unified": True}),
        (write_recurrent, {}),
        (write_hybrid, {}),
    ],
)
def test_the_others_of_an_interrupted_step_go_on_as_if_nothing_had_been(
    load: Loader, f32_path: Path, tmp_path: Path, write: Any, config: dict[str, Any]
) -> None:
    path = f32_path
    if write is not None:
        path = tmp_path / "model.gguf"
        write(f32_path, path)
    engine = load(path, parallel=3, ctx_size=1024, threads=1, **PRECISE, **config)
    rng = random.Random(1)
    prompts = [[rng.randrange(300) for _ in range(length)] for length in (5, 200, 300)]
    alone = [finished(engine.submit(p, greedy(24), fresh=True)).text for p in prompts]
    scheduler = engine._scheduler
    context = scheduler._context
    real, interrupted, attempt = context.decode, 0, 0

    def decode(batch: llama.Batch, count: int) -> int:
        nonlocal interrupted
        decoding.set()
        if attempt == 0:  # within a step, however fast the machine is
            for sequence in scheduler._running:
                if sequence.n_prompt == 600:
                    sequence.generation.cancel()
        code = real(batch, count)
        interrupted += code == llama.INTERRUPTED
        return code

    decoding = threading.Event()
    context.decode = decode  # type: ignore[method-assign]
    for attempt in range(30):
        watched = [Watched(engine, p, greedy(24), fresh=True) for p in prompts[: 1 + attempt % 3]]
        victim = engine.submit([rng.randrange(300) for _ in range(600)], greedy(4), fresh=True)
        decoding.clear()
        decoding.wait(WAIT)
        for _ in range(rng.randrange(40_000)):  # somewhere within a step, or between two
            pass
        victim.cancel()
        texts = [finished(w.generation).text for w in watched]
        assert texts == alone[: len(texts)]
        assert victim.finish_reason in (None, "cancelled", "length")
    assert (interrupted > 0) == (write not in (write_recurrent, write_hybrid))
    assert engine.stats().failed_decodes == 0


def test_a_deadline_that_passes_within_a_step_ends_it(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048)
    context = engine._scheduler._context
    real, passed = context.interrupt, threading.Event()

    def interrupt() -> None:
        real()
        passed.set()

    context.interrupt = interrupt  # type: ignore[method-assign]
    scheduler: Any = engine._scheduler
    plan = scheduler._plan

    def planned() -> Any:  # not before: on a busy machine the request could expire while it waits
        chosen = plan()
        for sequence, _ in chosen:
            sequence.deadline = scheduler._next_deadline = time.monotonic() + 0.02
        scheduler._plan = plan
        return chosen

    scheduler._plan = planned
    steps = within_steps(engine, lambda n: passed.wait(WAIT) if n == 0 else None)
    with pytest.raises(DeadlineExceeded):
        finished(engine.submit(LONG, greedy(4), deadline=9.0))
    assert [code for _, code in steps] == [llama.INTERRUPTED]
    assert finished(engine.submit(LONG, greedy(4))).usage.completion_tokens == 4
    assert not [t for t in threading.enumerate() if t.name == "cllm-deadline" and not t.daemon]


def test_a_deadline_that_is_met_interrupts_nothing(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048)
    steps = within_steps(engine, lambda n: None)
    finished(engine.submit(LONG, greedy(4), deadline=9.0))
    assert {code for _, code in steps} == {llama.DONE}


@pytest.mark.parametrize("write", [None, write_recurrent])
def test_closing_does_not_wait_for_a_step(
    load: Loader, f32_path: Path, tmp_path: Path, write: Any
) -> None:
    path = f32_path
    if write is not None:
        path = tmp_path / "model.gguf"
        write(f32_path, path)
    engine = load(path, parallel=1, ctx_size=2048)
    steps = within_steps(engine, lambda n: engine._scheduler.stop())
    generation = engine.submit(LONG[:900], greedy(4))
    with pytest.raises(EngineClosed):
        finished(generation)
    engine.close()
    assert [code for _, code in steps] == [llama.INTERRUPTED]


def test_cancelling_a_stream_does_not_interrupt_the_prompts_of_others(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, kv_unified=True, context_shift=True)
    stream = Watched(engine, "Hello", greedy(None))
    stream.wait_for_tokens(1)
    steps = within_steps(engine, lambda n: stream.generation.cancel())
    finished(engine.submit(LONG, greedy(4)))
    assert {code for _, code in steps} == {llama.DONE}
    assert stream.generation.finish_reason == "cancelled"


def test_a_client_that_cancels_one_prompt_after_the_other_stops_nobody(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, kv_unified=True, context_shift=True)
    slowed(engine, 2000)  # whatever the machine's load is
    stream = Watched(engine, "Hello", greedy(None))  # prompts would wait for one that ends soon
    stream.wait_for_tokens(1)
    prompts: list[Generation] = []

    def act(n: int) -> None:
        for prompt in prompts[-1:]:
            prompt.cancel()
        if n < 40:
            prompts.append(engine.submit([n, *LONG], greedy(2)))
        else:
            stream.generation.cancel()

    steps = within_steps(engine, act)
    finished(stream.generation)
    codes = [code for _, code in steps]
    assert llama.INTERRUPTED in codes
    assert (llama.INTERRUPTED, llama.INTERRUPTED) not in itertools.pairwise(codes)


@pytest.mark.parametrize("rate", [20, 50, 200])
def test_a_step_takes_about_a_second_however_slow_the_model_is(load: Loader, rate: int) -> None:
    engine = load(parallel=1, ctx_size=2048)
    slowed(engine, rate)
    steps = within_steps(engine, lambda n: None)
    finished(engine.submit(LONG, greedy(2)))
    read = [count for count, _ in steps if count > 1]
    assert sum(read) == len(LONG)
    assert read[0] <= 72, "while nothing is known"
    assert max(read) <= max(72, rate * 1.05)


@pytest.mark.parametrize("kv_unified", [False, True])
def test_a_short_newcomer_waits_for_one_step_and_is_read_alone(
    load: Loader, kv_unified: bool
) -> None:
    engine = load(parallel=2, ctx_size=2048, kv_unified=kv_unified)
    slowed(engine, 50)
    newcomers: list[Generation] = []
    steps = recorded_steps(engine)
    context = engine._scheduler._context
    recorded = context.decode

    def decode(batch: llama.Batch, count: int) -> int:
        if len(steps) == 3:
            newcomers.append(engine.submit([3, 4], greedy(2)))
        return recorded(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    long = engine.submit(LONG, greedy(2))
    finished(long)
    finished(newcomers[0])
    assert newcomers[0].slot == 1
    assert sum(map(len, steps[:4])) < 5 * 64 < len(LONG)
    assert steps[4] == [1, 1]
