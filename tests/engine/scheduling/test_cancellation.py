"""A generation can be cancelled in every state, and its slot goes to the next request."""

from __future__ import annotations

import threading
from pathlib import Path

from cllm.engine.llama import Batch
from tests.engine.engine_helpers import WAIT, Loader, Watched, finished, greedy


def test_cancelling_frees_the_slot(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    waiting = engine.submit("World", greedy(3))
    running.wait_for_tokens(3)
    assert not waiting.done
    running.generation.cancel()
    assert finished(waiting).usage.completion_tokens == 3
    assert running.generation.finish_reason == "cancelled"
    assert running.generation.usage.completion_tokens < 2000


def test_what_was_made_before_stays_takeable(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=2048)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(10)
    engine.cancel(running.generation)
    done = finished(running.generation)
    assert done.finish_reason == "cancelled"
    whole = finished(engine.submit("Hello", greedy(done.usage.completion_tokens))).text
    assert done.text == whole


def test_a_waiting_request_can_be_cancelled(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(1)
    waiting = Watched(engine, "World", greedy(5))
    waiting.generation.cancel()
    waiting.wait_until_done()
    assert waiting.generation.finish_reason == "cancelled"
    assert waiting.generation.usage.completion_tokens == 0
    assert not running.generation.done
    assert engine.stats().queue_depth == 0
    running.generation.cancel()


def test_a_prompt_can_be_cancelled_between_chunks(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048, ubatch_size=16, context_shift=True)
    stream = Watched(engine, "Hello", greedy(None))
    stream.wait_for_tokens(1)
    context, chunks = engine._scheduler._context, list[int]()
    real = context.decode

    def decode(batch: Batch, count: int) -> int:
        code = real(batch, count)
        if 1 in batch.seq[:count]:  # the prompt's slot
            chunks.append(count)
            if len(chunks) == 3:
                engine._scheduler._running[-1].generation.cancel()
        return code

    context.decode = decode  # type: ignore[method-assign]
    long = Watched(engine, [7, 8] * 1000, greedy(5))
    long.wait_until_done()
    assert long.generation.slot == 1 and len(chunks) == 3
    assert long.generation.usage.completion_tokens == 0
    assert long.generation.finish_reason == "cancelled"
    stream.generation.cancel()


def test_cancelling_twice_or_too_late_is_harmless(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=128)
    done = engine.submit("Hello", greedy(2))
    assert finished(done).finish_reason == "length"
    done.cancel()
    done.cancel()
    assert finished(engine.submit("Hello", greedy(2))).finish_reason == "length"
    assert done.finish_reason == "length"
    assert engine.stats().requests_finished == {"length": 2}


def test_cancelling_from_a_callback_takes_effect_before_the_next_token(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048)
    ended = threading.Event()

    def on_update() -> None:
        generation = box[0]
        if generation.usage.completion_tokens == 5:
            generation.cancel()
        if generation.done:
            ended.set()

    submitted = threading.Lock()
    with submitted:
        box = [engine.submit("Hello", greedy(None), on_update=lambda: _with(submitted, on_update))]
    assert ended.wait(WAIT)
    assert box[0].finish_reason == "cancelled"
    assert box[0].usage.completion_tokens == 5


def _with(lock: threading.Lock, call: object) -> None:
    with lock:
        call()  # type: ignore[operator]


def test_cancelling_everything_at_once_leaves_an_idle_engine(load: Loader) -> None:
    engine = load(parallel=4, ctx_size=1024, context_shift=True)
    watched = [Watched(engine, f"Prompt {i}", greedy(None)) for i in range(40)]
    watched[0].wait_for_tokens(2)
    threads = [threading.Thread(target=w.generation.cancel) for w in watched]
    for thread in threads:
        thread.start()
    for w in watched:
        w.wait_until_done()
    for thread in threads:
        thread.join(WAIT)
    stats = engine.stats()
    assert (stats.slots_busy, stats.queue_depth) == (0, 0)
    assert stats.requests_finished == {"cancelled": 40}
