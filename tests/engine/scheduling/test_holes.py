"""A slot between those that decode gets a token, so that one pass evaluates all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.engine.engine_helpers import (
    PRECISE,
    Loader,
    finished,
    greedy,
    recorded_steps,
    standing,
)

TALK = [*range(30, 60)]
OPTIONS: dict[str, Any] = {
    "parallel": 4,  # one for the stream that holds the steps
    "keep_sequences": 0,
    "ctx_size": 512,
    "draft_max": 0,
    **PRECISE,
}


@pytest.mark.parametrize("unified", [False, True])
def test_a_hole_is_filled_in_a_split_cache_and_its_slot_stays_as_it_was(
    load: Loader, f32_path: Path, unified: bool
) -> None:
    engine = load(f32_path, kv_unified=unified, **OPTIONS)
    steps = recorded_steps(engine)
    with standing(engine):
        ends = {n: engine.submit([n, *TALK], greedy(50), slot=n) for n in (1, 3)}
        middle = engine.submit([2, *TALK], greedy(8), slot=2)
    told = finished(middle)
    texts = {n: finished(each).text for n, each in ends.items()}
    assert (steps.count([1, 2, 3]) > 20, steps.count([1, 3]) > 20) == (not unified, unified)

    again = finished(engine.submit([2, *TALK], greedy(8), slot=2))
    assert (again.text, again.usage.cached_tokens) == (told.text, len(TALK))
    fresh = load(f32_path, kv_unified=unified, **OPTIONS)
    for n, text in texts.items():
        assert finished(fresh.submit([n, *TALK], greedy(50))).text == text


def test_a_slot_that_holds_more_than_the_streams_is_left_out(load: Loader, f32_path: Path) -> None:
    engine = load(f32_path, **OPTIONS)
    finished(engine.submit([7] * 300, greedy(2), slot=2))
    steps = recorded_steps(engine)
    with standing(engine):
        ends = [engine.submit([n, *TALK], greedy(50), slot=n) for n in (1, 3)]
    for each in ends:
        finished(each)
    assert steps.count([1, 3]) > 20
    assert [1, 2, 3] not in steps
