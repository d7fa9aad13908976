"""Prefixes come back from host memory: exact, within the budget, where it pays."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy, standing, streaming
from tests.engine.engine_models import write_recurrent

FIRST = [20 + i % 300 for i in range(300)]
SECOND = [400 - i % 300 for i in range(300)]


@pytest.fixture(params=["split", "unified"])
def saving(request: pytest.FixtureRequest, load: Loader, f32_path: Path) -> Loader:
    def loader(**config: int) -> Engine:
        unified = request.param == "unified"
        return load(
            f32_path, **PRECISE, ctx_size=1024, kv_unified=unified, keep_sequences=0, **config
        )

    return loader


@pytest.fixture
def fresh(load: Loader, f32_path: Path) -> Callable[..., str]:
    engine = load(f32_path, **PRECISE, parallel=1, ctx_size=1024, cache_ram=0)

    def text(prompt: list[int], count: int = 12) -> str:
        return finished(engine.submit(prompt, greedy(count))).text

    return text


def test_a_conversation_comes_back_after_its_slot_was_given_up(
    saving: Loader, fresh: Callable[..., str]
) -> None:
    engine = saving(parallel=1)
    finished(engine.submit(FIRST, greedy(12)))
    finished(engine.submit(SECOND, greedy(12)))
    back = finished(engine.submit([*FIRST, 7, 8, 9], greedy(12)))
    assert back.usage.cached_tokens >= len(FIRST)
    assert back.text == fresh([*FIRST, 7, 8, 9])
    stats = engine.stats()
    assert (stats.saved_prefixes, stats.restored_prefixes) == (2, 1)
    assert stats.restored_tokens == back.usage.cached_tokens
    assert 0 < stats.cache_ram_bytes <= stats.cache_ram_limit


@pytest.mark.parametrize("room", [1.1, 1.4, 1.8])
def test_a_prefix_is_restored_unchanged_where_the_slot_is_saved_in_its_place(
    saving: Loader, fresh: Callable[..., str], room: float
) -> None:
    measured = saving(parallel=1)
    for prompt in (FIRST, SECOND):
        finished(measured.submit(prompt, greedy(12)))
    engine = saving(parallel=1, cache_ram=int(room * measured.stats().cache_ram_bytes))
    for prompt in (FIRST, SECOND):
        finished(engine.submit(prompt, greedy(12)))
    prompt = [*FIRST[:150], 7, 8, 9]  # uses half of it, so it stays where it can
    back = finished(engine.submit(prompt, greedy(12)))
    assert back.usage.cached_tokens == 150
    assert back.text == fresh(prompt)


def test_a_part_of_a_saved_prefix_is_of_use_and_the_rest_stays(
    saving: Loader, fresh: Callable[..., str]
) -> None:
    engine = saving(parallel=1)
    finished(engine.submit(FIRST, greedy(12)))
    finished(engine.submit(SECOND, greedy(12)))
    branch = [*FIRST[:200], 7, 8]
    done = finished(engine.submit(branch, greedy(12)))
    assert (done.usage.cached_tokens, done.text) == (200, fresh(branch))
    whole = finished(engine.submit([*FIRST, 9], greedy(12)))
    assert (whole.usage.cached_tokens >= len(FIRST), whole.text) == (True, fresh([*FIRST, 9]))


def test_conversations_in_turn_on_fewer_slots_are_each_read_once(
    saving: Loader, fresh: Callable[..., str]
) -> None:
    engine = saving(parallel=2)
    talks = [[450 + i, *FIRST[:200]] for i in range(5)]
    for turn in range(3):
        for talk in talks:
            done = finished(engine.submit(talk, greedy(1)))
            assert done.text == fresh(talk, 1)
            assert done.usage.cached_tokens == (len(talk) - 70 if turn else 0)
            talk.extend(SECOND[:70])
    assert engine.stats().restored_prefixes >= 6


def test_without_a_budget_nothing_is_saved(saving: Loader) -> None:
    engine = saving(parallel=1, cache_ram=0)
    finished(engine.submit(FIRST, greedy(2)))
    finished(engine.submit(SECOND, greedy(2)))
    assert finished(engine.submit(FIRST, greedy(2))).usage.cached_tokens == 0
    assert (engine.stats().saved_prefixes, engine.stats().cache_ram_bytes) == (0, 0)


def test_the_budget_holds_and_the_oldest_goes(saving: Loader) -> None:
    one = saving(parallel=1)
    for prompt in (FIRST, SECOND):
        finished(one.submit(prompt, greedy(1)))
    size = one.stats().cache_ram_bytes
    engine = saving(parallel=1, cache_ram=int(2.5 * size))
    prompts = [[450 + i, *FIRST] for i in range(4)]
    for prompt in prompts:
        finished(engine.submit(prompt, greedy(1)))
    assert engine.stats().evicted_prefixes == 1
    assert engine.stats().cache_ram_bytes <= 2.5 * size
    for prompt in prompts[1:3]:
        again = finished(engine.submit([*prompt, 9], greedy(1)))
        assert again.usage.cached_tokens == len(prompt)
    assert finished(engine.submit(prompts[0], greedy(1))).usage.cached_tokens == 0


def test_a_prefix_larger_than_the_budget_is_not_saved(saving: Loader) -> None:
    engine = saving(parallel=1, cache_ram=1)
    finished(engine.submit(FIRST, greedy(1)))
    finished(engine.submit(SECOND, greedy(1)))
    assert engine.stats().saved_prefixes == 0


def test_a_short_prefix_is_not_worth_saving(saving: Loader) -> None:
    engine = saving(parallel=1)
    for i in range(4):
        finished(engine.submit([450 + i, *FIRST[:30]], greedy(1)))
    assert engine.stats().saved_prefixes == 0


def test_the_end_of_a_recurrent_memory_comes_back_and_its_checkpoints(
    load: Loader, model_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recurrent.gguf"
    write_recurrent(model_path, path)
    engine = load(path, parallel=1, ctx_size=1024)
    finished(engine.submit(FIRST, greedy(1)))
    finished(engine.submit(SECOND, greedy(1)))
    checkpoint = len(FIRST) - 4
    for prompt, cached in (([*FIRST, 7, 8], len(FIRST)), ([*FIRST[:-1], 7, 8], checkpoint)):
        done = finished(engine.submit(prompt, greedy(12)))
        expected = finished(load(path, parallel=1, ctx_size=1024).submit(prompt, greedy(12)))
        assert (done.usage.cached_tokens, done.text) == (cached, expected.text)


def test_kept_prefixes_that_make_room_are_saved(load: Loader, f32_path: Path) -> None:
    engine = load(f32_path, **PRECISE, parallel=4, ctx_size=400, kv_unified=True, kv_cells=512)
    finished(engine.submit(FIRST, greedy(1)))
    finished(engine.submit(SECOND, greedy(1)))
    assert engine.stats().saved_prefixes == 1
    assert finished(engine.submit([*FIRST, 7], greedy(1))).usage.cached_tokens == len(FIRST)


def test_conversations_that_take_turns_and_grow_in_one_slot_stay_exact(
    saving: Loader, fresh: Callable[..., str]
) -> None:
    engine = saving(parallel=1)
    talks = [list(FIRST), list(SECOND)]
    for turn in range(3):
        for talk in talks:
            done = finished(engine.submit(talk, greedy(12)))
            assert done.text == fresh(talk)
            assert turn == 0 or done.usage.cached_tokens > 250
            talk.extend(range(30 + turn, 90 + turn))
    assert engine.stats().restored_prefixes == 4
    prefixes = engine._scheduler._cache.saved
    assert prefixes._spare is not None, "the memory of the last restored one"
    assert all(entry.data.base is not None for entry in prefixes._entries), "with room to grow"


def test_in_a_unified_cache_at_most_one_prefix_is_saved_between_two_steps_of_a_stream(
    load: Loader, f32_path: Path
) -> None:
    engine = load(f32_path, **PRECISE, ctx_size=1024, kv_unified=True, keep_sequences=0, parallel=4)
    with standing(engine):
        old = [engine.submit([5 + n, *FIRST], greedy(4)) for n in range(3)]
    for each in old:
        finished(each)
    with streaming(engine, 1, lambda engine: engine.stats().saved_prefixes) as saved:
        new = [engine.submit([50 + n, *SECOND], greedy(4)) for n in range(3)]
    for each in new:
        finished(each)
    assert saved[0] == 0
    assert saved[-1] > 0
    assert max(after - before for before, after in pairwise(saved)) == 1
