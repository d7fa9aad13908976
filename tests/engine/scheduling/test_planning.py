"""The chunks in which prompts are read next to streams."""

from __future__ import annotations

from collections import Counter

import pytest

from cllm.engine.scheduling.planning import _part
from tests.engine.engine_helpers import (
    WAIT,
    Loader,
    Watched,
    finished,
    greedy,
    held,
    recorded_steps,
)


def pieces(pending: int, room: int, behind: int = 0) -> list[int]:
    taken = []
    while pending:
        taken.append(_part(pending, room, behind))
        behind += taken[-1]
        pending -= taken[-1]
    return taken


def test_what_finds_room_is_read_at_once() -> None:
    assert pieces(100, 100) == [100]


@pytest.mark.parametrize(("pending", "room"), [(2000, 64), (1999, 130), (700, 50), (130, 64)])
def test_behind_the_first_piece_a_prompt_is_read_in_whole_tiles(pending: int, room: int) -> None:
    taken = pieces(pending, room)
    assert sum(taken) == pending
    assert taken[1:] and all(count % 64 == 0 for count in taken[1:])
    assert max(taken) <= max(64, room * 1.5)


def test_where_time_is_short_the_beginning_is_read_in_parts_and_the_rest_in_tiles() -> None:
    taken = pieces(1000, 20)
    assert taken[0] == 16
    assert taken[-1] == 64
    assert all(count > 0 for count in pieces(1000, 1))


@pytest.mark.parametrize("kv_unified", [False, True])
def test_prompts_and_streams_take_turns_where_they_would_not_be_evaluated_together(
    load: Loader, kv_unified: bool
) -> None:
    engine = load(parallel=2, ctx_size=512, kv_unified=kv_unified, draft_max=0, context_shift=True)
    stream = Watched(engine, [3, 4, 5], greedy(None))
    stream.wait_for_tokens(1)
    recorded = recorded_steps(engine)
    with held(engine) as reached:  # the stream must not end before the prompt is there
        assert reached.wait(WAIT)
        prompt = engine.submit(list(range(300, 600)), greedy(2))
    finished(prompt)
    stream.generation.cancel()
    stream.wait_until_done()
    steps = [Counter(step) for step in recorded]
    first = next(i for i, step in enumerate(steps) if max(step.values()) > 1)
    last = max(i for i, step in enumerate(steps) if max(step.values()) > 1)
    reading = [step for step in steps[first : last + 1] if max(step.values()) > 1]
    assert all(len(step) == (2 if kv_unified else 1) for step in reading)
    if not kv_unified:
        assert all(step not in reading for step in steps[first + 1 : last + 1 : 2])
        assert last - first == 2 * (len(reading) - 1), "one step of the stream between two"


def test_a_prompt_that_is_in_the_cache_joins_the_streams_at_once(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=512, draft_max=0, context_shift=True)
    prompt = list(range(300, 360))
    finished(engine.submit(prompt, greedy(2)))
    stream = Watched(engine, [3, 4, 5], greedy(None))
    stream.wait_for_tokens(1)
    steps = recorded_steps(engine)
    with held(engine) as reached:
        assert reached.wait(WAIT)
        again = engine.submit(prompt, greedy(2))
    finished(again)
    stream.generation.cancel()
    stream.wait_until_done()
    assert again.usage.cached_tokens == len(prompt) - 1
    assert steps.count([0, 1]) == 2, "a step for each of its two tokens"
    assert all(step == [0, 1] or (len(step) == 1 and step != [0]) for step in steps)


def test_a_prompt_that_is_read_at_once_tells_what_prompts_cost(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=512)
    pacer = engine._scheduler._planner._pacer
    unknown = pacer.budget(1, 1, 512)
    finished(engine.submit(list(range(300, 360)), greedy(4)))
    assert pacer.budget(1, 1, 512) > unknown
