"""Detokenizer: whole characters only and none lost, however the tokens cut them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cllm.engine.text.detokenizer import Detokenizer


def deltas(pieces: list[bytes]) -> list[str]:
    detokenizer = Detokenizer(pieces.__getitem__)  # the token is the index
    return [detokenizer.push(token) for token in range(len(pieces))] + [detokenizer.flush()]


@given(st.text(), st.integers(1, 5))
def test_text_comes_out_as_it_went_in_wherever_it_is_cut(text: str, size: int) -> None:
    data = text.encode()
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(deltas(pieces)) == text


@given(st.lists(st.binary(max_size=6)))
def test_any_bytes_give_what_decoding_them_at_once_gives(pieces: list[bytes]) -> None:
    assert "".join(deltas(pieces)) == b"".join(pieces).decode("utf-8", errors="replace")


@given(st.lists(st.binary(max_size=6)))
def test_every_delta_can_be_sent_on_its_own(pieces: list[bytes]) -> None:
    for delta in deltas(pieces):
        assert delta.encode().decode() == delta


def test_a_character_appears_with_its_last_byte() -> None:
    assert deltas([b"\xf0", b"\x9f\x99", b"\x82!", b"\xc3", b"\xa9"]) == [
        "", "", "🙂!", "", "é", "",
    ]  # fmt: skip


def test_bytes_that_cannot_become_a_character_show_at_once() -> None:
    # FF begins nothing; E4 needs a continuation and gets a letter; E0 80 would be overlong.
    assert deltas([b"\xff", b"\xe4", b"A", b"\xe0", b"\x80"]) == [
        "\ufffd", "", "\ufffdA", "", "\ufffd\ufffd", "",
    ]  # fmt: skip


def test_the_end_shows_an_unfinished_character_once() -> None:
    detokenizer = Detokenizer([b"ok", b"\xf0\x9f"].__getitem__)
    assert [detokenizer.push(0), detokenizer.push(1)] == ["ok", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@given(st.text(min_size=1), st.integers(0, 3))
def test_what_is_cut_off_within_a_character_ends_before_it(text: str, missing: int) -> None:
    data = text.encode()
    data = data[: max(0, len(data) - missing)]
    detokenizer = Detokenizer([data].__getitem__)
    shown = detokenizer.push(0)
    detokenizer.drop()
    assert shown + detokenizer.flush() == data.decode("utf-8", "ignore")


def test_a_token_without_bytes_gives_no_text_and_disturbs_nothing() -> None:
    assert deltas([b"\xc3", b"", b"\xa9"]) == ["", "", "é", ""]


def test_a_text_that_another_generation_had_does_not_hide_half_a_character() -> None:
    pieces, known = [b"ok", b"\xf0\x9f"], dict[int, str]()
    assert Detokenizer(pieces.__getitem__, known).push(0) == "ok"
    other = Detokenizer(pieces.__getitem__, known)
    assert (other.push(1), other.push(0), other.push(0)) == ("", "\ufffdok", "ok")
