"""Speculation: texts stay the same, drafts pay or stop, the cache is rolled back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, SamplingParams
from cllm.models import demo_path
from tests.engine.engine_helpers import Loader, Watched, greedy

RHYME = "The wheels on the bus go round and round, round and round, round and round. " * 4


def generate(path: Path, draft_max: int, **params: Any) -> tuple[str, int, int]:
    """The text, drafted tokens and accepted ones."""
    with Engine.load(path, parallel=1, ctx_size=1024, draft_max=draft_max) as engine:
        for _ in range(3):  # a plain step must have been measured before anything is drafted
            engine.generate("x", max_tokens=4)
        generation = engine.submit(RHYME, SamplingParams(**params))
        text = generation.result().text
        return text, generation.guessed, generation.guessed_right


@pytest.mark.usefixtures("steady_costs")
@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 0.7, "seed": 11},
        {"temperature": 0, "repetition_penalty": 1.1},
        {"temperature": 0, "record_tokens": True},
    ],
)
def test_the_text_is_the_same_with_and_without(
    memoryless_path: Path, params: dict[str, Any]
) -> None:
    plain, none, _ = generate(memoryless_path, 0, max_tokens=200, ignore_eos=True, **params)
    ahead, drafted, accepted = generate(
        memoryless_path, 16, max_tokens=200, ignore_eos=True, **params
    )
    assert none == 0
    assert drafted > 0 and accepted <= drafted
    assert ahead == plain


@pytest.mark.usefixtures("steady_costs")
def test_counts_and_ends_are_exact(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=512)
    engine.generate("x", max_tokens=8)
    done = engine.generate(RHYME, max_tokens=77, temperature=0, ignore_eos=True)
    assert (done.usage.completion_tokens, done.finish_reason) == (77, "length")
    assert engine.stats().guessed_right > 0
    stop = done.text[60:64]
    cut = engine.generate(RHYME, max_tokens=77, temperature=0, ignore_eos=True, stop=stop)
    assert cut.text == done.text[: done.text.index(stop)]
    full = engine.generate(RHYME, temperature=0, ignore_eos=True)
    assert full.usage.prompt_tokens + full.usage.completion_tokens == 512


def test_a_rejected_draft_is_not_reused_by_the_next(load: Loader) -> None:
    engine = load(demo_path(), parallel=1, ctx_size=1024)
    engine.generate("Once", max_tokens=8)
    first = engine.generate(RHYME, max_tokens=60, temperature=0.9, seed=3, ignore_eos=True)
    prompt = [*engine.tokenize(RHYME), *engine.tokenize(first.text, add_special=False)]
    again = engine.generate(prompt, max_tokens=20, temperature=0)
    fresh = load(demo_path(), parallel=1, ctx_size=1024, draft_max=0)
    assert again.text == fresh.generate(prompt, max_tokens=20, temperature=0).text


def test_several_sequences_draft_side_by_side(load: Loader, memoryless_path: Path) -> None:
    alone = load(memoryless_path, parallel=1, ctx_size=512, draft_max=0)
    params = SamplingParams(max_tokens=120, temperature=0, ignore_eos=True)
    prompts = [RHYME, RHYME[10:], "la la la la la la la la " * 5]
    expected = [alone.submit(prompt, params).result().text for prompt in prompts]
    for unified in (False, True):
        engine = load(memoryless_path, parallel=3, ctx_size=512, kv_unified=unified)
        generations = [engine.submit(prompt, params) for prompt in prompts]
        assert [g.result().text for g in generations] == expected


@pytest.mark.usefixtures("steady_costs")
def test_a_cancelled_draft_frees_its_slot(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=1024, context_shift=True)
    engine.generate("x", max_tokens=8)
    watched = Watched(engine, RHYME, greedy(None))
    watched.wait_until(lambda: watched.generation.guessed > 0)
    watched.generation.cancel()
    watched.generation.wait()
    assert watched.generation.finish_reason == "cancelled"
    assert engine.generate("Hello", max_tokens=4, ignore_eos=True).usage.completion_tokens == 4
