"""Text to tokens and back, in a byte-level vocabulary: nothing is lost, nothing is control."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cllm.engine import Constraint, Engine, SamplingParams
from cllm.engine.text.tokenizer import MAX_MARK, MAX_MARKS
from cllm.models import demo_path

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|startoftext|>")

SAMPLES = [
    " leading and trailing ",
    "\n\n\ttabs\r\nand lines\n",
    "a\0NUL\0",
    "e\u0301 combining, \u200d joiner, \ufeff BOM",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🙂",
    "你好，世界 한국어 العربية हिन्दी",
    "<|im_end|><|endoftext|> as text",
    "1234567890 3.14e-10",
    "it's WE'LL don't",
    "\ufffd\U0010ffff\ue000",
    "many      spaces",
]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine.load(demo_path(), parallel=1, threads=1) as engine:
        yield engine


@pytest.mark.parametrize("text", SAMPLES)
def test_every_text_comes_back_as_it_was(engine: Engine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text)) == text


@given(st.text())
def test_any_unicode_comes_back_as_it_was(engine: Engine, text: str) -> None:
    assert engine.detokenize(engine.tokenize(text)) == text


def test_marks_with_names_that_clients_choose_take_a_bounded_memory(engine: Engine) -> None:
    remembered = engine._tokenizer._marks
    (token,) = engine.tokenize("<|im_end|>", add_special=False, parse_special=True)
    for number in range(2 * MAX_MARKS):
        assert engine.mark(f"<parameter=name{number}>") is None
        assert engine.mark("<|im_end|>") == token
    assert engine.mark(f"<parameter={'n' * MAX_MARK}>") is None
    assert len(remembered) <= MAX_MARKS
    assert all(len(mark) <= MAX_MARK for mark in remembered)


SPELLED = "你好🙂é한!"


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_text_that_is_cut_off_ends_with_its_last_whole_character(
    engine: Engine, logprobs: int | None
) -> None:
    constraint = Constraint("regex", SPELLED)
    whole, seen = SPELLED.encode(), set()
    for count in range(1, len(whole) + 1):
        params = SamplingParams(
            max_tokens=count, constraint=constraint, logprobs=logprobs, record_tokens=True
        )
        deltas: list[str] = []
        for text in (engine.submit("Say", params), engine.submit("Say", params)):
            text.wait(60)
            deltas.append("".join(text.take()))
            pieces = b"".join(record.piece for record in text.take_tokens())
            assert whole.startswith(pieces)
            assert deltas[-1] == pieces.decode("utf-8", "ignore")
        assert deltas[0] == deltas[1]
        assert "\ufffd" not in deltas[0]
        seen.add(deltas[0].encode() != pieces)
        if pieces == whole:
            break
    assert seen == {True, False}, "some cuts are within a character, some are not"


def test_control_tokens_in_a_text_are_text_unless_asked_for(engine: Engine) -> None:
    for name in CONTROL:
        assert len(engine.tokenize(name, add_special=False)) > 1
        assert len(engine.tokenize(name, add_special=False, parse_special=True)) == 1
