"""Common prefixes are found after any insertions, splits and removals."""

from __future__ import annotations

import random
from array import array

from cllm.engine.cache.radix import RadixTree, common_prefix


def tokens(*values: int) -> array[int]:
    return array("i", values)


def tree(**held: array[int]) -> RadixTree[str]:
    made: RadixTree[str] = RadixTree()
    for name, content in held.items():
        made.insert(name, content)
    return made


def test_common_prefix_counts_equal_leading_tokens() -> None:
    assert common_prefix(tokens(1, 2, 3, 4), tokens(1, 2, 9, 4)) == 2
    assert common_prefix(tokens(1, 2), tokens(1, 2, 9, 4)) == 2
    assert common_prefix(tokens(), tokens(1)) == 0
    assert common_prefix(tokens(2, 1), tokens(1, 1)) == 0


def test_each_holder_is_found_with_what_it_shares() -> None:
    found = tree(a=tokens(1, 2, 3), b=tokens(1, 2, 9, 9), c=tokens(5)).shared(tokens(1, 2, 3, 4))
    assert found == {"a": 3, "b": 2}


def test_a_beginning_ends_inside_a_longer_one() -> None:
    assert tree(long=tokens(1, 2, 3, 4)).shared(tokens(1, 2)) == {"long": 2}
    assert tree(a=tokens(1, 2), b=tokens(1, 2, 3)).shared(tokens(1, 2)) == {"a": 2, "b": 2}


def test_two_may_hold_the_same() -> None:
    both = tree(a=tokens(1, 2), b=tokens(1, 2))
    both.remove("a")
    assert both.shared(tokens(1, 2, 3)) == {"b": 2}


def test_inserting_again_replaces() -> None:
    made = tree(a=tokens(1, 2, 3))
    made.insert("a", tokens(7, 8))
    assert made.shared(tokens(1, 2, 3)) == {}
    assert made.shared(tokens(7, 8)) == {"a": 2}


def test_nothing_is_shared_by_and_with_nothing() -> None:
    assert tree(a=tokens()).shared(tokens(1)) == {}
    assert tree(a=tokens(1)).shared(tokens()) == {}
    RadixTree[str]().remove("unknown")


def test_any_history_gives_what_comparing_one_by_one_gives() -> None:
    rng = random.Random(0)
    made: RadixTree[int] = RadixTree()
    held: dict[int, array[int]] = {}
    for _ in range(3000):
        who = rng.randrange(12)
        if rng.random() < 0.3:
            made.remove(who)
            held.pop(who, None)
        else:
            held[who] = array("i", rng.choices((1, 2), k=rng.randrange(8)))
            made.insert(who, held[who])
        wanted = array("i", rng.choices((1, 2), k=rng.randrange(9)))
        expected = {h: n for h, t in held.items() if (n := common_prefix(t, wanted))}
        assert made.shared(wanted) == expected
