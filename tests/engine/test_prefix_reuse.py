"""What is already in the cache is not computed again, and nobody can tell from the text."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
from cllm.engine.prefix_cache import PrefixCache, common_prefix
from tests.engine.engine_helpers import PRECISE, Loader, Watched, finished, greedy
from tests.engine.engine_models import write_recurrent

LONG = "The river runs through the old town, and the letter says so. " * 6


@pytest.fixture(params=["split", "unified"])
def reusing(request: pytest.FixtureRequest, load: Loader, f32_path: Path) -> Loader:
    """Loads an engine that reuses prefixes, in either layout of the cache."""

    def loader(**config: Any) -> Engine:
        return load(f32_path, **PRECISE, **config, kv_unified=request.param == "unified")

    return loader


@pytest.fixture
def fresh(load: Loader, f32_path: Path) -> Callable[..., str]:
    """Generates with an engine that has seen nothing before."""

    def text(prompt: str | list[int], count: int) -> str:
        engine = load(f32_path, **PRECISE, parallel=1, ctx_size=512)
        return finished(engine.submit(prompt, greedy(count))).text

    return text


def test_the_same_prompt_again_evaluates_only_its_last_token(reusing: Loader) -> None:
    engine = reusing(parallel=1, ctx_size=512)
    first = finished(engine.submit(LONG, greedy(20)))
    again = finished(engine.submit(LONG, greedy(20)))
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.text == first.text


def test_a_conversation_that_goes_on_reuses_the_answer_too(
    reusing: Loader, fresh: Callable[..., str]
) -> None:
    engine = reusing(parallel=2, ctx_size=512)
    prompt = engine.tokenize(LONG)
    answer = [40, 41, 42, 43]  # made sure of by a bias towards one after the other
    for token in answer:
        params = greedy(1, logit_bias={token: 100.0})
        finished(engine.submit(prompt, params))
        prompt.append(token)
    longer = [*prompt, *engine.tokenize("And then?", add_special=False)]
    reused = finished(engine.submit(longer, greedy(20)))
    assert reused.usage.cached_tokens >= len(prompt) - 1
    assert reused.text == fresh(longer, 20)


def test_a_prefix_is_copied_from_a_slot_that_is_still_running(
    reusing: Loader, fresh: Callable[..., str]
) -> None:
    engine = reusing(parallel=3, ctx_size=1024)
    running = Watched(engine, LONG + "One", greedy(None))
    running.wait_for_tokens(3)
    copied = finished(engine.submit(LONG + "Two", greedy(20)))
    assert not running.generation.done
    assert copied.usage.cached_tokens >= len(engine.tokenize(LONG)) - 2
    assert copied.text == fresh(LONG + "Two", 20)
    running.generation.cancel()


def test_the_source_of_a_copy_is_not_disturbed(reusing: Loader, fresh: Callable[..., str]) -> None:
    engine = reusing(parallel=4, ctx_size=512)
    source = Watched(engine, LONG + "One", greedy(40))
    source.wait_for_tokens(2)
    others = [engine.submit(LONG + f"Other {i}", greedy(5)) for i in range(6)]
    assert finished(source.generation).text == fresh(LONG + "One", 40)
    for i, other in enumerate(others):
        assert finished(other).text == fresh(LONG + f"Other {i}", 5)


def test_a_cancelled_request_leaves_its_prefix(reusing: Loader, fresh: Callable[..., str]) -> None:
    engine = reusing(parallel=1, ctx_size=512)
    watched = Watched(engine, LONG, greedy(None))
    watched.wait_for_tokens(3)
    watched.generation.cancel()
    again = finished(engine.submit(LONG, greedy(20)))
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1
    assert again.text == fresh(LONG, 20)


def test_nothing_in_common_reuses_nothing(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=512)
    finished(engine.submit([5, 6, 7, 8], greedy(5)))
    assert finished(engine.submit([9, 6, 7, 8], greedy(5))).usage.cached_tokens == 0


def test_hits_are_counted(engine: Engine) -> None:
    before = engine.stats().cached_tokens
    total = sum(finished(engine.submit(LONG, greedy(2))).usage.cached_tokens for _ in range(3))
    assert engine.stats().cached_tokens - before == total > 0


@pytest.mark.parametrize("unified", [False, True])
def test_a_memory_that_cannot_go_back_is_computed_from_the_start(
    load: Loader, model_path: Path, tmp_path: Path, unified: bool
) -> None:
    recurrent = tmp_path / "recurrent.gguf"
    write_recurrent(model_path, recurrent)

    def fresh(prompt: list[int]) -> str:
        engine = load(recurrent, parallel=1, ctx_size=512)
        return finished(engine.submit(prompt, greedy(20))).text

    engine = load(recurrent, parallel=3, ctx_size=512, kv_unified=unified)
    prompt = engine.tokenize(LONG)
    running = Watched(engine, prompt, greedy(None))
    running.wait_for_tokens(3)
    branch = [*prompt[:-3], 40, 41]
    for _ in range(2):
        done = finished(engine.submit(branch, greedy(20)))
        assert (done.usage.cached_tokens, done.text) == (0, fresh(branch))
    running.generation.cancel()


def test_a_memory_that_cannot_go_back_can_still_go_on(
    load: Loader, model_path: Path, tmp_path: Path
) -> None:
    recurrent = tmp_path / "recurrent.gguf"
    write_recurrent(model_path, recurrent)
    engine = load(recurrent, parallel=1, ctx_size=512)
    prompt = engine.tokenize(LONG)
    finished(engine.submit(prompt, greedy(1)))
    longer = [*prompt, 40, 41]
    done = finished(engine.submit(longer, greedy(20)))
    assert done.usage.cached_tokens == len(prompt)
    expected = finished(load(recurrent, parallel=1, ctx_size=512).submit(longer, greedy(20)))
    assert done.text == expected.text


def tokens(*values: int) -> array[int]:
    return array("i", values)


def filled(cache: PrefixCache, *contents: array[int]) -> PrefixCache:
    for slot, content in zip(cache.slots, contents, strict=False):
        cache.occupy(slot, content, len(content))
        cache.release(slot)
    return cache


def test_common_prefix_counts_what_the_cache_holds() -> None:
    assert common_prefix(tokens(1, 2, 3, 4), 4, tokens(1, 2, 9, 4), 4) == 2
    assert common_prefix(tokens(1, 2, 3, 4), 2, tokens(1, 2, 3, 4), 4) == 2
    assert common_prefix(tokens(1, 2, 3), 3, tokens(1, 2, 3), 2) == 2
    assert common_prefix(tokens(), 0, tokens(1), 1) == 0


def test_the_slot_with_the_longest_prefix_is_taken() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 2), tokens(1, 2, 3, 4), tokens(1, 9))
    placement = cache.choose(tokens(1, 2, 3, 4, 5))
    assert (placement.slot.id, placement.reuse, placement.source) == (1, 4, None)


def test_a_long_conversation_is_not_given_up_for_a_short_common_beginning() -> None:
    cache = filled(PrefixCache(2, 1, False), tokens(7, 7, 7), tokens(1, 2, *range(50, 90)))
    placement = cache.choose(tokens(1, 2, 3, 4))
    assert (placement.slot.id, placement.reuse) == (0, 2)
    assert placement.source is cache.slots[1]


def test_a_copy_that_saves_too_little_is_not_made() -> None:
    cache = filled(PrefixCache(2, 5, False), tokens(7, 7, 7), tokens(1, 2, *range(50, 90)))
    placement = cache.choose(tokens(1, 2, 3, 4))
    assert (placement.slot.id, placement.reuse, placement.source) == (0, 0, None)


def test_the_least_recently_used_slot_is_given_up() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 1), tokens(2, 2), tokens(3, 3))
    cache.occupy(cache.slots[0], tokens(1, 1), 2)
    cache.release(cache.slots[0])
    assert cache.choose(tokens(9, 9)).slot.id == 1
    assert cache.oldest_idle() is cache.slots[1]


def test_an_empty_slot_is_preferred_to_giving_one_up() -> None:
    cache = filled(PrefixCache(3, 1, False), tokens(1, 1), tokens(2, 2))
    assert cache.choose(tokens(9, 9)).slot.id == 2


def test_running_slots_are_kept_side_by_side_where_that_matters() -> None:
    cache = PrefixCache(6, 1, True)
    cache.occupy(cache.slots[3], tokens(1, 1), 2)
    assert cache.choose(tokens(9, 9)).slot.id in (2, 4)


def test_a_busy_slot_is_never_taken() -> None:
    cache = filled(PrefixCache(2, 100, False), tokens(1, 2, 3, 4), tokens(5, 5))
    cache.slots[0].busy = True
    assert cache.choose(tokens(1, 2, 3, 4, 5)).slot.id == 1
