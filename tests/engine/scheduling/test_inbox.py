"""When the engine thread gets the requests and messages of other threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cllm.engine.errors import QueueFull
from cllm.engine.scheduling.inbox import Inbox, Messages
from cllm.engine.sharing import EQUAL, Share
from tests.engine.engine_helpers import WAIT, Loader, finished, greedy, recorded_steps


class Item(str):
    """A request that tells itself apart by a name."""

    __slots__ = ()
    tenant = ""
    share = EQUAL
    priority = 0


class Of(Item):
    """A request whose tenant is the part of its name before the number."""

    __slots__ = ()

    @property
    def tenant(self) -> str:  # type: ignore[override]
        return self.rstrip("0123456789")


class WatchedCondition(threading.Condition):
    """A condition that tells when somebody begins to wait for it with a timeout."""

    def __init__(self, lock: Any) -> None:
        super().__init__(lock)
        self.gathering = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.gathering.set()
        return super().wait(timeout)


def gather(companions: int) -> list[Item]:
    """What a taker gets with four places and time to gather, once the first was there."""
    inbox: Inbox[Item] = Inbox(4, 0)
    inbox._changed = changed = WatchedCondition(inbox._lock)
    inbox.put(Item("first"))
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(inbox.take, wait=True, gather_s=2 * WAIT)
        assert changed.gathering.wait(WAIT)
        for number in range(companions):
            inbox.put(Item(number))
        if companions < 3:
            inbox.wake()
        messages = taken.result(WAIT)
    assert messages is not None
    return messages.arrivals


def test_who_comes_together_with_the_first_begins_with_it() -> None:
    assert gather(companions=3) == ["first", "0", "1", "2"]


def test_who_comes_alone_does_not_wait_for_ever() -> None:
    inbox: Inbox[Item] = Inbox(4, 0)
    inbox.put(Item("first"))
    assert inbox.take(wait=True, gather_s=0.001) == Messages([Item("first")], set(), [])


@pytest.mark.parametrize(
    ("ended", "arrived", "longer"), [(3, 2, True), (3, 3, False), (1, 1, False)]
)
def test_after_several_ended_together_as_many_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, ended: int, arrived: int, longer: bool
) -> None:
    inbox: Inbox[Item] = Inbox(4, 0)
    for number in range(ended):
        inbox.put(Item(number))
    assert inbox.take(wait=False) is not None
    for number in range(ended):
        inbox.ended(Item(number), 1.0)
    for number in range(arrived):
        inbox.put(Item(number))
    waits: list[float | None] = []
    monkeypatch.setattr(inbox._changed, "wait", lambda timeout=None: waits.append(timeout))
    messages = inbox.take(wait=True, gather_s=WAIT)
    assert messages is not None
    assert len(messages.arrivals) == arrived
    assert [(each or 0.0) > WAIT for each in waits] == [longer]


def test_what_is_urgent_does_not_wait_for_companions() -> None:
    assert gather(companions=0) == ["first"]


def test_who_works_already_waits_for_nobody() -> None:
    inbox: Inbox[Item] = Inbox(4, 0)
    inbox._changed = changed = WatchedCondition(inbox._lock)
    inbox.put(Item("first"))
    assert inbox.take(wait=False, gather_s=WAIT) == Messages([Item("first")], set(), [])
    assert not changed.gathering.is_set()


def test_prompts_that_come_together_to_an_idle_engine_are_read_in_one_step(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.engine.scheduling.scheduler._GATHER_S", WAIT)
    engine = load(parallel=2)
    steps = recorded_steps(engine)
    asked = [engine.submit(list(range(n, n + 30)), greedy(2)) for n in (300, 400)]
    for generation in asked:
        finished(generation)
    assert set(steps[0]) == {0, 1}


def put_all(inbox: Inbox[Item], *names: str) -> list[str]:
    """Put requests; the names of those that are refused at once."""
    refused = []
    for name in names:
        try:
            inbox.put(Of(name))
        except QueueFull:
            refused.append(name)
    return refused


def test_the_newest_of_the_tenant_that_has_most_waiting_gives_way() -> None:
    inbox: Inbox[Item] = Inbox(1, 4)
    assert put_all(inbox, "a1", "a2", "a3", "a4", "a5", "a6") == ["a6"]
    assert put_all(inbox, "b1", "c1", "b2", "c2", "a7") == ["c2", "a7"]
    messages = inbox.take(wait=False)
    assert messages is not None
    assert [name for name, _ in messages.displaced] == ["a5", "a4", "a3"]
    assert all(isinstance(error, QueueFull) for _, error in messages.displaced)
    assert inbox.refused == 3 + 3
    assert inbox.take(wait=False) == Messages([], set(), [])


def test_what_has_begun_does_not_give_way() -> None:
    inbox: Inbox[Item] = Inbox(2, 0)
    assert put_all(inbox, "a1", "a2") == []
    for name in ("a1", "a2"):
        inbox.begun(Of(name))
    assert put_all(inbox, "b1") == ["b1"]
    inbox.ended(Of("a1"), 1.0)
    assert put_all(inbox, "b1") == []


def test_a_request_that_ended_while_it_waited_makes_room() -> None:
    inbox: Inbox[Item] = Inbox(1, 1)
    assert put_all(inbox, "a1", "a2", "a3") == ["a3"]
    inbox.ended(Of("a2"), 0.0)
    assert put_all(inbox, "b1", "b2") == ["b2"]


class Bounded(Of):
    """A request of a tenant of whom one may run and two may wait."""

    __slots__ = ()
    share = Share(concurrent=1, queued=2)


def test_a_tenant_may_have_a_bound_of_its_own() -> None:
    inbox: Inbox[Item] = Inbox(8, 100)
    for number in range(3):
        inbox.put(Bounded(f"a{number}"))
    with pytest.raises(QueueFull) as caught:
        inbox.put(Bounded("a3"))
    assert caught.value.waiting == 3
    with pytest.raises(QueueFull):
        inbox.check_open("a", Bounded.share)
    inbox.put(Bounded("b0"))
    inbox.ended(Bounded("a0"), 0.0)
    inbox.put(Bounded("a4"))
    assert inbox.refused == 2
