"""ThreadPolicy against simulated machines: two cores as measured, more cores by a simple model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

import pytest

from cllm.engine.scheduling.thread_policy import Shape, ThreadPolicy, counts

EIGHT_STREAMS = Shape(sequences=8, generating=8, tokens=8)
# Seconds of a step of eight streams of a model of 135 M parameters on two cores, by the number of
# programs that only compute next to it, and by threads.
TWO_CORES = {
    0: {2: 0.034, 1: 0.057},
    1: {2: 0.120, 1: 0.057},
    2: {2: 0.100, 1: 0.082},
}


@dataclass(slots=True)
class Machine:
    """Steps on a machine: how long they take, and what the policy makes of it.

    noise: standard deviation of the logarithm of a step's time. tells: whether it is known what
    other programs leave.
    """

    policy: ThreadPolicy
    seconds: Callable[[int, int], float]  # threads, busy programs
    cores: int = 2
    busy: int = 0
    noise: float = 0.0
    tells: bool = True
    dice: random.Random = field(default_factory=lambda: random.Random(7))
    clock: float = 0.0
    looked: float = 0.0
    tokens: int = 0
    changes: list[int] = field(default_factory=list)

    def step(self, shape: Shape = EIGHT_STREAMS) -> int:
        """Compute one step; returns its threads."""
        if self.clock - self.looked >= 1.0:
            self.looked = self.clock
            self.policy.note_spare(self.spare() if self.tells else None)
        threads = self.policy.choose(shape)
        took = self.seconds(threads, self.busy) * shape.tokens / 8
        took *= self.dice.lognormvariate(-(self.noise**2) / 2, self.noise)
        before = self.policy.threads
        self.policy.learn(shape, threads, took)
        if self.policy.threads != before:
            self.changes.append(self.policy.threads)
        self.clock += took
        self.tokens += shape.tokens
        return threads

    def run(self, seconds: float, shape: Callable[[], Shape] = lambda: EIGHT_STREAMS) -> float:
        """Compute so long; returns tokens a second."""
        began, tokens = self.clock, self.tokens
        while self.clock < began + seconds:
            self.step(shape())
        return (self.tokens - tokens) / (self.clock - began)

    def spare(self) -> float:
        """Each runnable thread gets an equal share of the cores."""
        running = self.policy.threads + self.busy
        share = min(1.0, self.cores / running)
        return self.cores - self.busy * share + self.dice.gauss(0, 0.05 if self.noise else 0)


def two_cores(threads: int, busy: int) -> float:
    return TWO_CORES[busy][threads]


def many_cores(cores: int) -> Callable[[int, int], float]:
    """Threads with a core each share the work; where they share cores, each step waits for them."""

    def seconds(threads: int, busy: int) -> float:
        alone = 0.005 + 0.2 / threads
        return alone * (1.0 if threads + busy <= cores else 4.0)

    return seconds


def best(machine: Machine) -> float:
    """Tokens a second with the best number of threads, known in advance."""
    return max(8 / machine.seconds(n, machine.busy) for n in range(1, machine.cores + 1))


@pytest.mark.parametrize("most", range(1, 130))
def test_the_counts_that_are_tried_descend_from_all_threads_to_one(most: int) -> None:
    found = counts(most)
    assert found[0] == most
    assert found[-1] == 1
    assert list(found) == sorted(set(found), reverse=True)


def test_the_counts_of_some_machines() -> None:
    assert counts(2) == (2, 1)
    assert counts(8) == (8, 7, 6, 4, 2, 1)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_on_an_idle_machine_no_step_is_computed_with_fewer_threads(noise: float) -> None:
    machine = Machine(ThreadPolicy(2), two_cores, noise=noise)
    assert {machine.step() for _ in range(5000)} == {2}


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("busy", [1, 2])
def test_next_to_busy_programs_it_is_about_as_fast_as_with_the_best_count(
    busy: int, noise: float
) -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=busy, noise=noise)
    machine.run(10)
    assert machine.run(120) > 0.93 * best(machine)


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.4])
def test_it_comes_back_within_seconds_when_the_machine_is_free_again(noise: float) -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=1, noise=noise)
    machine.run(300)
    assert machine.policy.threads == 1
    machine.busy = 0
    machine.run(8)
    assert machine.policy.threads == 2
    assert {machine.step() for _ in range(1000)} == {2}


def test_it_comes_back_where_no_step_is_like_the_last_one() -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=1)
    machine.run(300)
    assert machine.policy.threads == 1
    machine.busy = 0
    prompts = cycle((8, 20, 90))
    machine.run(8, lambda: Shape(1, 0, next(prompts)))
    assert machine.policy.threads == 2


def test_one_free_second_is_no_reason_to_come_back() -> None:
    policy = ThreadPolicy(2)
    policy.threads = 1
    for spare in (1.0, 2.0, 1.0, 2.0, 1.0):
        policy.note_spare(spare)
        assert policy.threads == 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("busy", [0, 1, 2])
def test_it_does_not_oscillate(busy: int, seed: int) -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=busy, noise=0.3, dice=random.Random(seed))
    machine.run(300)
    assert len(machine.changes) <= (0, 3, 7)[busy]


def test_two_counts_that_are_equally_fast_are_not_exchanged() -> None:
    machine = Machine(ThreadPolicy(2), lambda threads, busy: 0.05, busy=1, noise=0.05)
    machine.run(300)
    assert not machine.changes


def test_trials_that_fail_lose_at_most_a_hundredth_of_the_time() -> None:
    machine = Machine(ThreadPolicy(2), lambda threads, busy: TWO_CORES[0][threads], busy=1)
    machine.run(5)
    assert machine.run(300) > 0.985 * best(machine)
    assert not machine.changes


def test_without_knowledge_of_other_programs_it_still_adapts_and_comes_back() -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=1, noise=0.1, tells=False)
    machine.run(30)
    assert machine.policy.threads == 1
    machine.busy = 0
    machine.run(70)
    assert machine.policy.threads == 2
    assert machine.run(200) > 0.98 * best(machine)


@pytest.mark.parametrize("busy", [1, 2, 5, 7, 12, 16])
def test_of_sixteen_cores_it_uses_what_others_leave(busy: int) -> None:
    machine = Machine(ThreadPolicy(16), many_cores(16), cores=16, busy=busy, noise=0.1)
    machine.run(60)
    reachable = 8 / min(machine.seconds(n, busy) for n in counts(16))
    assert machine.run(60) > 0.9 * reachable
    machine.busy = 0
    machine.run(60)
    assert machine.policy.threads == 16


def test_only_steps_of_one_shape_are_compared() -> None:
    """Alternating shapes whose cost a token differs: nothing can be learnt from neighbours."""
    machine = Machine(ThreadPolicy(2), two_cores, busy=1)
    prompt = Shape(sequences=1, generating=0, tokens=512)
    for _ in range(300):
        machine.step(prompt)
        machine.step(EIGHT_STREAMS)
    assert not machine.changes


def test_prompts_of_similar_length_are_compared() -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=1, noise=0.1)
    dice = random.Random(1)

    def prompts() -> Shape:
        return Shape(sequences=dice.randint(1, 3), generating=0, tokens=dice.randint(450, 512))

    machine.run(300, prompts)
    assert machine.policy.threads == 1


def test_a_stall_of_one_step_changes_nothing_for_long() -> None:
    machine = Machine(ThreadPolicy(2), two_cores)
    machine.run(20)
    machine.policy.learn(EIGHT_STREAMS, 2, 30.0)
    assert {machine.step() for _ in range(100)} == {2}


def test_streams_that_come_and_go_do_not_keep_it_from_adapting() -> None:
    machine = Machine(ThreadPolicy(2), two_cores, busy=1, noise=0.2)
    dice = random.Random(3)
    left, streams = 0, 8

    def shape() -> Shape:
        nonlocal left, streams
        if not left:
            left, streams = dice.randint(1, 6), dice.randint(1, 8)
        left -= 1
        return Shape(streams, streams, streams)

    machine.run(60, shape)
    assert machine.policy.threads == 1


def test_one_thread_stays_one() -> None:
    machine = Machine(ThreadPolicy(1), lambda threads, busy: 0.01, cores=1, busy=3)
    assert {machine.step() for _ in range(1000)} == {1}
