"""Tokens of remembered pieces are those of the whole text, with a vocabulary of 49 152."""

from __future__ import annotations

from cllm.engine import Engine
from tests.engine.text.piece_texts import check


def test_remembered_pieces_have_the_tokens_of_the_whole_text(engine: Engine) -> None:
    check(engine._vocab, 2000)
