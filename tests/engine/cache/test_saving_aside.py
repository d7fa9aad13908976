"""In a split cache, prefixes are saved while llama_decode computes the streams."""

from __future__ import annotations

import threading
from array import array
from pathlib import Path
from time import monotonic

import pytest

from cllm.engine import Engine
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.llama import DONE, Batch, Bytes
from tests.engine.engine_helpers import (
    PRECISE,
    WAIT,
    Loader,
    finished,
    greedy,
    standing,
    streaming,
)

PROMPTS = [[5 + n, *(20 + i % 300 for i in range(300))] for n in range(3)]
OTHERS = [[50 + n, *(400 - i % 300 for i in range(300))] for n in range(3)]


@pytest.fixture
def engine(load: Loader, f32_path: Path) -> Engine:
    return load(
        f32_path, **PRECISE, ctx_size=1024, parallel=4, keep_sequences=0, context_shift=True
    )


def test_prefixes_are_saved_during_the_steps_of_a_stream_and_come_back(engine: Engine) -> None:
    alone = [finished(engine.submit(prompt, greedy(12), fresh=True)).text for prompt in PROMPTS]
    context = engine._scheduler._context
    real, saved_by = context.save, list[str]()

    def save(seq: int, data: Bytes | None = None) -> Bytes | None:
        saved_by.append(threading.current_thread().name)
        return real(seq, data)

    context.save = save  # type: ignore[method-assign]
    with standing(engine):
        old = [engine.submit(prompt, greedy(4)) for prompt in PROMPTS]
    for each in old:
        finished(each)
    with streaming(engine, 1, lambda engine: engine.stats().saved_prefixes):
        new = [engine.submit(prompt, greedy(4)) for prompt in OTHERS]
    for each in new:
        finished(each)
    assert saved_by == ["cllm-overlap"] * 3
    back = [finished(engine.submit(prompt, greedy(12))) for prompt in PROMPTS]
    assert [each.text for each in back] == alone
    assert all(each.usage.cached_tokens >= 300 for each in back)


def test_a_state_that_is_copied_during_a_decode_has_the_same_bytes(engine: Engine) -> None:
    finished(engine.submit(PROMPTS[0], greedy(4)))
    scheduler = engine._scheduler
    scheduler.command(0, lambda slot: None).result(WAIT)
    context, batch = scheduler._context, scheduler._batch
    before = context.save(0)
    assert before is not None
    copies = list[Bytes | None]()
    ended = threading.Event()

    def copy() -> None:
        while not ended.is_set():
            copies.append(context.save(0))

    copier = threading.Thread(target=copy)
    copier.start()
    try:
        limit = monotonic() + WAIT
        while len(copies) <= 20 and monotonic() < limit:
            context.remove(1)
            for position in range(200):
                batch.token[0], batch.pos[0], batch.seq[0], batch.output[0] = 7, position, 1, 1
                assert context.decode(batch, 1) == DONE
    finally:
        ended.set()
        copier.join(WAIT)
    assert len(copies) > 20
    assert all(copy is not None and (copy == before).all() for copy in copies)


def test_a_prompt_gets_a_slot_whose_prefix_could_not_be_saved(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing(engine):
        old = [engine.submit(prompt, greedy(4)) for prompt in PROMPTS]
    for each in old:
        finished(each)
    placer = engine._scheduler._placer
    monkeypatch.setattr(placer.aside, "_save", lambda slot: None)
    monkeypatch.setattr(placer, "_save", lambda slot: None)
    with standing(engine):
        new = [engine.submit(prompt, greedy(4)) for prompt in OTHERS]
    for each in new:
        finished(each)
    assert engine.stats().saved_prefixes == 0


def test_a_slot_that_was_claimed_meanwhile_is_not_saved_while_it_computes(engine: Engine) -> None:
    scheduler = engine._scheduler
    placer = scheduler._placer
    for prompt in (*PROMPTS, *OTHERS):
        finished(engine.submit(prompt, greedy(4)))

    def claim(_: Slot) -> list[int]:
        """On the engine thread: a prompt waits for saves, then another one takes such a slot."""
        saved = list[int]()
        assert placer.place(array("i", [9] * 100), aside=4) is None
        # Its beginning is in host memory, from where it moves into the slot.
        claimed = placer.place(array("i", [*PROMPTS[0], 7]))
        assert claimed is not None
        assert claimed in placer.aside.leaving
        assert claimed.length >= 300
        placer.aside._save = lambda slot: saved.append(slot.id)
        placer.aside.run(lambda: True)
        placer.aside.leaving = []
        placer.release(claimed)
        assert claimed.id not in saved
        return saved

    assert scheduler.command(0, claim).result(WAIT), "the idle ones are saved"


def test_no_hole_is_filled_in_a_slot_that_is_being_saved(engine: Engine) -> None:
    """A token in the hole would be a part of what is saved."""
    scheduler = engine._scheduler
    context, placer = scheduler._context, scheduler._placer
    seen = list[tuple[set[int], set[int]]]()
    real = context.decode

    def decode(batch: Batch, count: int) -> int:
        leaving: list[Slot] = placer.aside.leaving
        if leaving:
            seen.append(({slot.id for slot in leaving}, set(batch.seq[:count].tolist())))
        return real(batch, count)

    with standing(engine):
        # Slots 1 to 3: the one between two streams becomes idle.
        sides = [engine.submit(PROMPTS[0], greedy(None))]
        middle = engine.submit(PROMPTS[1], greedy(4))
        sides.append(engine.submit(PROMPTS[2], greedy(None)))
    finished(middle)
    context.decode = decode  # type: ignore[method-assign]
    finished(engine.submit(OTHERS[0], greedy(4)))
    for each in sides:
        each.cancel()
    assert seen
    assert all(not leaving & computed for leaving, computed in seen)
