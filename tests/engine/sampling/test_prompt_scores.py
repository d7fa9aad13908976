"""The tokens of a prompt are scored as llama.cpp alone scores them, whatever else is computed."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cllm.engine import Engine, InvalidRequest, SamplingParams, TokenRecord
from cllm.engine.config import SCORED_ROWS
from cllm.engine.llama import Batch
from cllm.engine.sampling.prompt_scores import PromptScores
from tests.engine.engine_helpers import PRECISE, Loader, Watched, break_decode, finished, greedy
from tests.real_model.reference import Reference

PROMPTS = [
    np.random.default_rng(seed).integers(300, 800, length).tolist()
    for seed, length in enumerate((2, 63, 64, 65, 200))
]
SCORED = SamplingParams(max_tokens=0, prompt_logprobs=2)
NEAR = 1e-3


def test_a_prompt_that_is_evaluated_again_continues_where_it_was() -> None:
    prompt = array("i", [3, 1, 4, 1, 5])
    rows = np.random.default_rng(4).standard_normal((len(prompt), 9)).astype(np.float32)

    def scored(*parts: tuple[int, int]) -> list[TokenRecord]:
        records: list[TokenRecord] = []
        scores = PromptScores(prompt, 1, lambda token: b"%d" % token, records.append)
        for start, end in parts:
            wanted = scores.wanted(start, end)
            scores.take(rows[start:end][[at - start for at in wanted]])
            assert scores.complete == (len(records) == len(prompt))
        return records

    whole = scored((0, 5))
    assert [record.token for record in whole] == prompt.tolist()
    assert scored((0, 2), (2, 3), (0, 1), (1, 4), (4, 5)) == whole


@pytest.fixture(scope="module")
def reference(f32_path: Path) -> Iterator[Reference]:
    reference = Reference(f32_path, ctx_size=512, threads=1, extra_bufts=False, f32_cache=True)
    yield reference
    reference.close()


@pytest.fixture(scope="module")
def precise(f32_path: Path) -> Iterator[Engine]:
    with Engine.load(f32_path, parallel=4, ctx_size=256, kv_unified=True, **PRECISE) as engine:
        yield engine


def check(reference: Reference, prompt: list[int], records: list[TokenRecord]) -> None:
    assert [record.token for record in records] == prompt
    assert math.isnan(records[0].logprob) and records[0].top == ()
    rows = reference.logprobs(prompt)
    for record, row in zip(records[1:], rows, strict=True):
        assert record.logprob == pytest.approx(row[record.token], abs=NEAR)
        assert [logprob for _, logprob in record.top] == pytest.approx(
            np.sort(row)[:-3:-1], abs=NEAR
        )
        better, surely = (row > row[record.token] + far for far in (-NEAR, NEAR))
        assert 1 + surely.sum() <= record.rank <= 1 + better.sum()


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_lone_prompt(precise: Engine, reference: Reference, prompt: list[int]) -> None:
    generation = precise.submit(prompt, SCORED)
    assert finished(generation).finish_reason == "length"
    check(reference, prompt, generation.take_prompt_tokens())
    assert generation.take_tokens() == []
    assert generation.usage.completion_tokens == 0


def test_a_prompt_of_one_token_has_nothing_to_score(precise: Engine) -> None:
    generation = precise.submit([500], SamplingParams(max_tokens=1, prompt_logprobs=1))
    finished(generation)
    (record,) = generation.take_prompt_tokens()
    assert record.token == 500 and math.isnan(record.logprob) and record.rank == 0


def test_a_cached_prompt_is_evaluated_again(precise: Engine, reference: Reference) -> None:
    prompt = PROMPTS[-1]
    finished(precise.submit(prompt, greedy(1)))
    cached = precise.submit(prompt, greedy(1))
    finished(cached)
    assert cached.usage.cached_tokens == len(prompt) - 1, "otherwise nothing was cached"
    scored = precise.submit(prompt, SCORED)
    finished(scored)
    assert scored.usage.cached_tokens == 0
    check(reference, prompt, scored.take_prompt_tokens())
    again = precise.submit(prompt, greedy(1))
    finished(again)
    assert again.usage.cached_tokens == len(prompt) - 1, "others reuse what was scored"


@pytest.mark.parametrize("unified", [True, False])
def test_prompts_next_to_streams_and_to_each_other(
    load: Loader, f32_path: Path, reference: Reference, unified: bool
) -> None:
    engine = load(f32_path, parallel=4, ctx_size=256, kv_unified=unified, **PRECISE)
    streams = [Watched(engine, [7, seed], greedy(None)) for seed in (600, 700)]
    alone = [stream.generation for stream in streams]
    for stream in streams:
        stream.wait_for_tokens(1)
    scored = [engine.submit(prompt, SCORED) for prompt in PROMPTS]
    for prompt, generation in zip(PROMPTS, scored, strict=True):
        finished(generation)
        check(reference, prompt, generation.take_prompt_tokens())
    texts = [finished(generation).text for generation in alone]
    again = [engine.submit([7, seed], greedy(None), fresh=True) for seed in (600, 700)]
    assert [finished(generation).text[:20] for generation in again] == [t[:20] for t in texts]


def test_a_step_has_a_bounded_number_of_rows(load: Loader, f32_path: Path) -> None:
    engine = load(f32_path, parallel=2, ctx_size=512, **PRECISE)
    stream = Watched(engine, [7], greedy(None))
    stream.wait_for_tokens(1)
    context, rows = engine._scheduler._context, list[int]()
    real = context.decode

    def decode(batch: Batch, count: int) -> int:
        rows.append(int(batch.output[:count].sum()))
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    prompt = PROMPTS[-1] * 2
    generation = engine.submit(prompt, SCORED)
    finished(generation)
    stream.generation.cancel()
    assert len(generation.take_prompt_tokens()) == len(prompt)
    assert max(rows) <= SCORED_ROWS // 2 + 2, "a stream's next token waits for a bounded time"


def test_a_scored_prompt_that_loses_its_slot_goes_on(
    load: Loader, f32_path: Path, reference: Reference
) -> None:
    crowded = load(f32_path, parallel=4, ctx_size=256, kv_unified=True, kv_cells=512, **PRECISE)
    others = [crowded.submit([9, seed], greedy(200)) for seed in range(500, 503)]
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True, prompt_logprobs=2)
    generation = crowded.submit(PROMPTS[-1], params)
    for each in [*others, generation]:
        finished(each)
    assert crowded.stats().preemptions > 0, "otherwise this test has tested nothing"
    check(reference, PROMPTS[-1], generation.take_prompt_tokens())


def test_a_step_without_room_is_tried_in_smaller_parts(
    load: Loader, f32_path: Path, reference: Reference
) -> None:
    engine = load(f32_path, parallel=1, ctx_size=256, **PRECISE)
    break_decode(engine, [0, 1, 1, 0])
    generation = engine.submit(PROMPTS[-1], SCORED)
    finished(generation)
    check(reference, PROMPTS[-1], generation.take_prompt_tokens())


def test_named_tokens_come_after_the_alternatives(precise: Engine) -> None:
    params = greedy(3, logprobs=1, logprob_token_ids=(400, 500, 400))
    generation = precise.submit(PROMPTS[1], params)
    finished(generation)
    for record in generation.take_tokens():
        (best, _), *named = record.top
        assert best == record.token
        assert [token for token, _ in named] == [400, 500]
        assert all(logprob <= record.logprob for _, logprob in named)


@pytest.mark.parametrize("fields", [{}, {"logprobs": 1, "sampled_logprobs": True}])
def test_named_tokens_need_the_models_own_logprobs(fields: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match="logprob_token_ids"):
        SamplingParams(logprob_token_ids=(1,), **fields)  # type: ignore[arg-type]
