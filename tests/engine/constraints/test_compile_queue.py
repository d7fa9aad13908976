"""Which constraint is compiled next, and which gives way: the policy alone."""

from __future__ import annotations

import random

import pytest

from cllm.engine.constraints.compile_queue import CompileQueue
from cllm.engine.constraints.constraint import Constraint


def regex(name: object) -> Constraint:
    return Constraint("regex", f"{name}")


def filled(*waiting: tuple[str, str], most: int = 64) -> CompileQueue:
    """waiting: (tenant, constraint)."""
    queue = CompileQueue(most)
    for tenant, name in waiting:
        queue.join(regex(name), tenant)
    return queue


def taken(queue: CompileQueue) -> list[str]:
    return [queue.take().source for _ in range(len(queue))]


def test_tenants_take_turns_however_many_each_has() -> None:
    queue = filled(*(("many", f"m{n}") for n in range(4)), ("few", "f0"), ("few", "f1"))
    assert taken(queue) == ["m0", "f0", "m1", "f1", "m2", "m3"]
    with pytest.raises(KeyError):
        queue.take()


def test_what_two_wait_for_is_compiled_once() -> None:
    queue = filled(("a", "x"), ("a", "both"), ("b", "both"), ("b", "y"))
    assert len(queue) == 3
    assert taken(queue) == ["x", "both", "y"]


def test_a_constraint_leaves_with_the_last_who_waits_for_it() -> None:
    queue = filled(("a", "x"), ("a", "x"), ("b", "x"), ("b", "y"))
    assert [queue.leave(regex("x"), who) for who in ("a", "a", "a", "b", "b")] == [
        False, False, False, True, False,
    ]  # fmt: skip
    assert not queue.leave(regex("unknown"), "a")
    assert taken(queue) == ["y"]


def test_the_newest_of_the_tenant_with_most_gives_way() -> None:
    queue = filled(("many", "0"), ("many", "1"), ("many", "shared"), ("few", "shared"), most=3)
    gave_way = queue.room_for("other")
    assert gave_way == regex("1"), "another waits for the newest one"
    queue.join(regex("new"), "other")
    with pytest.raises(IndexError):
        queue.room_for("many")
    with pytest.raises(IndexError):
        queue.room_for("other")
    assert filled(most=1).room_for("any") is None


def test_who_waits_for_what_was_taken_may_join_and_leave_too() -> None:
    queue = filled(("a", "x"), ("b", "x"), ("b", "y"))
    assert queue.take() == regex("x") and len(queue) == 1
    queue.join(regex("x"), "c")
    assert [queue.leave(regex("x"), who) for who in ("a", "c", "b")] == [False, False, True]
    queue.join(regex("x"), "a")
    assert taken(queue) == ["y"], "it is not compiled twice"
    for _ in range(2):
        queue.done(regex("x"))
    assert not queue.leave(regex("x"), "a")
    assert queue._interest.keys() == queue._taken == {regex("y")}


def test_nothing_is_lost_or_kept_whatever_comes() -> None:
    rng = random.Random(3)
    queue = CompileQueue(8)
    interest: dict[str, list[str]] = {}  # the tenants who wait for each
    compiling: set[str] = set()
    for _ in range(10_000):
        tenant, name = f"t{rng.randrange(4)}", f"{rng.randrange(20)}"
        match rng.randrange(4):
            case 0:
                if name not in interest:
                    try:
                        displaced = queue.room_for(tenant)
                    except IndexError:
                        continue
                    if displaced is not None:
                        assert len(set(interest.pop(displaced.source))) == 1
                queue.join(regex(name), tenant)
                interest.setdefault(name, []).append(tenant)
            case 1:
                last = interest.get(name) == [tenant]
                assert queue.leave(regex(name), tenant) == last
                if tenant in interest.get(name, []):
                    interest[name].remove(tenant)
                if last and name not in compiling:
                    del interest[name]
            case 2:
                if len(queue):
                    compiling.add(queue.take().source)
            case 3:
                if name in compiling:
                    queue.done(regex(name))
                    compiling.discard(name)
                    del interest[name]
        waiting = interest.keys() - compiling
        assert len(queue) == len(waiting) <= 8
        found = {each.source for queued in queue._waiting.values() for each in queued}
        assert found == waiting and compiling <= interest.keys()
