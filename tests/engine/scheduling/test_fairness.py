"""Which tenant's request is next: simulations of the policy, without a model."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from cllm.engine.scheduling.fairness import CLAIMANTS, GENERATED, FairQueue
from cllm.engine.sharing import EQUAL, Share, gives_way


@dataclass(eq=False)
class Ask:
    """A request of a tenant: tokens of its prompt, and tokens that it generates."""

    tenant: str
    prompt: int = 10
    tokens: int = 10
    share: Share = EQUAL
    priority: int = 0


@dataclass
class Machine:
    """Slots that serve what a queue gives them; every sequence makes one token a step."""

    slots: int
    queue: FairQueue[Ask] = field(default_factory=FairQueue)
    running: dict[Ask, int] = field(default_factory=dict)
    taken: list[Ask] = field(default_factory=list)
    work: Counter[str] = field(default_factory=Counter)

    def submit(self, *asks: Ask) -> None:
        self.queue.extend(asks)

    def step(self) -> None:
        queue = self.queue
        while len(self.running) < self.slots and (ask := next(queue.candidates(), None)):
            queue.take(ask)
            queue.charge(ask.tenant, ask.prompt)
            self.work[ask.tenant] += ask.prompt
            self.running[ask] = 0
            self.taken.append(ask)
        assert len(self.running) == self.slots or not queue, "a slot is idle while requests wait"
        for ask in list(self.running):
            queue.charge(ask.tenant, GENERATED)
            self.work[ask.tenant] += GENERATED
            self.running[ask] += 1
            if self.running[ask] == ask.tokens:
                del self.running[ask]
                queue.leave(ask)

    def drain(self) -> None:
        while self.queue or self.running:
            self.step()

    def served_before(self, ask: Ask) -> int:
        """Requests that were given a slot from now on before this one was."""
        known = len(self.taken)
        while ask not in self.taken[known:]:
            self.step()
        return self.taken.index(ask) - known


def test_one_tenant_is_served_first_come_first_served() -> None:
    machine = Machine(2)
    asks = [Ask("", tokens=random.Random(n).randint(1, 30)) for n in range(50)]
    machine.submit(*asks[:20])
    for ask in asks[20:]:
        machine.step()
        machine.submit(ask)
    machine.drain()
    assert machine.taken == asks


@pytest.mark.parametrize("steps_before", range(0, 200, 7))
def test_a_small_tenant_waits_for_one_slot(steps_before: int) -> None:
    rng = random.Random(steps_before)
    machine = Machine(4)
    machine.submit(*(Ask("big", 5, rng.randint(50, 150)) for _ in range(400)))
    for _ in range(1 + steps_before):
        machine.step()
    small = Ask("small", 5, 4)
    machine.submit(small)
    assert machine.served_before(small) <= 1


def test_none_of_a_thousand_tenants_starves() -> None:
    rng = random.Random(1)
    machine = Machine(16)
    asks = [
        Ask(f"{n}", rng.randint(1, 100), rng.randint(1, 100))
        for n in range(1000)
        for _ in range(rng.choice((1, 2, 20)))
    ]
    rng.shuffle(asks)
    machine.submit(*asks)
    first: dict[str, int] = {}
    while machine.queue or machine.running:
        machine.step()
        for at, ask in enumerate(machine.taken[-16:], max(0, len(machine.taken) - 16)):
            first.setdefault(ask.tenant, at)
    assert len(machine.taken) == len(asks)
    assert len(first) == 1000
    # Each of the others can be given a slot once before, by a tie or a charge that comes late.
    assert max(first.values()) < 2000


def test_tenants_that_always_wait_are_given_equally_much() -> None:
    rng = random.Random(2)
    machine = Machine(8)
    sizes = {"a": 1, "b": 10, "c": 100}  # long requests do not get more than short ones
    for tenant, size in sizes.items():
        count = 20_000 // size
        machine.submit(*(Ask(tenant, size, rng.randint(1, 2 * size)) for _ in range(count)))
    for _ in range(1000):
        machine.step()
    assert all(any(ask.tenant == tenant for ask in machine.queue) for tenant in sizes)
    # Theorem 4.8 of the paper: twice the greatest prompt, or what all slots can be made to hold.
    bound = 2 * max(100, GENERATED * 200 * 8)
    assert max(machine.work.values()) - min(machine.work.values()) <= bound
    assert min(machine.work.values()) > 3 * bound / 8


def test_an_idle_tenant_saves_no_credit() -> None:
    machine = Machine(1)
    machine.submit(Ask("late"), *(Ask("busy") for _ in range(300)))
    while len(machine.taken) < 200:
        machine.step()
    machine.submit(*(Ask("late") for _ in range(100)))
    known = len(machine.taken)
    while len(machine.taken) < known + 100:
        machine.step()
    assert 45 <= sum(ask.tenant == "busy" for ask in machine.taken[known:]) <= 55


def test_slots_that_nobody_else_wanted_are_not_held_against_a_tenant() -> None:
    machine = Machine(4)
    machine.submit(Ask("slow", tokens=100_000), *(Ask("busy", tokens=100) for _ in range(60)))
    while machine.queue:
        machine.step()
    machine.submit(*(Ask("new", tokens=100) for _ in range(60)))
    machine.submit(*(Ask("busy", tokens=100) for _ in range(60)))
    known = len(machine.taken)
    while len(machine.taken) < known + 60:
        machine.step()
    assert 20 <= sum(ask.tenant == "busy" for ask in machine.taken[known:]) <= 40


def test_tenants_that_come_once_without_end_do_not_starve_a_known_one() -> None:
    machine = Machine(4)
    machine.submit(*(Ask(f"first {number}") for number in range(20)))
    known = [Ask("known") for _ in range(5)]
    for step in range(4000):  # as many as can be served, so that the queue never empties
        if step % 10 < 4:
            machine.submit(Ask(f"once {step}"))
        if step == 100:
            machine.submit(*known)
        machine.step()
        assert len(machine.queue) > 10
    assert all(ask in machine.taken for ask in known)


@pytest.mark.parametrize("rate", [2, 4, 6])
def test_tenants_without_requests_are_forgotten(rate: int) -> None:
    machine = Machine(4)
    for step in range(5000):  # below, at and above what can be served
        if step % 10 < rate:
            machine.submit(Ask(f"once {step}", tokens=10))
        machine.step()
        assert machine.queue.known <= 2 * (len(machine.queue) + len(machine.running)) + 70
    machine.drain()
    assert machine.queue.known == 0


def test_weights_divide_the_slots() -> None:
    machine = Machine(4)
    for tenant, share in (("light", Share(1)), ("heavy", Share(3))):
        machine.submit(*(Ask(tenant, share=share) for _ in range(1000)))
    for _ in range(2000):
        machine.step()
    assert machine.work["heavy"] / machine.work["light"] == pytest.approx(3, rel=0.05)


def test_a_weight_that_changes_applies_from_the_next_request_on() -> None:
    machine = Machine(4)
    for _ in range(1000):
        machine.submit(Ask("a"), Ask("b"))
    machine.submit(Ask("b", share=Share(3)))
    for _ in range(1000):
        machine.step()
    assert machine.work["b"] / machine.work["a"] == pytest.approx(3, rel=0.05)
    machine.drain()
    assert machine.queue._weights == 0


def test_a_tenant_at_its_limit_of_running_requests_lets_others_pass() -> None:
    queue: FairQueue[Ask] = FairQueue()
    two = Share(concurrent=2)
    first, second, third = (Ask("a", share=two) for _ in range(3))
    other = Ask("b")
    queue.extend([first, second, third, other])
    queue.take(first)
    queue.take(second)
    queue.charge("b", 1000)
    assert list(queue.candidates()) == [other]
    queue.leave(first)
    assert list(queue.candidates()) == [third, other]


def test_the_most_urgent_priority_is_first_then_the_fair_order() -> None:
    queue: FairQueue[Ask] = FairQueue()
    late, usual, urgent = Ask("a", priority=5), Ask("a"), Ask("b", priority=-1)
    other = Ask("c", priority=5)
    queue.extend([late, usual, other, urgent])
    queue.charge("b", 1000)
    queue.charge("a", 10)
    assert list(queue.candidates()) == [urgent, usual, late, other]
    queue.take(usual)
    assert list(queue.candidates()) == [urgent, other, late]
    queue.rotate(late)
    queue.leave(late)
    assert set(queue) == {urgent, other} and len(queue) == 2


def claims(
    slots: int, running: dict[str, int], waiting: dict[str, int], share: Share = EQUAL
) -> list[str]:
    """Which tenant may take a slot from which, as "few < many, more", in the order of trying.

    running, waiting: requests of each.
    """
    queue: FairQueue[Ask] = FairQueue()
    for tenant, count in running.items():
        asks = [Ask(tenant, share=share) for _ in range(count)]
        queue.extend(asks)
        for ask in asks:
            queue.take(ask)
    for tenant, count in waiting.items():
        queue.extend(Ask(tenant, share=share) for _ in range(count))
    return [f"{ask.tenant} < {', '.join(others)}" for ask, others in queue.claims(slots)]


@pytest.mark.parametrize(
    ("slots", "running", "waiting", "expected"),
    [
        (8, {"big": 8}, {"big": 92, "small": 1}, "small < big"),
        (8, {"big": 5, "small": 3}, {"big": 92, "small": 1}, "small < big"),
        (8, {"big": 4, "small": 4}, {"big": 92, "small": 9}, None),  # each has its share
        (8, {"big": 8}, {"big": 92}, None),  # alone
        (3, {"big": 3}, {"small": 1}, "small < big"),
        (3, {"big": 2, "small": 1}, {"small": 1}, None),  # a share is one and a half slots
        (1, {"big": 1}, {"small": 1}, None),  # a share is half a slot: it waits for the end
        (4, {"a": 2, "b": 2}, {"c": 1}, None),  # no tenant has a whole slot too many
        (8, {"a": 5, "b": 3}, {"c": 1}, "c < a"),
    ],
)
def test_a_tenant_below_its_share_takes_a_slot_of_one_above(
    slots: int, running: dict[str, int], waiting: dict[str, int], expected: str | None
) -> None:
    assert claims(slots, running, waiting)[:1] == ([] if expected is None else [expected])


@pytest.mark.parametrize("weight", [0.001, 0.1, 0.2, 0.3, 0.6, 0.7, 0.9, 1, 1.1, 7.7, 1000])
@pytest.mark.parametrize("tenants", range(2, 12))
def test_whole_shares_are_found_with_any_weight(tenants: int, weight: float) -> None:
    """One slot each: the first tenant runs one more, the last one waits."""
    running = {f"t{number}": 1 for number in range(tenants - 2)} | {"big": 2}
    assert claims(tenants, running, {"small": 1}, Share(weight)) == ["small < big"]


def test_every_tenant_below_its_share_may_claim_from_every_one_above() -> None:
    running = {"a": 6, "b": 3}
    assert claims(9, running, {"a": 1, "c": 2, "d": 1}) == ["c < a", "c < a", "d < a"]
    running = {"a": 5, "b": 7}
    assert claims(12, running, {"c": 1, "d": 1}) == ["c < b, a", "d < b, a"]


def test_a_tenant_with_many_waiting_requests_makes_no_long_list_of_claims() -> None:
    assert len(claims(4, {"a": 4}, {"b": 10_000})) == CLAIMANTS


def test_a_paused_request_is_the_next_of_its_tenant() -> None:
    queue: FairQueue[Ask] = FairQueue()
    paused, second, other = Ask("a"), Ask("a"), Ask("b")
    queue.extend([paused, second, other])
    queue.take(paused)
    queue.charge("a", 10)
    queue.pause(paused)
    assert list(queue.candidates()) == [other, paused, second] and len(queue) == 3
    queue.leave(paused)
    assert len(queue) == 2 and queue.known == 2


def test_a_preempted_request_is_the_next_of_all() -> None:
    queue: FairQueue[Ask] = FairQueue()
    preempted, second, other = Ask("a"), Ask("a"), Ask("b")
    queue.extend([preempted, second, other])
    queue.take(preempted)
    queue.charge("a", 1000)
    assert list(queue.candidates()) == [other, second]
    queue.put_back(preempted)
    assert list(queue.candidates()) == [preempted, other, second]
    assert set(queue) == {preempted, second, other} and len(queue) == 3
    queue.take(preempted)
    assert len(queue) == 2


def test_requests_that_end_leave_from_wherever_they_are() -> None:
    queue: FairQueue[Ask] = FairQueue()
    waiting, preempted, running = asks = [Ask("a"), Ask("a"), Ask("b")]
    queue.extend(asks)
    queue.take(preempted)
    queue.take(running)
    queue.put_back(preempted)
    for ask, left in ((preempted, 1), (waiting, 0), (running, 0)):
        queue.leave(ask)
        assert len(queue) == left
    assert queue.known == 0 and list(queue) == []


def test_a_new_share_applies_to_waiting_requests_and_to_claims() -> None:
    queue: FairQueue[Ask] = FairQueue()
    rich, poor = [Ask("a") for _ in range(4)], Ask("b", share=Share(weight=0.1))
    queue.extend([*rich, poor])
    for ask in rich:
        queue.take(ask)
    assert list(queue.claims(4)) == []
    queue.renew("b", Share(weight=1.0, concurrent=0))
    assert list(queue.candidates()) == []
    queue.renew("b", Share(weight=1.0))
    assert [claim[0] for claim in queue.claims(4)] == [poor]
    queue.renew("c", Share())
    assert queue.known == 2, "a tenant without requests is not known"


def test_requests_of_a_tenant_take_turns_where_they_rotate() -> None:
    queue: FairQueue[Ask] = FairQueue()
    asks = [Ask("a"), Ask("a"), Ask("a")]
    queue.extend(asks)
    queue.rotate(asks[0])
    assert list(queue.candidates()) == [asks[1], asks[2], asks[0]]


@pytest.mark.parametrize(
    ("waiting", "newcomer", "expected"),
    [
        ({}, "a", "a"),
        ({"a": 3}, "a", "a"),
        ({"a": 3}, "b", "a"),
        ({"a": 2, "b": 1}, "b", "b"),  # as many as the other: the last to come is refused
        ({"a": 3, "b": 1}, "b", "a"),
        ({"a": 3, "b": 9, "c": 2}, "a", "b"),
        ({"a": 1}, "b", "b"),
    ],
)
def test_who_has_most_waiting_gives_way(
    waiting: dict[str, int], newcomer: str, expected: str
) -> None:
    counts = {tenant: [None] * count for tenant, count in waiting.items()}
    assert gives_way(counts, newcomer) == expected
