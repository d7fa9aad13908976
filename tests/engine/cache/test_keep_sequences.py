"""More sequences stay in the cache than run: conversations return without a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from cllm.engine import Engine
from tests.engine.engine_helpers import PRECISE, Loader, finished, greedy, standing

CONVERSATIONS = 16
RUNNING = 8


def prompt(number: int) -> list[int]:
    return [3 + number, *range(20, 100)]


def turn(engine: Engine, prompts: list[list[int]]) -> list[list[int]]:
    """Submit all at once; return each prompt with its answer."""
    with standing(engine):
        generations = [engine.submit(each, greedy(6, record_tokens=True)) for each in prompts]
    for each in generations:
        finished(each)
    return [
        [*each, *(record.token for record in generation.take_tokens())]
        for each, generation in zip(prompts, generations, strict=True)
    ]


@pytest.mark.parametrize("unified", [False, True])
def test_sixteen_conversations_on_eight_running_sequences_copy_nothing(
    load: Loader, f32_path: Path, unified: bool
) -> None:
    texts = {}
    for keep in (0, CONVERSATIONS + 1 - RUNNING):  # one for the stream that holds the steps
        engine = load(
            f32_path,
            parallel=RUNNING,
            keep_sequences=keep,
            ctx_size=256,
            kv_unified=unified,
            **PRECISE,
        )
        texts[keep] = prompts = [prompt(number) for number in range(CONVERSATIONS)]
        for _ in range(3):
            prompts = turn(engine, [[*each, 5, 6, 7] for each in prompts])
        texts[keep] = prompts
        stats = engine.stats()
        if keep:
            assert stats.saved_prefixes == stats.restored_prefixes == 0
            assert stats.prefix_hits >= 2 * CONVERSATIONS
        else:
            assert stats.saved_prefixes > 0
        engine.close()
    assert len({str(each) for each in texts.values()}) == 1


def test_no_more_than_parallel_run_and_any_kept_slot_can_be_asked_for(
    load: Loader, f32_path: Path
) -> None:
    engine = load(f32_path, parallel=2, keep_sequences=3, ctx_size=256)
    assert len(engine.slots()) == 5
    with standing(engine):
        waiting = [engine.submit([7], greedy(4), slot=slot) for slot in (3, 4)]
    for each in waiting:
        finished(each)
    assert {each.slot for each in waiting} == {3, 4}
    assert engine.stats().slots_total == 2


@pytest.mark.parametrize(
    ("options", "kept"),
    [({}, 0), ({"kv_unified": True}, 4), ({"kv_unified": True, "keep_sequences": 1}, 1)],
)
def test_by_default_a_unified_cache_keeps_as_many_as_run(
    load: Loader, f32_path: Path, options: dict[str, int], kept: int
) -> None:
    engine = load(f32_path, parallel=4, ctx_size=256, **options)
    context = engine.info().context
    assert context.keep_sequences == kept
    assert context.kv_cells == 256 * (4 if options.get("kv_unified") else 4 + kept)
