"""Tokens of remembered pieces are those of the whole text."""

from __future__ import annotations

import pytest

from cllm.engine import Engine, InvalidRequest
from cllm.engine.llama import Vocab
from cllm.engine.text.piece_cache import PieceCache, cuts, separate
from tests.engine.text.piece_texts import check


def test_remembered_pieces_have_the_tokens_of_the_whole_text(engine: Engine) -> None:
    vocab = engine._vocab
    assert cuts(vocab)
    check(vocab, 2000)


def test_a_token_is_no_cut_if_another_may_overlap_it() -> None:
    def kept(*texts: str) -> list[str]:
        return separate(texts, [text.encode() for text in texts])

    assert kept("<|a|>", "<|b|>") == ["<|a|>", "<|b|>"]
    assert kept("<|a|>", "|>>") == []  # "<|a|>>"
    assert kept("<|a|>", "x<|") == []  # "x<|a|>"
    assert kept("<|a|>", "(<|a|>)", "<b>") == ["(<|a|>)", "<b>"]  # within a longer one
    assert kept("<|a|>", "a") == ["<|a|>"]  # the longer one is looked for first
    assert kept("abab", "<b>") == ["<b>"]  # "ababab"
    assert separate(["<a>"], [b"<a>", b"\xff"]) == []
    assert separate(["<a>"], [b"<a>", b""]) == []


def test_owners_share_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, asked = engine._vocab, list[str]()
    tokenize = Vocab.tokenize

    def counted(vocab: Vocab, text: str, add_special: bool, parse_special: bool) -> list[int]:
        asked.append(text)
        return tokenize(vocab, text, add_special, parse_special)

    monkeypatch.setattr(Vocab, "tokenize", counted)
    cache, cut = PieceCache(vocab), cuts(vocab)[0]
    for owner in (("a",), ("b",), ("a", "salt"), ("a",)):
        cache.tokenize(f"{cut}one{cut}two", False, owner)
    assert asked == 3 * [f"{cut}one", f"{cut}two"]


def test_memory_is_bounded(engine: Engine) -> None:
    cache, cut = PieceCache(engine._vocab, most_bytes=100_000), cuts(engine._vocab)[0]
    for number in range(500):
        cache.tokenize(f"{cut}{number}" + 100 * " word", False, ("",))
    taken = sum(size for _, size in cache._recent.kept.values())
    assert 25_000 < taken < 100_000
    cache.tokenize(cut + 30_000 * "a", False, ("",))  # longer than is kept
    assert all(len(piece) < 1000 for _, piece, _ in cache._recent.kept)


def test_a_lone_surrogate_is_named_by_its_place_in_the_whole_text(engine: Engine) -> None:
    cut = cuts(engine._vocab)[0]
    with pytest.raises(InvalidRequest, match=f"at character {len(cut) + 2}"):
        engine.tokenize(f"ab{cut}\ud800", parse_special=True, owner=("",))
