"""A fault ends the requests that it concerns, is logged, and the engine serves on.

Such faults cannot be caused on purpose: each is injected where it would occur; all else is real.
"""

from __future__ import annotations

import gc
import logging
import threading
from asyncio import CancelledError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Constraint, Engine, EngineError, llama
from cllm.engine.constraints.guide import Guide, MaskThread
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafter import Drafter
from cllm.engine.speculation.speculation import Speculation
from tests.engine.engine_helpers import (
    PRECISE,
    WAIT,
    Loader,
    Watched,
    finished,
    greedy,
    standing,
)
from tests.engine.engine_models import write_hybrid, write_recurrent

FIRST = [20 + i % 300 for i in range(300)]
SECOND = [400 - i % 300 for i in range(300)]
PATTERN = Constraint("regex", "[a-z]{30}")


def raising(error: BaseException) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> Any:
        raise error

    return call


def times(logged: list[str], words: str) -> int:
    return sum(words in line for line in logged)


# Prefixes in host memory.


def test_a_prefix_that_finds_no_memory_is_not_kept(
    load: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = load(parallel=1, ctx_size=512)
    monkeypatch.setattr(
        engine._scheduler._placer.cache.saved, "take_memory", raising(MemoryError())
    )
    for prompt in (FIRST, SECOND, FIRST, SECOND):
        assert finished(engine.submit(prompt, greedy(4))).usage.completion_tokens == 4
    assert engine.healthy
    assert engine.stats().saved_prefixes == 0
    assert times(caplog.messages, "not enough memory to save a prefix") == 1


def test_a_snapshot_that_finds_no_memory_is_an_error_that_says_so(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=1, ctx_size=512, slot_save_path=str(tmp_path))
    finished(engine.submit(FIRST, greedy(4)))
    monkeypatch.setattr(engine._scheduler._context, "save", raising(MemoryError()))
    with pytest.raises(EngineError, match="not enough memory"):
        engine.sessions.save(0, "slot.bin").result(WAIT)
    assert finished(engine.submit(SECOND, greedy(4)))


@pytest.mark.parametrize("method", ["restore", "remove"])
def test_what_fails_while_a_request_is_placed_costs_that_request(
    load: Loader, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = load(parallel=2, ctx_size=512, draft_max=0, context_shift=True)
    for prompt in (FIRST, SECOND, [*SECOND[::-1]]):
        finished(engine.submit(prompt, greedy(4)))
    stream = Watched(engine, [3, 4], greedy(None), slot=0)
    stream.wait_for_tokens(1)
    with monkeypatch.context() as patch:
        context = engine._scheduler._context
        real, left = getattr(context, method), iter([RuntimeError("no such luck")])

        def once(*arguments: Any) -> Any:
            for error in left:
                raise error
            return real(*arguments)

        patch.setattr(context, method, once)
        failed = engine.submit([*FIRST, 5], greedy(4))
        with pytest.raises(EngineError, match="no such luck"):
            finished(failed)
    assert not stream.generation.done
    assert not engine._scheduler.slots[1].busy
    assert finished(engine.submit([*FIRST, 5], greedy(4))).usage.completion_tokens == 4
    stream.generation.cancel()
    stream.wait_until_done()
    assert engine.stats().slots_busy == 0
    assert engine.healthy


def test_an_engine_in_which_nothing_can_be_placed_gives_up_and_says_so(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=1, ctx_size=512)
    monkeypatch.setattr(engine._scheduler._placer, "place", raising(MemoryError()))
    for generation in [engine.submit(FIRST, greedy(4)) for _ in range(3)]:
        with pytest.raises(EngineError, match="MemoryError"):
            finished(generation)
    assert not engine.healthy
    with pytest.raises(EngineError, match="MemoryError"):
        engine.submit(FIRST)


def test_a_copy_that_a_failed_step_has_left_undone_does_not_keep_a_prompt_waiting(
    load: Loader, f32_path: Path
) -> None:
    engine = load(f32_path, **PRECISE, parallel=1, ctx_size=512)
    expected = finished(engine.submit([*FIRST, 7], greedy(4))).text
    finished(engine.submit(SECOND, greedy(4)))
    assert engine.stats().saved_prefixes == 1
    engine._scheduler._context.copies_pending = True  # no decode will come by itself
    assert finished(engine.submit([*FIRST, 7], greedy(4))).text == expected
    assert not engine._scheduler._context.copies_pending


# Speculation.


@pytest.fixture
def drafting(load: Loader, memoryless_path: Path) -> Loader:
    def loader(**config: Any) -> Engine:
        return load(memoryless_path, parallel=2, ctx_size=512, threads=1, **config)

    return loader


@pytest.mark.parametrize("method", ["draft", "read", "unread"])
def test_a_draft_model_that_raises_is_used_no_more_and_no_request_notices(
    drafting: Loader,
    memoryless_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    expected = finished(drafting(draft_max=0).submit("Hello", greedy(60))).text
    engine = drafting(model_draft=str(memoryless_path))
    speculation = engine._scheduler._planner._speculation
    assert isinstance(speculation, Speculation) and speculation._drafting is not None
    model = speculation._drafting._model
    monkeypatch.setattr(model, method, raising(RuntimeError("llama.cpp has no logits")))
    done = [finished(g) for g in [engine.submit("Hello", greedy(60)) for _ in range(4)]]
    assert [d.text for d in done] == [expected] * 4
    assert engine.healthy
    if model.broken:  # it was asked
        assert times(caplog.messages, "is no longer used") == 1
    else:
        assert method == "read"


def test_a_draft_that_raises_is_the_last_and_no_request_notices(
    drafting: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = finished(drafting(draft_max=0).submit("Hello", greedy(60))).text
    engine = drafting()
    monkeypatch.setattr(Drafter, "chances", raising(RuntimeError("lost")))
    for _ in range(2):
        assert finished(engine.submit("Hello", greedy(60))).text == expected
    assert times(caplog.messages, "speculation failed and is switched off") == 1
    assert engine.healthy


# Constraints.


def test_masks_are_computed_without_a_thread_where_none_is_to_be_had(
    load: Loader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = finished(load(parallel=2).submit("Hello", greedy(40, constraint=PATTERN))).text
    engine = load(parallel=2)
    free = finished(engine.submit("Hello", greedy(40))).text
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "cllm-masks":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        constrained = engine.submit("Hello", greedy(40, constraint=PATTERN))
        beside = engine.submit("Hello", greedy(40))
        assert finished(constrained).text == expected
        assert finished(beside).text == free
    assert times(caplog.messages, "can't start new thread") == 1
    assert finished(engine.submit("Hello", greedy(40, constraint=PATTERN))).text == expected
    assert isinstance(engine._scheduler._masks, MaskThread)
    engine.close()


# Callbacks, and the engine thread's end.


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), CancelledError()])
def test_a_callback_that_wants_to_end_the_thread_is_logged_and_the_engine_serves_on(
    load: Loader, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    engine = load(parallel=1, ctx_size=128)
    generation = engine.submit("Hello", greedy(4), on_update=raising(error))
    assert finished(generation).usage.completion_tokens == 4
    assert finished(engine.submit("Hello", greedy(4))).usage.completion_tokens == 4
    assert engine.healthy
    assert times(caplog.messages, "callback of request") > 0


def test_an_engine_whose_thread_has_ended_says_why(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(parallel=1, ctx_size=128)
    monkeypatch.setattr(engine._scheduler._admission, "admit", raising(SystemExit("out of here")))
    generation = engine.submit("Hello", greedy(4))
    with pytest.raises(EngineError, match="out of here"):
        finished(generation)
    engine._thread.join(WAIT)
    assert not engine.healthy
    assert "out of here" in str(engine.failure)
    with pytest.raises(EngineError, match="out of here"):
        engine.submit("Hello")


# llama_decode.


def failing(engine: Engine, guilty: Callable[[llama.Batch, int], bool], code: int = -3) -> None:
    """Let llama_decode compute and then fail, wherever `guilty` says so of its batch."""
    context = engine._scheduler._context
    real = context.decode

    def decode(batch: llama.Batch, count: int) -> int:
        return code if guilty(batch, count) and real(batch, count) == 0 else real(batch, count)

    context.decode = decode  # type: ignore[method-assign]


@pytest.mark.parametrize("code", [2, -1, -2, -3])
@pytest.mark.parametrize(
    ("write", "config"),
    [
        (None, {"kv_unified": False}),
        (None, {"kv_unified": True}),
        (write_recurrent, {}),
        (write_hybrid, {"kv_unified": False}),
        (write_hybrid, {"kv_unified": True}),
    ],
)
def test_of_a_failed_step_only_the_guilty_request_fails(
    load: Loader, f32_path: Path, tmp_path: Path, write: Any, config: dict[str, Any], code: int
) -> None:
    path = f32_path
    if write is not None:
        path = tmp_path / "model.gguf"
        write(f32_path, path)
    engine = load(path, parallel=4, ctx_size=512, **PRECISE, **config)
    prompts = [[n, n + 1, n + 2] for n in (30, 60, 90)]
    expected = [finished(engine.submit(p, greedy(20))).text for p in prompts]
    poison = 333
    failing(engine, lambda batch, count: poison in batch.token[:count].tolist(), code)
    with standing(engine):
        innocent = [engine.submit(p, greedy(20), fresh=True) for p in prompts]
        guilty = engine.submit([5, poison, 7], greedy(20), fresh=True)
    with pytest.raises(EngineError, match=str(code)):
        finished(guilty)
    assert [finished(g).text for g in innocent] == expected
    assert engine.healthy
    assert engine.stats().failed_decodes >= 1


def test_a_failure_that_passes_costs_nobody_anything(load: Loader, f32_path: Path) -> None:
    engine = load(f32_path, parallel=2, ctx_size=512, **PRECISE)
    expected = [finished(engine.submit([n, 4], greedy(20))).text for n in (3, 5)]
    once = iter([True])
    failing(engine, lambda batch, count: len(set(batch.seq[:count])) > 1 and next(once, False))
    both = [engine.submit([n, 4], greedy(20), fresh=True) for n in (3, 5)]
    assert [finished(g).text for g in both] == expected
    assert next(once, None) is None, "otherwise this test has tested nothing"


def test_what_llama_cpp_says_of_a_full_cache_is_no_error_in_the_log(
    load: Loader, f32_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_hybrid(f32_path, tmp_path / "model.gguf")
    engine = load(
        tmp_path / "model.gguf",
        parallel=4,
        ctx_size=256,
        kv_unified=True,
        kv_cells=512,
        cache_ram=0,
    )
    for generation in [engine.submit(f"Story {i}", greedy(200)) for i in range(8)]:
        finished(generation)
    assert engine.stats().preemptions > 0
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_prompts_without_room_are_not_tried_again_in_each_step(
    load: Loader, f32_path: Path
) -> None:
    engine = load(f32_path, **PRECISE, parallel=2, ctx_size=512, kv_unified=True, draft_max=0)
    expected = finished(engine.submit(SECOND[:40], greedy(4), fresh=True)).text
    stream = Watched(engine, [3], greedy(60))
    stream.wait_for_tokens(1)
    context = engine._scheduler._context
    real, refused = context.decode, 0

    def decode(batch: llama.Batch, count: int) -> int:
        nonlocal refused
        if not stream.generation.done and len(set(batch.seq[:count].tolist())) > 1:
            refused += 1
            return llama.NO_ROOM
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    waiting = engine.submit(SECOND[:40], greedy(4), fresh=True)
    assert finished(stream.generation).usage.completion_tokens == 60
    assert finished(waiting).text == expected
    assert 1 <= refused <= 2


# What is left behind.


def test_a_slot_keeps_no_drafter_and_no_matcher_of_the_request_it_served_last(
    load: Loader,
) -> None:
    engine = load(parallel=1, ctx_size=512)
    scheduler = engine._scheduler
    assert isinstance(scheduler, Scheduler)
    (slot,) = scheduler.slots
    for constraint in (None, PATTERN):
        watched = Watched(engine, "Hello", greedy(200, constraint=constraint))
        watched.wait_for_tokens(1)
        finished(watched.generation)
        assert slot.served is not None and slot.served.generation is watched.generation
        held = gc.get_referents(slot, slot.served)
        assert watched.generation in held
        assert not [each for each in held if isinstance(each, (Sequence, Drafter, Guide))]
