"""Drafts from the text itself: what followed before, and only as far as it pays."""

from __future__ import annotations

from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.speculation.drafter import CopyRates, Drafter, PromptLookup


def tokens_of(*values: int) -> array[int]:
    return array("i", values)


def drafted(tokens: array[int], limit: int, lookup: PromptLookup | None = None) -> list[int]:
    lookup = lookup or PromptLookup()
    return lookup.draft(tokens, limit) if lookup.follow(tokens, CopyRates()) else []


def test_what_followed_the_same_three_tokens_is_drafted() -> None:
    assert drafted(tokens_of(1, 2, 3, 4, 5, 1, 2, 3), 2) == [4, 5]
    assert drafted(tokens_of(1, 2, 3, 4, 5, 1, 2, 3, 9), 2) == []
    assert drafted(tokens_of(1, 2), 4) == []


def test_the_newest_follower_counts() -> None:
    assert drafted(tokens_of(1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3), 1) == [5]


def test_a_text_that_repeats_itself_is_expected_to_go_on() -> None:
    assert drafted(tokens_of(7, 8, 7, 8, 7, 8), 5) == [7, 8, 7, 8, 7]


def test_a_place_that_is_being_copied_is_copied_to_its_end() -> None:
    lookup, text = PromptLookup(), tokens_of(1, 2, 3, 4, 5, 6, 9, 3, 4, 5, 7, 9, 1, 2, 3)
    assert drafted(text, 3, lookup) == [4, 5, 6]
    text.extend([4, 5])
    assert drafted(text, 1, lookup) == [6], "not 7, although that followed 3, 4, 5 later"
    assert lookup.run == 2


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8), st.integers(1, 5))
def test_what_is_drafted_as_the_text_grows_followed_the_same_tokens(
    text: list[int], limit: int, step: int
) -> None:
    growing = PromptLookup()
    for length in range(0, len(text) + 1, step):
        tokens = array("i", text[:length])
        draft = drafted(tokens, limit, growing)
        last = tokens[-3:]
        followers = [tokens[i] for i in range(3, length) if tokens[i - 3 : i] == last]
        assert len(draft) == (limit if followers else 0)
        assert not draft or draft[0] in followers


def test_the_table_of_a_long_prompt_is_filled_in_slices() -> None:
    tokens = tokens_of(*range(4000), 7, 8, 9)
    lookup = PromptLookup()
    calls, added = 0, [0]
    while added[-1] < len(tokens) - 3:
        assert drafted(tokens, 3, lookup) == [10, 11, 12]
        added.append(len(lookup._follower))
        calls += 1
        assert calls < 10
    assert max(b - a for a, b in pairwise(added)) <= 1024


def test_tokens_that_come_before_a_table_is_full_are_in_it_later() -> None:
    tokens, lookup = tokens_of(*range(4000)), PromptLookup()
    assert drafted(tokens, 1, lookup) == []
    tokens.extend([5000, 5001, 5002, 5003])
    for _ in range(5):
        drafted(tokens, 1, lookup)
        tokens.append(9000 + len(tokens))
    tokens.extend([5000, 5001, 5002])
    assert drafted(tokens, 1, lookup) == [5003]


def chances(drafter: Drafter, tokens: array[int], before: CopyRates) -> list[float]:
    return drafter.chances(tokens, 16, 0.0, before)


def test_predictions_are_judged_by_the_text_without_being_drafted() -> None:
    drafter, before = Drafter(), CopyRates()
    text = tokens_of(*range(1, 50))
    at_first = 0.0
    for number in range(60):  # each comes after three known tokens and never again
        text.extend([10, 11, 12])
        found = chances(drafter, text, before)
        at_first = max(at_first, found[0])
        text.append(10_000 + number)
    assert 0 < found[0] < at_first / 5
    fresh = chances(Drafter(), text, before)
    text.extend([20, 21, 22])
    assert chances(Drafter(), text, before)[0] < at_first, "others begin with what was learned"
    assert fresh == []


def test_the_longer_a_run_of_right_predictions_the_likelier_the_next() -> None:
    drafter, before = Drafter(), CopyRates()
    source = list(range(1, 200))
    text = tokens_of(*source, 10, 11, 12)
    first = []
    for token in source[12:60]:
        first.append(chances(drafter, text, before)[0])
        text.append(token)
    assert first[0] < 0.85 < first[5] < 0.95 < first[-1]


def copying(drafter: Drafter, before: CopyRates, right: int) -> array[int]:
    """A text that repeats its beginning, of which so many predictions were right."""
    text = tokens_of(*range(1, 60), 1, 2, 3)
    for token in range(4, 4 + right):
        chances(drafter, text, before)
        text.append(token)
    return text


def test_chances_are_of_all_tokens_up_to_one_and_end_where_they_are_too_small() -> None:
    drafter, before = Drafter(), CopyRates()
    text = copying(drafter, before, 6)
    found = drafter.chances(text, 16, 0.0, before)
    assert len(found) == 16 and all(a > b for a, b in pairwise(found))
    assert drafter.chances(text, 16, found[3], before) == found[:3]
    assert drafter.chances(text, 0, 0.0, before) == []
    assert drafter.draft(text, 3, 0.1) == [10, 11, 12]


def test_drafts_are_short_before_a_run_of_predictions_was_right() -> None:
    drafter, before = Drafter(), CopyRates()
    assert len(chances(drafter, copying(drafter, before, 0), before)) == 3
    drafter = Drafter()
    assert len(chances(drafter, copying(drafter, before, 4), before)) == 16


def test_drafts_that_lost_too_much_stop_until_a_run_of_predictions_was_right() -> None:
    drafter, before = Drafter(), CopyRates()
    text = copying(drafter, before, 0)
    assert chances(drafter, text, before)
    drafter.draft(text, 2, 1.3)
    drafter.observe(2, 0)
    text.extend([900, 20, 21, 22])
    assert chances(drafter, text, before) == []
    for token in (23, 24, 25, 26):
        assert chances(drafter, text, before) == []
        text.append(token)
    assert len(chances(drafter, text, before)) == 16
    drafter.draft(text, 8, 2.0)
    drafter.observe(8, 8)
    text.extend([*range(27, 36), 901, 10, 11, 12])
    assert chances(drafter, text, before), "what was gained may be lost"
