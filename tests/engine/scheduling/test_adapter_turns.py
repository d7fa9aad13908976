"""Sets of adapters take turns: each has its turn in time, and short steps share a turn."""

from __future__ import annotations

from dataclasses import dataclass

from cllm.engine.scheduling.adapter_turns import TURN_S, AdapterTurns
from cllm.engine.sharing import AdapterSet


@dataclass(frozen=True)
class Running:
    adapters: AdapterSet


def of(scale: float) -> Running:
    return Running(((0, scale),))


class Machine:
    def __init__(self) -> None:
        self.now = 0.0
        self.turns = AdapterTurns(lambda: self.now)

    def step(self, running: list[Running], seconds: float) -> Running:
        chosen = self.turns.choose(running)
        assert chosen and len({each.adapters for each in chosen}) == 1
        assert chosen == [each for each in running if each.adapters == chosen[0].adapters]
        self.now += seconds
        return chosen[0]


def test_one_set_runs_alone() -> None:
    machine = Machine()
    running = [of(1.0), of(1.0)]
    assert [machine.step(running, 1.0) for _ in range(3)] == [of(1.0)] * 3
    assert machine.turns.choose([]) == []


def test_long_steps_alternate() -> None:
    machine = Machine()
    running = [of(1.0), of(2.0), of(3.0), of(1.0)]
    steps = [machine.step(running, 2 * TURN_S) for _ in range(6)]
    assert steps == [of(1.0), of(2.0), of(3.0)] * 2


def test_short_steps_share_a_turn() -> None:
    machine = Machine()
    running = [of(1.0), of(2.0)]
    steps = [machine.step(running, TURN_S / 3.9) for _ in range(16)]
    assert steps == ([of(1.0)] * 4 + [of(2.0)] * 4) * 2


def test_a_turn_ends_with_the_last_sequence_of_its_set() -> None:
    machine = Machine()
    assert machine.step([of(1.0), of(2.0)], TURN_S / 4) == of(1.0)
    assert machine.step([of(2.0)], TURN_S / 4) == of(2.0)
    assert machine.step([of(1.0), of(2.0)], TURN_S / 4) == of(2.0)


def test_new_sets_cannot_keep_one_from_its_turn() -> None:
    machine = Machine()
    patient = of(-1.0)
    served = 0
    for number in range(40):  # one other set after the other, each for one step
        others = [of(2.0 * number + 1), of(2.0 * number + 2)]
        served += machine.step([patient, *others], 1.0) == patient
    assert served >= 13


def test_a_set_that_arrives_after_a_long_turn_is_served_next() -> None:
    machine = Machine()
    for _ in range(5):
        machine.step([of(1.0)], 1.0)
    assert machine.step([of(1.0), of(2.0)], TURN_S) == of(2.0)
