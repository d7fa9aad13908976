"""Steps are ordered so that llama.cpp evaluates prompts in passes with whole tiles of attention."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from pathlib import Path

import pytest

from cllm.engine import Engine
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.generation import Generation
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.scheduling.passes import TILE, Plan, in_passes, whole_passes
from cllm.engine.sequence import Sequence, slot_of
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy, recorded_steps, standing


def planned(engine: Engine, counts: dict[int, int]) -> Plan:
    plan = []
    for slot, count in counts.items():
        made = Sequence([5], SamplingParams(), Generation(1), engine._vocab, 4096, None)
        made.slot = Slot(slot, tokens=array("i"), busy=True)
        plan.append((made, count))
    return plan


def passes_of(plan: Plan, ubatch: int) -> list[dict[int, int]]:
    """The passes that llama.cpp makes of a batch: the rule of llama_batch_allocr::split_equal."""
    left, passes = {slot_of(s).id: n for s, n in plan}, list[dict[int, int]]()
    while left:
        chosen = list[int]()
        for slot in left:
            if not chosen or slot == chosen[-1] + 1:
                chosen.append(slot)
        count = min(*(left[slot] for slot in chosen), max(1, ubatch // len(chosen)))
        passes.append(dict.fromkeys(chosen, count))
        left = {s: n - passes[-1].get(s, 0) for s, n in left.items() if n > passes[-1].get(s, 0)}
    return passes


def test_eight_prompts_of_82_tokens_take_two_passes_without_a_row_outside_of_tiles(
    engine: Engine,
) -> None:
    plan = planned(engine, dict.fromkeys(range(8), 82))
    assert [Counter(each.values()) for each in passes_of(plan, 512)] == [{64: 8}, {18: 8}]
    passes = passes_of(in_passes(plan, 512), 512)
    assert passes == [dict.fromkeys((6, 7), 82), dict.fromkeys(range(6), 82)]


def test_equal_prompts_that_fit_into_a_pass_share_it(engine: Engine) -> None:
    plan = planned(engine, dict.fromkeys(range(8), 64))
    assert passes_of(in_passes(plan, 512), 512) == [dict.fromkeys(range(8), 64)]


def test_parts_of_less_than_a_tile_stay_together(engine: Engine) -> None:
    plan = planned(engine, {0: 40, 1: 38, 2: 100, 3: 9})
    passes = passes_of(in_passes(plan, 512), 512)
    assert passes == [{3: 9}, {2: 100}, {0: 38, 1: 38}, {0: 2}]


def test_no_token_is_lost_and_no_prompt_of_a_tile_is_split_below_one(engine: Engine) -> None:
    rng = random.Random(3)
    for _ in range(300):
        counts = {
            slot: whole_passes(rng.choice((rng.randint(1, 700), 64, 82)), 512)
            for slot in sorted(rng.sample(range(12), rng.randint(1, 9)))
        }
        found = Counter[int]()
        for each in passes_of(in_passes(planned(engine, counts), 512), 512):
            found.update(each)
            assert all(n >= TILE or counts[slot] < TILE for slot, n in each.items()), counts
        assert found == counts


@pytest.mark.parametrize(("count", "now"), [(512, 512), (513, 449), (575, 511), (576, 576)])
def test_the_last_pass_of_a_long_prompt_has_a_tile(count: int, now: int) -> None:
    assert whole_passes(count, 512) == now
    assert count - now in (0, TILE)


def test_texts_of_prompts_in_several_passes_are_those_of_each_alone(
    load: Loader, f32_path: Path
) -> None:
    prompts = [[n, *range(30, 30 + length)] for n, length in enumerate((81, 81, 70, 200, 12, 30))]
    engine = load(f32_path, parallel=7, ctx_size=256, draft_max=0, ubatch_size=128, **PRECISE)
    alone = [finished(engine.submit(p, greedy(8), fresh=True)).text for p in prompts]
    planner = engine._scheduler._planner
    planner._tiles = True
    steps = recorded_steps(engine)
    with standing(engine):
        together = [engine.submit(p, greedy(8), fresh=True) for p in prompts]
    assert [finished(each).text for each in together] == alone
    falls = [step for step in steps if sorted(step) != step]
    assert falls, "a step began another pass at a lower slot"


@pytest.mark.parametrize("ubatch", [16, 33, 63])
def test_passes_of_less_than_a_tile_read_prompts_of_any_length(load: Loader, ubatch: int) -> None:
    engine = load(parallel=2, ctx_size=256, ubatch_size=ubatch, flash_attn="on")
    for length in (ubatch - 1, ubatch, ubatch + 1, TILE, TILE + 1, 3 * ubatch + 5):
        finished(engine.submit([7] * length, greedy(2)))
