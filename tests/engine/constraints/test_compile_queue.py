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


def test_nothing_is_lost_or_kept_whatever_comes() -> None:
    rng = random.Random(3)
    queue, waiting = CompileQueue(8), {}  # type: ignore[var-annotated]
    for _ in range(5000):
        tenant, name = f"t{rng.randrange(4)}", f"{rng.randrange(20)}"
        match rng.randrange(3):
            case 0:
                if regex(name) not in queue:
                    try:
                        displaced = queue.room_for(tenant)
                    except IndexError:
                        continue
                    if displaced is not None:
                        assert len(set(waiting.pop(displaced.source))) == 1
                queue.join(regex(name), tenant)
                waiting.setdefault(name, []).append(tenant)
            case 1:
                expected = waiting.get(name, []) == [tenant]
                assert queue.leave(regex(name), tenant) == expected
                if tenant in waiting.get(name, []):
                    waiting[name].remove(tenant)
                    if not waiting[name]:
                        del waiting[name]
            case 2:
                if len(queue):
                    assert waiting.pop(queue.take().source)
        assert len(queue) == len(waiting) <= 8
        assert {name for names in queue._waiting.values() for name in names} == set(
            map(regex, waiting)
        )
