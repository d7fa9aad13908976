"""Speculation under pressure: small batches, no room, stop strings, failures."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from cllm.engine import EngineError, Generation, SamplingParams
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafter import Drafter
from cllm.engine.speculation.speculation import Speculation
from tests.engine.engine_helpers import WAIT, Loader, Watched, break_decode, finished, greedy

pytestmark = pytest.mark.usefixtures("steady_costs")

RHYME = "The wheels on the bus go round and round, round and round, round and round. " * 2
PROMPTS = [RHYME[i:] for i in range(8)]


def sampled(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=150, temperature=0.1, seed=seed, ignore_eos=True)


def expected(load: Loader, path: Path) -> list[str]:
    alone = load(path, parallel=1, ctx_size=512, draft_max=0)
    generations = [alone.submit(prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    return [finished(generation).text for generation in generations]


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("parallel", [1, 3])
def test_more_is_never_drafted_than_a_batch_holds(
    load: Loader, memoryless_path: Path, parallel: int, unified: bool
) -> None:
    engine = load(
        memoryless_path,
        parallel=parallel,
        ctx_size=512,
        kv_unified=unified,
        batch_size=5,
        ubatch_size=5,
    )
    texts = expected(load, memoryless_path)
    together = [engine.submit(prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    assert [finished(generation).text for generation in together] == texts
    assert engine.stats().guessed_right > 0


def test_drafts_are_given_up_before_requests_where_there_is_no_room(
    load: Loader, memoryless_path: Path
) -> None:
    texts = expected(load, memoryless_path)
    engine = load(memoryless_path, parallel=4, ctx_size=512, kv_unified=True, kv_cells=512)
    together = [engine.submit(prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    assert [finished(generation).text for generation in together] == texts
    stats = engine.stats()
    assert stats.preemptions > 0 and stats.guessed_right > 0


@pytest.mark.parametrize("unified", [False, True])
def test_no_room_at_any_step_changes_no_text(
    load: Loader, memoryless_path: Path, unified: bool
) -> None:
    texts = expected(load, memoryless_path)
    engine = load(memoryless_path, parallel=3, ctx_size=512, kv_unified=unified)

    def now_and_then() -> Iterator[int]:
        rng = random.Random(1)
        while True:
            yield int(engine.stats().slots_busy > 1 and rng.random() < 0.2)

    break_decode(engine, now_and_then())
    together = [engine.submit(prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    assert [finished(generation).text for generation in together] == texts
    assert engine.stats().guessed_right > 0


@pytest.mark.parametrize(
    "outcomes", [[-3, -3, -3], [ZeroDivisionError("surprise")]], ids=["code", "exception"]
)
def test_a_step_with_drafts_that_fails_ends_only_the_requests_in_it(
    load: Loader, memoryless_path: Path, outcomes: list[int | Exception]
) -> None:
    """After a code, each sequence is tried alone; then these fail too."""
    texts = expected(load, memoryless_path)
    engine = load(memoryless_path, parallel=2, ctx_size=512, context_shift=True)
    hit = [Watched(engine, prompt, greedy(None)) for prompt in PROMPTS[:2]]
    hit[1].wait_for_tokens(1)
    hit[0].wait_until(lambda: engine.stats().guesses > 0)
    break_decode(engine, outcomes)
    for watched in hit:
        with pytest.raises(EngineError):
            finished(watched.generation)
    after = [engine.submit(prompt, sampled(i)) for i, prompt in enumerate(PROMPTS)]
    assert [finished(generation).text for generation in after] == texts


def test_a_step_with_drafts_that_llama_cpp_refuses_is_tried_one_by_one(
    load: Loader, memoryless_path: Path
) -> None:
    engine = load(memoryless_path, parallel=2, ctx_size=512)
    alone = [finished(engine.submit(prompt, greedy(200))).text for prompt in PROMPTS[:2]]
    hit = [Watched(engine, prompt, greedy(200)) for prompt in PROMPTS[:2]]
    hit[0].wait_until(lambda: engine.stats().guesses > 0)
    break_decode(engine, [-3])
    assert [finished(watched.generation).text for watched in hit] == alone


def test_what_follows_a_stop_string_in_an_accepted_draft_is_in_no_saved_prefix(
    load: Loader, memoryless_path: Path, tmp_path: Path
) -> None:
    engine = load(memoryless_path, parallel=1, ctx_size=512, slot_save_path=str(tmp_path))
    whole = finished(engine.submit(RHYME, greedy(200, record_tokens=True)))
    ahead = False
    for end in range(90, 110):  # some of these places are in the middle of a draft
        stop = whole.text[:end]
        generation = engine.submit(RHYME, greedy(200, record_tokens=True, stop=(stop,)))
        finished(generation)
        tokens = [*engine.tokenize(RHYME), *(r.token for r in generation.take_tokens())]
        ahead |= generation.guessed > 0
        session = engine.sessions.save(0, "talk.bin").result(WAIT)
        assert session.n_tokens < len(tokens)
        engine.sessions.restore(0, "talk.bin").result(WAIT)
        again = finished(engine.submit([*tokens, 7, 8, 9], greedy(4)))
        assert again.usage.cached_tokens == session.n_tokens
    assert ahead


def test_a_plain_step_is_measured_now_and_then(load: Loader, memoryless_path: Path) -> None:
    vocab = load(memoryless_path, parallel=1, ctx_size=512)._vocab
    speculation = Speculation(16, split_cache=False)
    prompt, params = [1, 2, 3, 4] * 20, SamplingParams()
    sequence = Sequence(
        prompt, params, Generation(len(prompt)), vocab, 512, None, drafter=Drafter()
    )
    plain = 0
    for _ in range(200):
        speculation.draft([sequence], 512, 0.1)
        plain += not sequence.rollback()
    assert 2 <= plain <= 20
