"""When the engine thread gets what others left for it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cllm.engine.inbox import Inbox
from tests.engine.engine_helpers import WAIT, Loader, finished, greedy, recorded_steps


class WatchedCondition(threading.Condition):
    """A condition that tells when somebody begins to wait for it with a timeout."""

    def __init__(self) -> None:
        super().__init__()
        self.gathering = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if timeout is not None:
            self.gathering.set()
        return super().wait(timeout)


def gather(companions: int) -> list[str]:
    """What a taker gets with four places and time to gather, once the first was there."""
    inbox: Inbox[str] = Inbox(4, 0)
    inbox._changed = changed = WatchedCondition()
    inbox.put("first")
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(inbox.take, wait=True, gather_s=2 * WAIT)
        assert changed.gathering.wait(WAIT)
        for number in range(companions):
            inbox.put(str(number))
        if companions < 3:
            inbox.wake()
        messages = taken.result(WAIT)
    assert messages is not None
    return messages[0]


def test_who_comes_together_with_the_first_begins_with_it() -> None:
    assert gather(companions=3) == ["first", "0", "1", "2"]


def test_who_comes_alone_does_not_wait_for_ever() -> None:
    inbox: Inbox[str] = Inbox(4, 0)
    inbox.put("first")
    assert inbox.take(wait=True, gather_s=0.001) == (["first"], set())


def test_what_is_urgent_does_not_wait_for_companions() -> None:
    assert gather(companions=0) == ["first"]


def test_who_works_already_waits_for_nobody() -> None:
    inbox: Inbox[str] = Inbox(4, 0)
    inbox._changed = changed = WatchedCondition()
    inbox.put("first")
    assert inbox.take(wait=False, gather_s=WAIT) == (["first"], set())
    assert not changed.gathering.is_set()


def test_prompts_that_come_together_to_an_idle_engine_are_read_in_one_step(
    load: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cllm.engine.scheduler._GATHER_S", WAIT)
    engine = load(parallel=2)
    steps = recorded_steps(engine)
    asked = [engine.submit(list(range(n, n + 30)), greedy(2)) for n in (300, 400)]
    for generation in asked:
        finished(generation)
    assert set(steps[0]) == {0, 1}
