"""Promises of the engine's history: the last steps and the requests that ended."""

from __future__ import annotations

import threading

import numpy as np

from cllm.engine import Engine
from cllm.engine.history import ENDED, History
from cllm.engine.step_records import STEPS, Pace
from tests.engine.engine_helpers import Loader, Watched, finished, greedy


def note(history: History, count: int) -> None:
    """Steps whose fields are all their number."""
    for _ in range(count):
        value = history.steps
        history.note_step(value, value, value, value, value, value, value, value)


def test_it_keeps_the_last_steps() -> None:
    history = History()
    assert len(history.steps_since(0).at) == 0
    note(history, 10)
    assert history.steps_since(0).at.tolist() == list(range(10))
    assert history.steps_since(7).other_s.tolist() == [7, 8, 9]
    assert len(history.steps_since(10).at) == 0
    note(history, STEPS)
    kept = history.steps_since(0)
    assert kept.next == history.steps == STEPS + 10
    assert kept.first == kept.at[0] == 11 and kept.at[-1] == STEPS + 9
    assert history.steps_since(STEPS + 8).at.tolist() == [STEPS + 8, STEPS + 9]


def test_readings_join_to_the_same_records() -> None:
    history = History()
    read = history.steps_since(0)
    for count in (1, 100, STEPS - 1, STEPS + 500):
        note(history, count)
        read = read.then(history.steps_since(read.next))
        assert read.next == history.steps and len(read.at) >= min(history.steps, STEPS - 1)
        assert read.tokens.tolist() == list(range(read.first, read.next))


def test_a_reader_sees_whole_records_while_the_engine_writes() -> None:
    history, ended = History(), threading.Event()

    def write() -> None:
        while not ended.is_set():
            note(history, 100)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            read = history.steps_since(0)
            assert (read.at == np.arange(read.first, read.next)).all()
            for field in read[2:]:
                assert (field == read.at).all()
    finally:
        ended.set()
        writer.join()


def test_gaps_are_those_of_the_steps_that_generated() -> None:
    history = History()
    for at, prompt_rows, tokens in ((1, 9, 1), (2, 0, 2), (3, 64, 0), (5, 8, 2), (6, 0, 2)):
        history.note_step(at, prompt_rows, tokens, tokens, 0.5, 0.25, 0.0, 0.25)
    pace = Pace(history.steps_since(0))
    assert pace.gaps(1, 6) == (1, 3) and pace.gaps(2, 5) == (3, 3)
    assert pace.gaps(6, 7) is None and pace.gaps(8, 9) is None
    assert pace.reading(1, 6) == 2 and pace.reading(3, 4) == 0  # the first is its own prompt


def test_seconds_are_counted_whole_or_not_at_all() -> None:
    history = History()
    for number in range(STEPS + 100):
        history.note_step(number / 1000, 1, 1, 3, 0.001, 0.0, 0.0, 0.0)
    tokens, prompts, steps = history.steps_since(0).by_second(8, 10)
    assert steps == [None] * 3 + [1000] * 7  # of second 0 some records are lost
    assert tokens[3:] == [3000] * 7 and prompts[3:] == [1000] * 7
    assert history.steps_since(0).by_second(100, 10)[2] == [0] * 10


def test_a_step_counts_the_rows_of_prompts_and_of_generations(engine: Engine) -> None:
    before = engine.history.steps
    request = engine.submit("A first sentence of several words", greedy(4), fresh=True)
    finished(request)
    finished(engine.submit("x", greedy(1)))  # the step that ended the first is noted by now
    steps = engine.history.steps_since(before)
    assert steps.prompt_rows[0] == request.usage.prompt_tokens and steps.decode_rows[0] == 0
    assert steps.tokens[:4].tolist() == [1, 1, 1, 1]
    assert steps.prompt_rows[1:4].tolist() == [0, 0, 0]
    assert steps.decode_rows[1:4].tolist() == [1, 1, 1]
    assert (np.diff(steps.at) > 0).all() and (steps.decode_s > 0).all()


def test_the_last_requests_are_kept_as_they_ended(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=64, context_shift=True)
    for _ in range(ENDED + 5):
        finished(engine.submit("Hello", greedy(1), tenant="a"))
    cancelled = Watched(engine, "Hello", greedy(None), tenant="b")
    cancelled.wait_for_tokens(1)
    cancelled.generation.cancel()
    cancelled.generation.wait()
    finished(engine.submit("Hello", greedy(1), tenant="c"))  # the end before it is noted by now
    kept = engine.history.ended_since(0)
    assert len(kept) >= ENDED - 1
    by_tenant = {record.tenant: record for _, record in kept}
    record = by_tenant["b"]
    assert record.id == cancelled.generation.id and record.finish_reason == "cancelled"
    assert record.usage.completion_tokens >= 1 and record.timings.total_s > 0
    assert by_tenant["a"].finish_reason == "length" and by_tenant["a"].prefix == "slot"
    numbers = [number for number, _ in kept]
    assert numbers == list(range(numbers[0], numbers[0] + len(kept)))
    assert engine.history.ended_since(numbers[-1] + 1) == []


def test_a_request_says_where_its_prefix_came_from(load: Loader) -> None:
    engine = load(parallel=2, ctx_size=256, kv_unified=True)
    text = "Once there was a fox who lived in a forest and had many friends there. "
    first = engine.submit(text, greedy(1), slot=0)
    finished(first)
    again, copied = engine.submit(text, greedy(1), slot=0), None
    finished(again)
    copied = engine.submit(text, greedy(1), slot=1)
    finished(copied)
    assert (first.prefix, again.prefix, copied.prefix) == ("", "slot", "copy")


def test_waiting_requests_are_told_by_tenant(load: Loader) -> None:
    engine = load(parallel=1, ctx_size=128, context_shift=True)
    running = Watched(engine, "Hello", greedy(None))
    running.wait_for_tokens(1)
    asked = [engine.submit("Hello", greedy(1), tenant=name, slot=0) for name in "aab"]
    told = engine.waiting(1)
    assert [(tenant, count) for tenant, count, _ in told] == [("a", 2), ("b", 1)]
    assert [record.id for _, _, (record,) in told] == [asked[0].id, asked[2].id]
    running.generation.cancel()
    for request in asked:
        finished(request)
    assert engine.waiting(1) == []
