"""Compares tokens of pieces with those of whole texts that are full of special tokens."""

from __future__ import annotations

import random

from cllm.engine.llama import Vocab
from cllm.engine.text.piece_cache import PieceCache, cuts

_TEXTS = (
    "Hello", " world", "\n", "\n\n", " ", "   ", "\t", "user", "don't", "12345", "ÄÖ", "漢字",
    "👍🏽", "\u0301", "<", "|", ">", "<|", "|>", "<|im_", "_start|>", "</", "s>", "(x) = y;",
    "\r\n", "é", "\u200d", "\x00",
)  # fmt: skip


def random_text(random: random.Random, specials: list[str]) -> str:
    """Texts, special tokens, and parts of these, in any order."""
    parts = []
    for _ in range(random.randrange(12)):
        special = random.choice(specials)
        at = random.randrange(len(special) + 1)
        kinds = (special, special, special[:at], special[at:], random.choice(_TEXTS))
        parts.append(random.choice((*kinds, random.choice(_TEXTS))))
    return "".join(parts)


def check(vocab: Vocab, count: int, seed: int = 0) -> None:
    """Compare tokens of random texts; each is asked for twice, the second time remembered."""
    chosen = random.Random(seed)
    specials = [text.decode("utf-8", "replace") for text in vocab.special_texts()]
    found = cuts(vocab)
    cache = PieceCache(vocab, most_bytes=20_000)
    for _ in range(count):
        text = random_text(chosen, [*chosen.sample(specials, min(5, len(specials))), *found[:5]])
        add_special = chosen.random() < 0.5
        expected = vocab.tokenize(text, add_special, parse_special=True)
        for _ in range(2):
            assert cache.tokenize(text, add_special, ("",)) == expected, repr(text)
