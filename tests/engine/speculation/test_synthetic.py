"""Synthetic speculation: chance accepts drafted tokens, to measure what drafts would gain."""

from __future__ import annotations

from pathlib import Path

import pytest

from cllm.engine import Constraint, EngineConfig, SamplingParams
from cllm.engine.speculation.chance import Chance
from tests.engine.engine_helpers import Loader, finished, greedy

PROMPT = "I believe the meaning of life is"
ALWAYS, NEVER, FALLING = (1.0,) * 4, (0.0,) * 4, (0.75, 0.5, 0.25, 0.1)
FIVE = Constraint("gbnf", 'root ::= "a"{5,5}')


def test_so_many_tokens_are_accepted_as_the_rates_say() -> None:
    chance, drafts, reached = Chance(FALLING, 1), 20_000, [0, 0, 0, 0]
    for _ in range(drafts):
        for index in range(4):
            if not chance.accepts(index):
                break
            reached[index] += 1
    assert [count / drafts for count in reached] == pytest.approx(FALLING, abs=0.02)


@pytest.mark.parametrize("with_model", [False, True])
@pytest.mark.parametrize("unified", [False, True])
def test_every_draft_is_accepted_and_saves_steps(
    load: Loader, memoryless_path: Path, with_model: bool, unified: bool
) -> None:
    draft = str(memoryless_path) if with_model else None
    engine = load(
        memoryless_path, parallel=2, ctx_size=512, spec_synth_rates=ALWAYS, model_draft=draft,
        kv_unified=unified,
    )  # fmt: skip
    generations = [engine.submit(PROMPT, greedy(40)) for _ in range(2)]
    assert [finished(each).usage.completion_tokens for each in generations] == [40, 40]
    stats = engine.stats()
    assert stats.guessed_right == stats.guessed_tokens >= 2 * 28
    assert all(each.guessed_right == each.guessed > 0 for each in generations)
    assert stats.steps < 40


def test_without_acceptance_the_text_is_the_models(load: Loader, memoryless_path: Path) -> None:
    plain = load(memoryless_path, parallel=1, ctx_size=512, draft_max=0)
    engine = load(memoryless_path, parallel=1, ctx_size=512, spec_synth_rates=NEVER)
    generation = engine.submit(PROMPT, greedy(24))
    assert finished(generation).text == finished(plain.submit(PROMPT, greedy(24))).text
    assert (generation.guessed_right, generation.guessed > 24) == (0, True)


def test_a_seed_repeats_what_is_accepted(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=512, spec_synth_rates=FALLING)
    params = SamplingParams(max_tokens=32, temperature=0.8, seed=7, ignore_eos=True)
    counts = set()
    for _ in range(2):
        generation = engine.submit(PROMPT, params)
        finished(generation)
        counts.add((generation.guessed, generation.guessed_right))
    ((drafted, accepted),) = counts
    assert 0 < accepted < drafted


def test_a_constraint_holds(load: Loader, memoryless_path: Path) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=512, spec_synth_rates=ALWAYS)
    assert engine.generate(PROMPT, max_tokens=8, constraint=FIVE).text == "aaaaa"


@pytest.mark.parametrize(
    ("rates", "draft_max", "named"),
    [
        ((0.5, 0.6), 8, "probabilities"),
        ((1.5,), 8, "probabilities"),
        ((0.5,) * 9, 8, "draft_max=8"),
        ((0.5,), 0, "draft_max=0"),
    ],
)
def test_rates_that_cannot_be_are_refused(
    rates: tuple[float, ...], draft_max: int, named: str
) -> None:
    with pytest.raises(ValueError, match=f"spec_synth_rates.*{named}"):
        EngineConfig(spec_synth_rates=rates, draft_max=draft_max)
