"""Streams wait at most the bound, and every prompt gets its turn: simulated."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cllm.engine.scheduling.pacing import Pacer


@dataclass
class Prompt:
    arrived: float
    tokens: int
    pending: int = field(init=False)
    read: float = 0.0

    def __post_init__(self) -> None:
        self.pending = self.tokens


@dataclass
class Machine:
    """Steps as llama.cpp takes them: seconds for the streams, then for the prompt tokens."""

    pacer: Pacer
    step_s: float = 0.070
    pass_s: float = 0.025
    token_s: float = 0.002
    now: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def step(self, streams: int, prompts: list[Prompt]) -> None:
        waiting = [p for p in prompts if p.arrived <= self.now and p.pending]
        room = self.pacer.budget(streams, len(waiting), 512) if waiting else 0
        taken = 0
        waiting.sort(key=lambda p: self.pacer.due(p.arrived, p.pending))
        for prompt in waiting:
            count = min(prompt.pending, room - taken)
            prompt.pending -= count
            taken += count
        seconds = (self.step_s if streams else 0) + (self.pass_s + taken * self.token_s) * (
            taken > 0
        )
        self.now += seconds or 0.01
        self.pacer.observe(streams, taken, seconds)
        self.gaps.append(seconds)
        for prompt in waiting:
            if not prompt.pending and not prompt.read:
                prompt.read = self.now


def warmed(max_itl: float | None) -> Machine:
    machine = Machine(Pacer(max_itl))
    for _ in range(3):
        machine.step(8, [])
    for size in (40, 40, 900):
        machine.step(0, [Prompt(0.0, size)])
    machine.gaps.clear()
    return machine


@pytest.mark.parametrize("max_itl", [0.2, 0.5, 1.0])
def test_streams_are_held_up_no_longer_than_asked(max_itl: float) -> None:
    machine = warmed(max_itl)
    prompt = Prompt(machine.now, 8000)
    while prompt.pending:
        machine.step(8, [prompt])
    assert max(machine.gaps) <= max_itl * 1.05
    rate = prompt.tokens / (prompt.read - prompt.arrived)
    ideal = (max_itl - machine.step_s - machine.pass_s) / machine.token_s / max_itl
    assert rate >= 0.9 * ideal, "and the time that is allowed is used"


def test_by_default_a_gap_is_a_few_steps() -> None:
    machine = warmed(None)
    prompt = Prompt(machine.now, 8000)
    while prompt.pending:
        machine.step(8, [prompt])
    assert 3 * machine.step_s <= max(machine.gaps) <= 6 * machine.step_s


def test_one_stream_does_not_keep_many_prompts_waiting() -> None:
    machine = warmed(None)
    alone = machine.pacer.budget(1, 1, 512)
    assert machine.pacer.budget(1, 7, 512) >= 2 * alone
    assert machine.pacer.budget(8, 8, 512) == machine.pacer.budget(8, 1, 512)
    asked = warmed(0.3).pacer
    assert asked.budget(1, 7, 512) == asked.budget(1, 1, 512), "unless it was promised a time"


def test_the_model_follows_a_machine_that_gets_slower() -> None:
    machine = warmed(0.5)
    prompt = Prompt(machine.now, 20_000)
    for _ in range(10):
        machine.step(8, [prompt])
    machine.token_s *= 3
    for _ in range(40):
        machine.step(8, [prompt])
    machine.gaps.clear()
    machine.step(8, [prompt])
    assert machine.gaps[0] <= 0.55


def test_without_any_knowledge_little_is_taken() -> None:
    assert Pacer(None).budget(4, 1, 512) <= 16
    assert Pacer(None).budget(0, 1, 512) == 512


def test_the_first_step_of_a_process_counts_only_until_there_is_another() -> None:
    pacer = Pacer(None)
    pacer.observe(0, 32, 0.8)
    assert pacer.prompt_s(32) == pytest.approx(0.8)
    pacer.observe(0, 64, 0.4)
    assert pacer.prompt_s(1920) == pytest.approx(12.0)
    pacer.observe(0, 64, 0.8)
    assert 12.0 < (pacer.prompt_s(1920) or 0.0) < 24.0, "later ones count together"


def test_prompts_of_one_batch_may_take_longer_to_begin_together() -> None:
    pacer = Pacer(None)
    pacer.observe(0, 100, 1.0)
    pacer.observe(0, 100, 1.0)
    assert pacer.begin_together(900, 0)
    assert not pacer.begin_together(1900, 0)
    assert pacer.begin_together(1900, 0, one_batch=True)
    assert not pacer.begin_together(2100, 0, one_batch=True)
    assert not pacer.begin_together(900, 1, one_batch=True), "streams would wait for it"


def test_a_bound_that_cannot_be_kept_still_lets_prompts_through() -> None:
    machine = warmed(0.001)
    prompt = Prompt(machine.now, 1000)
    while prompt.pending:
        machine.step(8, [prompt])
    assert max(machine.gaps) <= 2.2 * machine.step_s


def test_alone_prompts_are_read_in_large_steps_that_end() -> None:
    machine = warmed(None)
    assert 400 <= machine.pacer.budget(0, 1, 16) <= 600


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    machine = warmed(0.3)
    prompts = [Prompt(machine.now, 10_000), Prompt(machine.now + 0.5, 100)]
    while prompts[1].pending:
        machine.step(8, prompts)
    assert prompts[1].read - prompts[1].arrived <= 2 * 0.3 + 0.05
    assert prompts[0].pending > 5000


def test_nobody_starves_however_many_short_prompts_come() -> None:
    rng = random.Random(0)
    machine = warmed(0.3)
    start = machine.now
    long = Prompt(start + 5, 2000)
    # As many as can be read at all: 0.2 s of each 0.3 s are for prompts.
    arrivals = [start + i * 0.25 for i in range(400)]
    shorts = [Prompt(at, rng.randint(20, 80)) for at in arrivals]
    while long.pending:
        machine.step(8, [*shorts, long])
    # Before it come those that arrived up to its own reading time later: 4 s, at most 36 prompts
    # or 2 900 tokens, so 4 900 tokens in all at some 100 in 0.3 s.
    assert long.read - long.arrived <= 4900 / 100 * 0.3
    assert any(p.read and p.arrived > long.arrived for p in shorts), "yet short ones overtake it"


def test_nobody_is_overtaken_by_who_comes_later_than_its_own_reading_takes() -> None:
    machine = warmed(0.3)
    alone = 2000 * machine.token_s
    due = machine.pacer.due
    assert due(0.0, 2000) < due(alone + 0.1, 1)
    assert due(0.0, 2000) > due(alone / 2, 50)
