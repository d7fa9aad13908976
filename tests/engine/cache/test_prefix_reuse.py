"""A cached prefix is not computed again, and the text is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine
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
    engine = reusing(parallel=3, ctx_size=1024, context_shift=True)
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
def test_a_memory_that_cannot_go_back_begins_at_a_checkpoint_or_at_the_start(
    load: Loader, model_path: Path, tmp_path: Path, unified: bool
) -> None:
    recurrent = tmp_path / "recurrent.gguf"
    write_recurrent(model_path, recurrent)

    def fresh(prompt: list[int]) -> str:
        engine = load(recurrent, parallel=1, ctx_size=512)
        return finished(engine.submit(prompt, greedy(20))).text

    for cache_ram in (None, 0):
        engine = load(recurrent, parallel=3, ctx_size=512, kv_unified=unified, cache_ram=cache_ram)
        prompt = engine.tokenize(LONG)
        running = Watched(engine, prompt, greedy(None))
        running.wait_for_tokens(3)
        branch = [*prompt[:-3], 40, 41]
        cached = 0 if cache_ram == 0 else len(prompt) - 4
        for _ in range(2):
            done = finished(engine.submit(branch, greedy(20)))
            assert (done.usage.cached_tokens, done.text) == (cached, fresh(branch))
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


def test_whoever_wants_nothing_reused_reads_its_whole_prompt(reusing: Loader) -> None:
    engine = reusing(parallel=2, ctx_size=512)
    first = finished(engine.submit(LONG, greedy(20)))
    again = finished(engine.submit(LONG, greedy(20), fresh=True))
    assert again.usage.cached_tokens == 0 and again.text == first.text


def test_a_slot_can_be_chosen(reusing: Loader) -> None:
    engine = reusing(parallel=3, ctx_size=512)
    texts = set()
    for slot in (2, 0, 1, 2):
        generation = engine.submit(LONG, greedy(20), slot=slot)
        texts.add(finished(generation).text)
        assert generation.slot == slot
        told = engine.slots()[slot]
        assert told.generation is generation and not told.busy
        assert told.tokens == generation.usage.prompt_tokens + 19
    assert len(texts) == 1
