"""A deadline counts from submission, waiting included, and ends only its own request."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from cllm.engine import DeadlineExceeded, Engine, InvalidRequest
from tests.engine.engine_helpers import Loader, Watched, finished, greedy


def test_a_running_generation_ends_at_its_deadline(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048)
    scheduler: Any = engine._scheduler
    plan = scheduler._plan

    def planned() -> Any:  # a short deadline could pass before the first token on a busy machine
        for sequence in scheduler._running:
            if sequence.generation.usage.completion_tokens:
                sequence.deadline = scheduler._next_deadline = time.monotonic()
        return plan()

    scheduler._plan = planned
    watched = Watched(engine, "Hello", greedy(None), deadline=3600.0)
    watched.wait_until_done()
    generation = watched.generation
    assert generation.finish_reason == "error"
    assert isinstance(generation.error, DeadlineExceeded)
    assert generation.usage.completion_tokens > 0
    assert generation.take(), "what was made in time can be taken"
    with pytest.raises(DeadlineExceeded, match="3600"):
        generation.result(0)


def test_a_waiting_request_ends_at_its_deadline_too(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=2048, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(1)
    waiting = Watched(engine, "World", greedy(1), deadline=0.05)
    waiting.wait_until_done()
    assert isinstance(waiting.generation.error, DeadlineExceeded)
    assert waiting.generation.usage.completion_tokens == 0
    assert not running.generation.done
    running.generation.cancel()


def test_others_are_not_affected(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=2048)
    calm = engine.submit("Hello", greedy(100))
    hasty = engine.submit("World", greedy(None), deadline=0.05)
    assert finished(calm).usage.completion_tokens == 100
    with pytest.raises(DeadlineExceeded):
        finished(hasty)


def test_a_deadline_that_is_met_changes_nothing(engine: Engine) -> None:
    timely = finished(engine.submit("Hello", greedy(10), deadline=3600.0))
    assert timely.text == finished(engine.submit("Hello", greedy(10))).text


@pytest.mark.parametrize("deadline", [0, -1.0, math.inf, math.nan])
def test_a_deadline_must_lie_ahead(engine: Engine, deadline: float) -> None:
    with pytest.raises(InvalidRequest) as caught:
        engine.submit("Hello", deadline=deadline)
    assert caught.value.field == "deadline"
