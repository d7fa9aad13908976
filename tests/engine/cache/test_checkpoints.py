"""Recurrent and hybrid models reuse prefixes at checkpoints, and their texts stay the same."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams
from cllm.engine.cache.checkpoints import Checkpoints
from cllm.engine.sharing import COMMON, Scope
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy, standing
from tests.engine.engine_models import write_hybrid, write_mixed, write_recurrent
from tests.engine.hybrid_models import (
    write_granite_hybrid,
    write_mamba2,
    write_nemotron_h,
    write_qwen3next,
)

SYSTEM = [20 + i % 300 for i in range(200)]
QUESTIONS = [[330 + i, 340 + i, 350 + i] * 8 for i in range(4)]

Fresh = Callable[..., str]


@pytest.fixture(
    scope="module",
    params=[
        (write_hybrid, False),
        (write_hybrid, True),
        (write_mixed, True),
        (write_recurrent, False),
        (write_mamba2, False),
        (write_granite_hybrid, True),
        (write_nemotron_h, False),
        (write_qwen3next, True),
    ],
)
def model(
    request: pytest.FixtureRequest, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, bool]:
    """A model, and whether its cache is unified."""
    write, unified = request.param
    target = tmp_path_factory.mktemp("models") / f"{write.__name__.removeprefix('write_')}.gguf"
    write(model_path, target)
    return target, unified


@pytest.fixture
def checked(load: Loader, model: tuple[Path, bool]) -> Loader:
    def loader(**config: Any) -> Engine:
        config = {"ctx_size": 512, "kv_unified": model[1], **config}
        return load(model[0], **PRECISE, **config)

    return loader


@pytest.fixture(scope="module")
def fresh(model: tuple[Path, bool]) -> Iterator[Fresh]:
    with Engine.load(model[0], **PRECISE, parallel=1, ctx_size=512, cache_ram=0) as engine:

        def text(prompt: list[int], count: int = 12, seed: int | None = None) -> str:
            return finished(engine.submit(prompt, params(count, seed), fresh=True)).text

        yield text


def params(count: int, seed: int | None) -> SamplingParams:
    """Greedy, or drawn with a seed."""
    if seed is None:
        return greedy(count)
    return SamplingParams(max_tokens=count, temperature=0.8, seed=seed, ignore_eos=True)


def message(engine: Engine, tokens: list[int]) -> list[int]:
    """A message as chat templates write it."""
    return [*control(engine, "<|im_start|>"), *tokens, *control(engine, "<|im_end|>"), 3]


def opening(engine: Engine) -> list[int]:
    """The beginning of an answer."""
    return [*control(engine, "<|im_start|>"), 5, 3]


def control(engine: Engine, text: str) -> list[int]:
    return engine.tokenize(text, add_special=False, parse_special=True)


def test_the_models_say_different_things(fresh: Fresh) -> None:
    texts = {fresh(SYSTEM + question) for question in QUESTIONS}
    assert len(texts | {fresh(SYSTEM), fresh(SYSTEM[:-1])}) == len(QUESTIONS) + 2


def test_prompts_that_arrive_together_read_their_beginning_once(
    checked: Loader, fresh: Fresh
) -> None:
    for cache_ram in (None, 0):
        engine = checked(parallel=5, cache_ram=cache_ram)
        with standing(engine):
            together = [engine.submit(SYSTEM + question, greedy(12)) for question in QUESTIONS]
        done = [finished(generation) for generation in together]
        assert [d.text for d in done] == [fresh(SYSTEM + question) for question in QUESTIONS]
        assert [d.usage.cached_tokens for d in done] == [0, *[len(SYSTEM)] * 3]


def test_a_shared_system_prompt_is_read_once(checked: Loader, fresh: Fresh) -> None:
    engine = checked(parallel=2)
    system = message(engine, SYSTEM)
    for turn, question in enumerate(QUESTIONS):
        prompt = system + message(engine, question) + opening(engine)
        done = finished(engine.submit(prompt, greedy(12)))
        assert done.text == fresh(prompt)
        cached = done.usage.cached_tokens
        assert cached == (len(SYSTEM) + 1 if turn else 0)  # up to the control token that ends it


def test_without_control_tokens_the_third_prompt_finds_where_the_second_left(
    checked: Loader, fresh: Fresh
) -> None:
    engine = checked(parallel=2)
    for turn, question in enumerate(QUESTIONS):
        done = finished(engine.submit(SYSTEM + question, greedy(12)))
        assert done.text == fresh(SYSTEM + question)
        assert done.usage.cached_tokens == (len(SYSTEM) if turn > 1 else 0)


def test_an_answer_is_made_again_without_reading_the_prompt(checked: Loader, fresh: Fresh) -> None:
    engine = checked(parallel=1)
    prompt = message(engine, SYSTEM) + message(engine, QUESTIONS[0]) + opening(engine)
    for turn in range(3):
        done = finished(engine.submit(prompt, greedy(60)))
        assert done.text == fresh(prompt, 60)
        assert turn == 0 or len(prompt) - 16 <= done.usage.cached_tokens < len(prompt)


def test_a_history_without_the_thinking_reuses_what_was_before_it(
    checked: Loader, fresh: Fresh
) -> None:
    engine = checked(parallel=1)
    history, before = message(engine, SYSTEM), 0
    for question in QUESTIONS[:3]:
        history += message(engine, question)
        prompt = [*history, *opening(engine), 60, 61]  # "<think>", which the history does not have
        done = finished(engine.submit(prompt, greedy(40)))
        assert done.text == fresh(prompt, 40)
        assert done.usage.cached_tokens >= before
        before = len(history) - 16
        history += message(engine, [5, 3, *QUESTIONS[3]])


def test_a_part_of_a_prefix_in_host_memory_is_of_use(checked: Loader, fresh: Fresh) -> None:
    engine = checked(parallel=1)
    other = [400 - i % 300 for i in range(200)]
    finished(engine.submit(SYSTEM + QUESTIONS[0], greedy(12)))
    finished(engine.submit(other, greedy(12)))
    done = finished(engine.submit(SYSTEM + QUESTIONS[0] + QUESTIONS[1], greedy(12)))
    assert done.usage.cached_tokens == len(SYSTEM + QUESTIONS[0]) - 4
    assert done.text == fresh(SYSTEM + QUESTIONS[0] + QUESTIONS[1])


def test_a_conversation_keeps_few_checkpoints_and_always_its_first(
    checked: Loader, fresh: Fresh
) -> None:
    engine = checked(parallel=1)
    talk = message(engine, SYSTEM)
    for i in range(6):
        talk += message(engine, [100 + i] * 30)
        finished(engine.submit(talk + opening(engine), greedy(2)))
    kept = engine._scheduler._cache.checkpoints.within(array("i", talk), COMMON)
    assert len(kept) == Checkpoints.per_prompt
    assert kept[-1].length == len(SYSTEM) + 1
    beginning = talk[: len(SYSTEM) + 9]
    done = finished(engine.submit(beginning, greedy(12)))
    assert done.usage.cached_tokens == len(SYSTEM) + 1 and done.text == fresh(beginning)


def test_checkpoints_count_in_the_budget(checked: Loader) -> None:
    engine = checked(parallel=1)
    finished(engine.submit(SYSTEM, greedy(1)))
    size = engine.stats().cache_ram_bytes
    assert size > 0 and engine.stats().saved_checkpoints == 1
    small = checked(parallel=1, cache_ram=2 * size + size // 2)
    for i in range(4):
        finished(small.submit([400 + i, *SYSTEM], greedy(1)))
        assert small.stats().cache_ram_bytes <= small.stats().cache_ram_limit
    assert small.stats().saved_checkpoints == 4
    none = checked(parallel=1, cache_ram=0)
    finished(none.submit(SYSTEM, greedy(1)))
    assert (none.stats().saved_checkpoints, none.stats().cache_ram_bytes) == (0, 0)


def test_what_belongs_to_another_scope_is_not_used(checked: Loader, fresh: Fresh) -> None:
    engine = checked(parallel=2)
    prompt = SYSTEM + QUESTIONS[0]
    for scope in (Scope("one", ""), Scope("two", "")):
        for cached in (0, len(prompt) - 4):
            done = finished(engine.submit(prompt, greedy(12), scope=scope))
            assert (done.usage.cached_tokens, done.text) == (cached, fresh(prompt))


def test_a_prompt_without_an_answer_is_still_right_afterwards(
    checked: Loader, fresh: Fresh
) -> None:
    engine = checked(parallel=1)
    finished(engine.submit(SYSTEM, greedy(0)))
    for prompt in (SYSTEM, [*SYSTEM[:-1], 7, 8], [*SYSTEM, 7, 8]):
        assert finished(engine.submit(prompt, greedy(12))).text == fresh(prompt)


@pytest.mark.parametrize("seed", [0, 1])
def test_random_requests_say_what_they_say_alone(
    checked: Loader, model: tuple[Path, bool], fresh: Fresh, seed: int
) -> None:
    rng = random.Random(seed)
    config = {"cache_ram": 100_000, "batch_size": 24} if seed else {}
    if model[1] and not seed:
        config = {"kv_cells": 512}
    engine = checked(parallel=4, ctx_size=256, **config)
    texts = [SYSTEM[: rng.randint(70, 150)] for _ in range(2)]
    requests, together = [], []
    for i in range(28):
        prompt = [*rng.choice(texts), *rng.choices(range(300, 420), k=rng.choice([1, 3, 20, 40]))]
        if rng.random() < 0.4:
            prompt = prompt[: rng.randint(len(prompt) // 2, len(prompt))]
        if rng.random() < 0.3:
            at = rng.randrange(len(prompt))
            prompt[at:at] = control(engine, "<|im_end|>")
        texts.append(prompt[:170])
        drawn = i if rng.random() < 0.3 else None
        count = rng.choice([0, 1, 5, 30])
        generation = engine.submit(prompt, params(count, drawn))
        if rng.random() < 0.2:
            generation.cancel()
        else:
            requests.append((prompt, count, drawn))
            together.append(generation)
        if rng.random() < 0.3:
            generation.wait(60)
    for (prompt, count, drawn), generation in zip(requests, together, strict=True):
        assert finished(generation).text == fresh(prompt, count, seed=drawn)
    stats = engine.stats()
    assert stats.failed_decodes == 0 and stats.restored_checkpoints > 3
    assert stats.cache_ram_bytes <= stats.cache_ram_limit


def test_preempted_requests_say_what_they_say_alone(
    load: Loader, model: tuple[Path, bool], fresh: Fresh
) -> None:
    engine = load(model[0], **PRECISE, parallel=4, ctx_size=256, kv_unified=True, kv_cells=300)
    prompts = [[30 + i, *SYSTEM[10 * i : 10 * i + 75]] for i in range(6)]
    together = [engine.submit(prompt, greedy(60)) for prompt in prompts]
    for prompt, generation in zip(prompts, together, strict=True):
        assert finished(generation).text == fresh(prompt, 60)
    assert engine.stats().preemptions > 0 or model[0].stem in ("recurrent", "mamba2")


def test_marks_are_at_the_ends_of_messages_and_where_a_prompt_leaves_another() -> None:
    checkpoints = Checkpoints(8, control_tokens=[9])
    chat = array("i", [1] * 100 + [9] + [2] * 100 + [9, 3, 9, 4, 3])
    assert checkpoints.marks(chat, 0, 0, COMMON) == [100, 201]
    assert checkpoints.marks(chat, 0, 150, COMMON) == [100, 150, 201]
    assert checkpoints.marks(chat, 120, 150, COMMON) == [150, 201]
    assert checkpoints.marks(chat, 190, 205, COMMON) == [190], "no step for a few tokens"
    plain = array("i", [1] * 100)
    assert checkpoints.marks(plain, 0, 0, COMMON) == [96]
    assert checkpoints.marks(plain[:60], 0, 0, COMMON) == [], "too few tokens"
