"""Requests that arrive together keep in step: planned with assumed costs, nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest

from cllm.engine import Engine
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.generation import Generation
from cllm.engine.llama import Vocab
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.passes import Plan
from cllm.engine.scheduling.planning import Planner, _held_back, _part, shape_of
from cllm.engine.sequence import Sequence, slot_of

STEP_S, STREAM_S, PASS_S, TOKEN_S = 0.035, 0.012, 0.025, 0.004


@dataclass
class Machine:
    """Slots, sequences in them, and a clock that each planned step moves on."""

    vocab: Vocab
    max_itl: float | None = None
    slots: int = 8
    now: float = 0.0
    running: list[Sequence] = field(default_factory=list)
    times: dict[Sequence, list[float]] = field(default_factory=dict)
    plans: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        pacer = Pacer(self.max_itl)
        for streams, tokens in ((1, 0), (self.slots, 0), (0, 8), (0, 40), (0, 300)):
            pacer.observe(streams, tokens, self.cost(streams, tokens))
        self.planner = Planner(pacer, None, capacity=2048, split_cache=True, slots=self.slots)

    @staticmethod
    def cost(streams: int, tokens: int) -> float:
        seconds = STEP_S + STREAM_S * streams if streams else 0.0
        return seconds + (PASS_S + TOKEN_S * tokens if tokens else 0.0)

    def begin(self, tokens: int, answer: int = 24) -> Sequence:
        taken = {slot_of(sequence).id for sequence in self.running}
        prompt = [5] * tokens
        made = Sequence(
            prompt, SamplingParams(max_tokens=answer), Generation(tokens), self.vocab, 4096, None
        )
        free = next(number for number in count() if number not in taken)
        made.slot = Slot(free, tokens=made.tokens, busy=True)
        self.running.append(made)
        self.times[made] = []
        return made

    def step(self) -> list[Sequence]:
        """Do what is planned; return the sequences that ended."""
        plan = self.planner.plan(self.running)
        assert plan, "there is always something to do"
        self.plans.append(plan)
        shape = shape_of(plan)
        seconds = self.cost(shape.generating, shape.tokens - shape.generating)
        self.now += seconds
        self.planner.learn(plan, shape, seconds)
        ended = []
        for sequence, tokens in plan:
            slot_of(sequence).length += tokens
            if sequence.pending == 0:
                self.times[sequence].append(self.now)
                if sequence.accept([5], self.now) is not None:
                    ended.append(sequence)
        self.running = [sequence for sequence in self.running if sequence not in ended]
        return ended

    def drain(self) -> None:
        while self.running:
            self.step()

    def gaps(self) -> list[float]:
        return [after - before for at in self.times.values() for before, after in pairwise(at)]


@pytest.fixture
def vocab(engine: Engine) -> Vocab:
    return engine._vocab


PROMPTS = (
    [240] * 8,
    [80, 81, 82, 79, 85, 64, 65, 66],
    [128] * 8,
    [2, 3, 70, 9],
    [64, 128],
    [33] * 16,
)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_prompts_that_arrive_together_begin_to_generate_together(
    vocab: Vocab, prompts: list[int]
) -> None:
    machine = Machine(vocab, slots=len(prompts))
    for tokens in prompts:
        machine.begin(tokens)
    machine.drain()
    assert len({times[0] for times in machine.times.values()}) == 1
    assert max(machine.gaps()) == pytest.approx(machine.cost(len(prompts), 0)), (
        "and none stops afterwards"
    )
    parts = [machine.cost(0, sum(n for _, n in plan)) for plan in machine.plans[:-23]]
    assert max(parts) <= 2.1, "in steps that let new requests in"


def test_prompts_that_are_answered_by_one_token_do_not_wait_for_each_other(vocab: Vocab) -> None:
    machine = Machine(vocab)
    for _ in range(8):
        machine.begin(240, answer=1)
    machine.drain()
    first = sorted(times[0] for times in machine.times.values())
    assert first[0] < 1.1 < first[-1]
    assert all(n >= 64 for plan in machine.plans for _, n in plan), "no end was held back"


@pytest.mark.parametrize(
    ("prompts", "order"), [((80, 79, 78), [2, 1, 0]), ((80, 80, 79), [2, 0, 1]), ((9, 8), [0, 1])]
)
def test_a_batch_keeps_whole_prompts_together(
    vocab: Vocab, prompts: tuple[int, ...], order: list[int]
) -> None:
    machine = Machine(vocab)
    for tokens in prompts:
        machine.begin(tokens, answer=1)
    machine.step()
    assert [slot_of(sequence).id for sequence, _ in machine.plans[0]] == order


@pytest.mark.parametrize("tokens", [30, 240])
def test_one_that_arrives_while_others_are_read_begins_with_them(vocab: Vocab, tokens: int) -> None:
    machine = Machine(vocab)
    for _ in range(7):
        machine.begin(tokens)
    machine.step()
    machine.begin(100)
    machine.drain()
    assert len({times[0] for times in machine.times.values()}) == 1


def test_few_tokens_are_read_at_once(vocab: Vocab) -> None:
    machine = Machine(vocab)
    for _ in range(3):
        machine.begin(20)
    machine.step()
    assert all(machine.times.values())


def test_prompts_that_take_long_are_not_waited_for(vocab: Vocab) -> None:
    machine = Machine(vocab)
    short = machine.begin(100)
    for _ in range(3):
        machine.begin(2000)
    machine.drain()
    assert machine.times[short][0] < 1.1
    assert max(machine.gaps()) <= 1.5, "and the short one goes on meanwhile"


def test_short_prompts_do_not_wait_for_a_much_longer_one(vocab: Vocab) -> None:
    machine = Machine(vocab)
    long = machine.begin(1500)
    short = [machine.begin(40) for _ in range(7)]
    machine.drain()
    assert {machine.times[each][0] for each in short} == {machine.times[short[0]][0]}
    assert machine.times[short[0]][0] < 2 < machine.times[long][0]


def test_a_long_prompt_is_not_passed_for_ever_by_crowds(
    vocab: Vocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(vocab)
    monkeypatch.setattr("cllm.engine.request.time.monotonic", lambda: machine.now)
    long = machine.begin(1000)
    while not machine.times[long]:
        if len(machine.running) == 1:
            for _ in range(7):
                machine.begin(100, answer=1)
        machine.step()
        assert machine.now < 15


def test_who_configures_a_gap_gets_early_tokens_and_that_gap(vocab: Vocab) -> None:
    machine = Machine(vocab, max_itl=0.5)
    for _ in range(8):
        machine.begin(240)
    machine.drain()
    first = sorted(times[0] for times in machine.times.values())
    assert first[0] < 1.1 < 5 < first[-1]
    assert max(machine.gaps()) <= 0.8


def test_fewer_streams_than_prompts_stop_once(vocab: Vocab) -> None:
    machine = Machine(vocab)
    early = machine.begin(100)
    machine.step()
    for _ in range(7):
        machine.begin(60)
    machine.drain()
    long = [gap for gap in machine.gaps() if gap > 1.2 * machine.cost(8, 0)]
    assert len(long) == 1
    assert len({times[-1] for times in machine.times.values()}) == 1, "and all keep in step"
    assert machine.times[early][1] - machine.times[early][0] == long[0]


@pytest.mark.parametrize("tokens", [120, 240, 600])
def test_a_crowd_holds_no_stream_for_more_than_two_seconds(vocab: Vocab, tokens: int) -> None:
    machine = Machine(vocab)
    stream = machine.begin(100, answer=200)
    machine.step()
    for _ in range(7):
        machine.begin(tokens)
    machine.drain()
    assert max(after - before for before, after in pairwise(machine.times[stream])) < 2.5


@pytest.mark.parametrize(("left", "first"), [(3, True), (30, False)])
def test_streams_that_end_soon_end_first(vocab: Vocab, left: int, first: bool) -> None:
    machine = Machine(vocab)
    machine.begin(50, answer=left + 1)
    machine.step()
    for _ in range(3):
        machine.begin(100)
    steps = left if first else 1
    ended = [machine.step() for _ in range(steps)]
    assert bool(ended[-1]) == first
    assert all(shape_of(plan).generating == 1 for plan in machine.plans[1:]) == first


@pytest.mark.parametrize("late", [0, 1, 2, 3])
def test_conversations_that_come_back_do_not_stop_each_other(vocab: Vocab, late: int) -> None:
    """The 99th percentile is a plain step, though a client's answer comes some steps late."""
    machine = Machine(vocab)
    asleep: Iterator[int] = iter([late])
    coming: list[tuple[int, int]] = [(0, 240 + number) for number in range(8)]
    left = 8 * 6
    for step in count():
        for due, tokens in [each for each in coming if each[0] <= step]:
            coming.remove((due, tokens))
            machine.begin(tokens)
        if not machine.running:
            if not coming:
                break
            continue
        for _ in machine.step():
            left -= 1
            if left >= 8:
                coming.append((step + 1 + next(asleep, 0), 75 + left % 9))
    gaps = sorted(machine.gaps())
    assert gaps[len(gaps) * 99 // 100] <= 1.2 * machine.cost(8, 0)


@pytest.mark.parametrize("pending", [*range(2, 200), 640])
def test_what_waits_for_others_breaks_no_tile(pending: int) -> None:
    def odd(parts: Seq[int]) -> int:
        return sum(part % 64 for part in parts)

    held = _held_back(pending)
    parts, left = [held], pending - held
    while left:
        parts.append(_part(left, 100, 300))
        left -= parts[-1]
    assert odd(parts) == pending % 64
    assert held == _held_back(held), "it stays when the rest is read"


@pytest.mark.parametrize("tokens", [30, 80, 240])
def test_a_stream_is_not_stopped_for_ever_by_crowds(vocab: Vocab, tokens: int) -> None:
    machine = Machine(vocab)
    stream = machine.begin(50, answer=500)
    while machine.now < 60:
        while len(machine.running) < 8:
            machine.begin(tokens, answer=1)
        machine.step()
    at = machine.times[stream]
    assert len(at) > 30, "as many as seconds of reading, in which it stops"
    assert max(after - before for before, after in pairwise([*at, machine.now])) < 2.5


def test_a_prompt_does_not_wait_for_ever_for_streams_that_end_soon(vocab: Vocab) -> None:
    machine = Machine(vocab)
    machine.begin(2, answer=6)
    for _ in range(3):
        machine.step()
    machine.begin(2, answer=6)
    long = machine.begin(1500)
    while not machine.times[long]:
        for _ in machine.step():
            cached = machine.begin(2, answer=6)
            slot_of(cached).length = 1
        assert machine.now < 12, "it takes 6 seconds alone"
