"""A tenant with more than its share of the slots leaves one to a tenant with less."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cllm.engine import Engine, Generation
from cllm.engine.llama import Batch
from cllm.engine.scheduling import admission
from cllm.engine.sharing import Share
from tests.engine.engine_helpers import PRECISE, WAIT, Loader, Watched, finished, greedy

LONG = [20 + i % 300 for i in range(200)]


@pytest.fixture(params=["split", "unified"])
def four(request: pytest.FixtureRequest, load: Loader, f32_path: Path) -> Engine:
    unified = request.param == "unified"
    return load(
        f32_path,
        **PRECISE,
        parallel=4,
        ctx_size=512,
        kv_unified=unified,
        draft_max=0,
        context_shift=True,
    )


def begun(engine: Engine, tenant: str, count: int) -> list[Generation]:
    """Generations of a tenant that have a token each."""
    watched = [
        Watched(engine, [*LONG, number], greedy(None), tenant=tenant) for number in range(count)
    ]
    for each in watched:
        each.wait_for_tokens(1)
    return [each.generation for each in watched]


def test_a_small_tenant_does_not_wait_until_a_long_generation_ends(four: Engine) -> None:
    big = begun(four, "big", 4)
    waiting = [four.submit([*LONG, 9], greedy(4), tenant="big") for _ in range(4)]
    finished(four.submit("Hello", greedy(4), tenant="small"))
    assert not any(each.done for each in (*big, *waiting))
    assert four.stats().pauses == 1
    for each in (*big, *waiting):
        each.cancel()


def test_a_request_that_waits_for_a_slot_of_its_own_leaves_the_claim_to_others(
    four: Engine,
) -> None:
    big = begun(four, "big", 4)
    bound = four.submit("Hello", greedy(4), tenant="bound", slot=0)
    finished(four.submit("Hello", greedy(4), tenant="small"))
    assert not any(each.done for each in (*big, bound))
    # Behind it in the same tenant, too.
    finished(four.submit("Hello", greedy(4), tenant="bound"))
    assert not any(each.done for each in (*big, bound))
    for each in (*big, bound):
        each.cancel()


def test_what_was_paused_continues_where_it_was(
    four: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rest in ("_SAVE_REST", "_CLAIM_REST"):  # however long a save takes
        monkeypatch.setattr(admission, rest, 0)
    alone = [finished(four.submit([*LONG, n], greedy(300))).text for n in range(4)]
    context, small = four._scheduler._context, list[Generation]()
    real, submitted = context.decode, threading.Event()

    def decode(batch: Batch, count: int) -> int:
        assert submitted.wait(WAIT)
        # A slot that is idle would be taken without a pause.
        busy = sum(slot.busy for slot in four.slots())
        if busy == 4 and len(small) < 3 and all(each.done for each in small):
            small.append(four.submit("Hello", greedy(2), tenant="small"))
        return real(batch, count)

    context.decode = decode  # type: ignore[method-assign]
    big = [four.submit([*LONG, n], greedy(300), tenant="big") for n in range(4)]
    submitted.set()
    texts = [finished(each).text for each in big]
    assert [finished(each).usage.completion_tokens for each in small] == [2] * 3
    stats = four.stats()
    assert texts == alone
    assert stats.pauses == 3
    assert stats.recomputed_tokens <= 3 * 64, "what was cached is kept in host memory"
    assert [each.usage.completion_tokens for each in big] == [300] * 4


def test_a_paused_request_can_be_cancelled_and_waits_for_no_one(four: Engine) -> None:
    big = begun(four, "big", 4)
    small = begun(four, "small", 1)
    (paused,) = (each for each in big if four.slots()[each.slot or 0].generation is not each)
    paused.cancel()
    assert finished(paused).finish_reason == "cancelled"
    for each in (*big, *small):
        each.cancel()
        finished(each)
    assert four.stats().slots_busy == 0


def test_a_small_tenant_gets_an_idle_slot_while_the_big_one_rests_after_a_save(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_SAVE_REST", 1e9)
    # A unified cache: slots of a split one are saved during a step, without a rest.
    engine = load(
        parallel=4, ctx_size=512, draft_max=0, keep_sequences=0, kv_unified=True, context_shift=True
    )
    watched = Watched(engine, LONG, greedy(None), tenant="big")
    streams = [watched.generation, *begun(engine, "big", 2)]
    for first in (321, 322):  # the second needs the slot of the first, which is saved
        finished(engine.submit([first, *reversed(LONG)], greedy(2), tenant="big"))
    resting = engine.submit([323, *reversed(LONG)], greedy(2), tenant="big")
    patient = engine.submit("Hello", greedy(2), tenant="small", priority=1)
    watched.wait_for_tokens(watched.generation.usage.completion_tokens + 3)
    assert patient.slot is None, "a more urgent one waits for the slot"
    finished(engine.submit("Hello", greedy(2), tenant="small"))
    assert not any(each.done for each in streams)
    assert engine.stats().pauses == 0
    for each in (*streams, resting, patient):
        each.cancel()


@pytest.mark.parametrize(
    ("config", "small"),
    [
        ({"cache_ram": 0}, {}),  # to continue would mean to read the whole prompt again
        ({}, {"priority": 1}),  # it gave way by itself
        ({}, {"slot": 2}),  # it waits for one particular slot
    ],
)
def test_none_is_paused(load: Loader, config: dict[str, Any], small: dict[str, Any]) -> None:
    engine = load(parallel=4, ctx_size=512, draft_max=0, **config)
    big = begun(engine, "big", 4)
    finished(engine.submit("Hello", greedy(1), tenant="small", **small))
    assert engine.stats().pauses == 0
    for each in big:
        each.cancel()


def test_a_tenant_runs_no_more_than_its_limit(load: Loader) -> None:
    engine = load(parallel=4, ctx_size=512, context_shift=True)
    one = Share(concurrent=1)
    first = Watched(engine, "a", greedy(None), tenant="bounded", share=one)
    first.wait_for_tokens(1)
    second = engine.submit("b", greedy(2), tenant="bounded", share=one)
    finished(engine.submit("c", greedy(2), tenant="other"))
    assert second.slot is None and engine.stats().slots_busy == 1
    first.generation.cancel()
    assert finished(second).finish_reason == "length"


def test_an_urgent_request_is_served_before_older_ones(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=512, context_shift=True)
    running = Watched(engine, "a", greedy(None), tenant="x")
    running.wait_for_tokens(1)
    order: list[str] = []
    asked = [
        engine.submit(
            name, greedy(1), tenant=name, priority=number, on_update=partial(order.append, name)
        )
        for name, number in (("late", 2), ("usual", 0), ("urgent", -2))
    ]
    running.generation.cancel()
    for each in asked:
        finished(each)
    assert order == ["urgent", "usual", "late"]
