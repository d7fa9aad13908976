"""Drafts from the text itself: what followed before, and only as far as it pays."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.speculation.drafter import Guesser, Lookup


def tokens_of(*values: int) -> array[int]:
    return array("i", values)


def test_what_followed_the_same_three_tokens_is_guessed() -> None:
    lookup = Lookup()
    assert lookup.guess(tokens_of(1, 2, 3, 4, 5, 1, 2, 3), 2) == [4, 5]
    assert lookup.guess(tokens_of(1, 2, 3, 4, 5, 1, 2, 3, 9), 2) == []
    assert Lookup().guess(tokens_of(1, 2), 4) == []


def test_the_newest_follower_counts() -> None:
    assert Lookup().guess(tokens_of(1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3), 1) == [5]


def test_a_text_that_repeats_itself_is_expected_to_go_on() -> None:
    assert Lookup().guess(tokens_of(7, 8, 7, 8, 7, 8), 5) == [7, 8, 7, 8, 7]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_guessing_as_the_text_grows_is_guessing_from_the_whole(text: list[int], most: int) -> None:
    growing = Lookup()
    for length in range(len(text) + 1):
        tokens = array("i", text[:length])
        guessed = growing.guess(tokens, most)
        assert guessed == Lookup().guess(tokens, most)
        assert len(guessed) in (0, most)


def test_guesses_that_come_true_grow_and_others_stop() -> None:
    guesser, text = Guesser(), tokens_of(*([1, 2, 3, 4] * 20))
    first = len(guesser.guess(text, 16, 0.3))
    for _ in range(20):
        guesser.observe(8, 8)
    assert len(guesser.guess(text, 16, 0.3)) == 16 > first > 0
    for _ in range(20):
        guesser.observe(4, 0)
    tried = [len(guesser.guess(text, 16, 0.3)) for _ in range(100)]
    assert 0 < sum(map(bool, tried)) <= 4, "only a probe now and then"


def test_what_costs_as_much_as_a_step_of_its_own_is_not_guessed() -> None:
    guesser = Guesser()
    assert guesser.guess(tokens_of(*([1, 2, 3, 4] * 20)), 16, 1.0) == []
