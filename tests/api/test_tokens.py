"""Promises of /encode and /decode."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.api_client import Live

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces  ",
    "\n\r\n\t",
    "\x00\x01\x7f",
    "人工智能是计算机科学的一个分支",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    unicodedata.normalize("NFD", "ÅÉñ ệ"),
    "\u2028\u2029\ufeff\ufffd\U0010ffff",
    "<s></s><|im_start|><|im_end|><|endoftext|>",
    "a" * 20_000,
]


def test_encode_gives_tokens_and_their_number(live: Live) -> None:
    data = live.ask("/encode", text="Hello world")
    assert set(data) == {"tokens", "length"}
    assert data["tokens"] == live.engine.tokenize("Hello world")
    assert data["length"] == len(data["tokens"])


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("add_special", [True, False])
def test_decode_of_encode_is_the_identity(live: Live, text: str, add_special: bool) -> None:
    tokens = live.ask("/encode", text=text, add_special=add_special)["tokens"]
    assert live.ask("/decode", tokens=tokens) == {"text": text}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_decode_of_encode_is_the_identity_for_any_text(live: Live, text: str) -> None:
    tokens = live.ask("/encode", text=text)["tokens"]
    assert live.ask("/decode", tokens=tokens)["text"] == text


def test_add_special_follows_the_models_rules(live: Live) -> None:
    with_special = live.ask("/encode", text="Hi", add_special=True)["tokens"]
    without = live.ask("/encode", text="Hi", add_special=False)["tokens"]
    assert with_special == [live.engine.info().bos_token, *without]


def test_parse_special_takes_special_tokens_and_the_default_takes_text(live: Live) -> None:
    engine = live.engine
    eos = engine.info().eos_token
    assert eos is not None
    spelled = engine.detokenize([engine.tokenize("x", add_special=False)[0], eos])[1:]
    assert spelled
    parsed = live.ask("/encode", text=spelled, add_special=False, parse_special=True)
    assert parsed["tokens"] == [eos]
    plain = live.ask("/encode", text=spelled, add_special=False)
    assert eos not in plain["tokens"]
    assert live.ask("/decode", tokens=plain["tokens"])["text"] == spelled


def test_decode_leaves_special_tokens_out_when_asked(live: Live) -> None:
    engine = live.engine
    eos = engine.info().eos_token
    tokens = [
        *engine.tokenize("a", add_special=False),
        eos,
        *engine.tokenize("b", add_special=False),
    ]
    assert live.ask("/decode", tokens=tokens, special=False)["text"] == "ab"
    assert len(live.ask("/decode", tokens=tokens, special=True)["text"]) > 2


def test_an_empty_list_decodes_to_nothing(live: Live) -> None:
    assert live.ask("/decode", tokens=[]) == {"text": ""}


def test_tokens_that_are_no_whole_character_decode_without_failing(live: Live) -> None:
    first = live.engine.tokenize("\U0001d11e", add_special=False)[:1]
    assert "\ufffd" in live.ask("/decode", tokens=first)["text"]


def test_any_single_token_decodes(live: Live) -> None:
    size = live.engine.info().vocab_size
    assert isinstance(live.ask("/decode", tokens=list(range(size)))["text"], str)
