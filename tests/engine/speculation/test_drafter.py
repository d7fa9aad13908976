"""Drafts from the text itself: what followed before, and only as far as it pays."""

from __future__ import annotations

from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.speculation.drafter import Drafter, PromptLookup


def tokens_of(*values: int) -> array[int]:
    return array("i", values)


def test_what_followed_the_same_three_tokens_is_drafted() -> None:
    lookup = PromptLookup()
    assert lookup.draft(tokens_of(1, 2, 3, 4, 5, 1, 2, 3), 2) == [4, 5]
    assert lookup.draft(tokens_of(1, 2, 3, 4, 5, 1, 2, 3, 9), 2) == []
    assert PromptLookup().draft(tokens_of(1, 2), 4) == []


def test_the_newest_follower_counts() -> None:
    assert PromptLookup().draft(tokens_of(1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3), 1) == [5]


def test_a_text_that_repeats_itself_is_expected_to_go_on() -> None:
    assert PromptLookup().draft(tokens_of(7, 8, 7, 8, 7, 8), 5) == [7, 8, 7, 8, 7]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_drafting_as_the_text_grows_is_drafting_from_the_whole(text: list[int], limit: int) -> None:
    growing = PromptLookup()
    for length in range(len(text) + 1):
        tokens = array("i", text[:length])
        draft = growing.draft(tokens, limit)
        assert draft == PromptLookup().draft(tokens, limit)
        assert len(draft) in (0, limit)


def test_the_table_of_a_long_prompt_is_filled_in_slices() -> None:
    tokens = tokens_of(*range(4000), 7, 8, 9)
    lookup = PromptLookup()
    calls, added = 0, [0]
    while added[-1] < len(tokens) - 3:
        assert lookup.draft(tokens, 3) == [10, 11, 12]
        added.append(len(lookup._follower))
        calls += 1
        assert calls < 10
    assert max(b - a for a, b in pairwise(added)) <= 1024


def test_accepted_drafts_grow_and_rejected_ones_stop() -> None:
    drafter, text = Drafter(), tokens_of(*([1, 2, 3, 4] * 20))
    first = len(drafter.draft(text, 16, 0.3))
    for _ in range(20):
        drafter.observe(8, 8)
    assert len(drafter.draft(text, 16, 0.3)) == 16 > first > 0
    for _ in range(20):
        drafter.observe(4, 0)
    tried = [len(drafter.draft(text, 16, 0.3)) for _ in range(100)]
    assert 0 < sum(map(bool, tried)) <= 4, "only a probe now and then"


def test_a_token_that_costs_as_much_as_a_step_is_not_drafted() -> None:
    drafter = Drafter()
    assert drafter.draft(tokens_of(*([1, 2, 3, 4] * 20)), 16, 1.0) == []
