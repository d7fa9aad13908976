"""Watching generations and waiting for them, never for longer than WAIT."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cllm.engine import Completion, Engine, Generation, SamplingParams
from cllm.engine.cache import disk_cache, disk_reader, disk_writer
from cllm.engine.config import SPARE_ROWS
from cllm.engine.llama import Batch
from cllm.engine.speculation.drafting import DraftPolicy
from cllm.engine.speculation.lengths import DraftCost
from cllm.engine.speculation.speculation import Speculation

WAIT = 60.0  # seconds until a test that waits in vain fails

Loader = Callable[..., Engine]

# Every logit of the built-in model is the same, bit for bit, whatever else is in the batch.
EXACT: dict[str, Any] = {"flash_attn": "off", "extra_bufts": "off"}

# Logits of the F32 model differ by 4e-5 at most, whatever the cache's layout, the chunks that a
# prompt is cut into, and what is computed again: too little to change one of a few tokens.
PRECISE: dict[str, Any] = {"flash_attn": "off", "cache_type_k": "f32", "cache_type_v": "f32"}


def greedy(max_tokens: int | None = 16, **fields: Any) -> SamplingParams:
    """Parameters whose outcome depends on the model alone, and whose length is max_tokens."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **fields)


def finished(generation: Generation) -> Completion:
    return generation.result(WAIT)


class Watched:
    """A submitted prompt whose progress can be waited for."""

    def __init__(self, engine: Engine, prompt: Any, params: SamplingParams, **options: Any) -> None:
        self._changed = threading.Condition()
        self.updates = 0
        self.generation = engine.submit(prompt, params, on_update=self._note, **options)

    def _note(self) -> None:
        with self._changed:
            self.updates += 1
            self._changed.notify_all()

    def wait_for_tokens(self, count: int) -> None:
        self.wait_until(lambda: self.generation.usage.completion_tokens >= count)

    def wait_until_done(self) -> None:
        self.wait_until(lambda: self.generation.done)

    def wait_until(self, predicate: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, WAIT), "nothing happened in time"


def break_decode(engine: Engine, outcomes: Iterable[int | Exception]) -> None:
    """Let llama_decode end with these outcomes first (0: as it is): no real failure can be had."""
    context = engine._scheduler._context
    real: Callable[[Batch, int], int] = context.decode
    coming = iter(outcomes)

    def decode(batch: Batch, count: int) -> int:
        outcome = next(coming, 0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome or real(batch, count)

    context.decode = decode  # type: ignore[method-assign]


def assume_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Assume what steps and drafts cost; see the fixture steady_costs."""
    draft, spend = Speculation.draft, DraftPolicy.spend
    monkeypatch.setattr(
        Speculation, "draft", lambda self, sequences, room, _: draft(self, sequences, room, 0.01)
    )
    monkeypatch.setattr(Speculation, "observe", lambda *_: None)
    monkeypatch.setattr(DraftCost, "trusted", SPARE_ROWS)
    monkeypatch.setattr(DraftCost, "relative", lambda *_: (0.05, 0.05))
    monkeypatch.setattr(DraftPolicy, "note_rounds", lambda *_: None)
    monkeypatch.setattr(
        DraftPolicy, "spend", lambda self, seconds: spend(self, 0.005 if seconds else 0.0)
    )
    monkeypatch.setattr(DraftPolicy, "note_read", lambda *_: None)


def assume_quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a cache on disk neither give up nor begin to write by the clock; see steady_disk."""
    for seconds in ("_SETTLE_S", "_IDLE_S"):
        monkeypatch.setattr(disk_writer, seconds, 10 * WAIT)
    for seconds in ("_OPENING_S", "_CLOSING_S"):
        monkeypatch.setattr(disk_cache, seconds, WAIT)
    monkeypatch.setattr(disk_reader, "_PATIENCE_S", WAIT)
    monkeypatch.setattr(disk_reader, "_FIRST_RATE", 1e18)
    monkeypatch.setattr(disk_reader, "_TELLING", 1 << 62)


def recorded_steps(engine: Engine) -> list[list[int]]:
    """A list that grows with each step from here on: the sequence of each token of its batch."""
    context, steps = engine._scheduler._context, list[list[int]]()
    real: Callable[[Batch, int], int] = context.decode

    def decode(batch: Batch, count: int) -> int:
        steps.append(batch.seq[:count].tolist())
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    return steps


@contextmanager
def standing(engine: Engine) -> Iterator[None]:
    """Let a stream run and hold its next step: what is submitted meanwhile is admitted together."""
    context = engine._scheduler._context
    real = context.decode
    reached, go_on = threading.Event(), threading.Event()
    running = list[Generation]()

    def decode(batch: Batch, count: int) -> int:
        if running and running[0].usage.completion_tokens:
            reached.set()
            assert go_on.wait(WAIT)
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    running.append(engine.submit([3], greedy(None)))
    try:
        assert reached.wait(WAIT)
        yield
    finally:
        context.decode = real  # type: ignore[method-assign]
        go_on.set()
        running[0].cancel()


@contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """Hold the next step until the block ends; yields an event that is set when the step begins."""
    context = engine._scheduler._context
    real = context.decode
    reached, go_on = threading.Event(), threading.Event()

    def decode(batch: Batch, count: int) -> int:
        reached.set()
        assert go_on.wait(WAIT)
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    try:
        yield reached
    finally:
        context.decode = real  # type: ignore[method-assign]
        go_on.set()


@contextmanager
def streaming(engine: Engine, count: int, watch: Callable[[Engine], int]) -> Iterator[list[int]]:
    """Let streams run, and hold the first step in which all of them decode until the block ends.

    Yields a list to which each step adds what `watch` returns, from that one on until one ends.
    """
    context = engine._scheduler._context
    real = context.decode
    reached, go_on = threading.Event(), threading.Event()
    streams, watched = list[Generation](), list[int]()

    def decode(batch: Batch, rows: int) -> int:
        alive = [each for each in streams if each.usage.completion_tokens and not each.done]
        if len(alive) == count:
            watched.append(watch(engine))
            reached.set()
            assert go_on.wait(WAIT)
        return real(batch, rows)

    context.decode = decode  # type: ignore[assignment, method-assign]
    for number in range(count):
        streams.append(engine.submit([3 + number], greedy(None)))
    try:
        assert reached.wait(WAIT)
        yield watched
    finally:
        go_on.set()
