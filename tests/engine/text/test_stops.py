"""StopMatcher: no part of a stop string gets out, and nothing else is held back."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.text.stops import StopMatcher, _Automaton

# Few letters, so that stop strings overlap, contain one another and nearly match all the time.
letters = st.text(alphabet="ab🙂", max_size=40)
stop_lists = st.lists(st.text(alphabet="ab🙂", min_size=1, max_size=6), max_size=5)


def cut(text: str, borders: list[int]) -> list[str]:
    edges = [0, *sorted(min(b, len(text)) for b in borders), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def up_to_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The rule said slowly: read on until the text ends with a stop string, drop the longest."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


def run(stops: list[str], chunks: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    published = ""
    for chunk in chunks:
        text, stopped = matcher.push(chunk)
        published += text
        if stopped:
            return published, True
    return published + matcher.flush(), False


@given(letters, stop_lists, st.lists(st.integers(0, 40), max_size=10))
def test_any_chunking_publishes_exactly_the_text_before_the_first_stop(
    text: str, stops: list[str], borders: list[int]
) -> None:
    assert run(stops, cut(text, borders)) == up_to_first_stop(text, stops)


@given(letters, stop_lists)
def test_what_is_published_is_never_taken_back_and_never_more_than_must_be_is_held(
    text: str, stops: list[str]
) -> None:
    final, _ = up_to_first_stop(text, stops)
    matcher = StopMatcher(stops)
    published = ""
    for read, character in enumerate(text, start=1):
        out, stopped = matcher.push(character)
        published += out
        assert final.startswith(published)
        if stopped:
            break
        held = text[:read][len(published) :]
        possible = [s[:k] for s in stops for k in range(1, len(s))]
        assert held == "" or held in possible


@given(st.text(), st.lists(st.text(min_size=1, max_size=3), max_size=3), st.integers(1, 5))
def test_it_holds_for_all_of_unicode(text: str, stops: list[str], size: int) -> None:
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert run(stops, chunks) == up_to_first_stop(text, stops)


def test_without_stop_strings_text_passes_at_once() -> None:
    matcher = StopMatcher(())
    assert matcher.push("all of it") == ("all of it", False)
    assert matcher.flush() == ""


def test_a_beginning_of_a_stop_string_waits_and_comes_out_when_it_turns_out_otherwise() -> None:
    matcher = StopMatcher(["\nUser:"])
    assert matcher.push("Hi!\nUs") == ("Hi!", False)
    assert matcher.push("e") == ("", False)
    assert matcher.push("ful") == ("\nUseful", False)


def test_a_failed_match_may_hide_the_beginning_of_another() -> None:
    assert run(["aab"], ["a", "a", "a", "b", "c"]) == ("a", True)
    assert run(["abab!", "ba?"], ["abab", "a?"]) == ("aba", True)


def test_the_stop_that_is_complete_first_wins_and_of_equal_ends_the_longest() -> None:
    assert run(["world", "wor"], ["hello world"]) == ("hello ", True)
    assert run(["cd", "abcd"], ["xabcd"]) == ("x", True)
    assert run(["abcd", "bc"], ["abcd"]) == ("a", True)


def test_the_end_of_the_text_lets_out_what_was_held() -> None:
    matcher = StopMatcher(["</s>"])
    assert matcher.push("bye </") == ("bye ", False)
    assert matcher.flush() == "</"
    assert matcher.flush() == ""


@pytest.mark.parametrize(
    ("stops", "text", "found"),
    [
        (["ab", "b"], "xab", "ab"),
        (["abcd", "bc"], "abcx", "bc"),
        (["x"], "abc", ""),
    ],
)
def test_the_stop_string_that_was_found_is_known(stops: list[str], text: str, found: str) -> None:
    matcher = StopMatcher(stops)
    for character in text:
        matcher.push(character)
    assert matcher.found == found


def test_nothing_comes_out_after_a_stop() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("One. Two") == ("One", True)
    assert matcher.push(" Three") == ("", True)
    assert matcher.stopped
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["fine", ""])


def test_work_is_linear_even_for_stop_strings_made_to_be_slow() -> None:
    """Counted, not timed: each character moves the state at most one forward, so at most as many
    fallbacks are taken as characters were read."""
    lookups = 0

    class CountingDict(dict[str, int]):
        def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
            nonlocal lookups
            lookups += 1
            return super().get(key, default)

    automaton = _Automaton(["a" * 2_000 + "b"])
    automaton._children = [CountingDict(children) for children in automaton._children]
    state = 0
    text = "a" * 50_000
    for start in range(0, len(text), 5):
        state, _, _ = automaton.advance(state, text[start : start + 5])
    assert lookups <= 2 * len(text)
