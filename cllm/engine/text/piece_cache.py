"""Tokens of the pieces of prompts, remembered: a conversation's history comes again each turn.

llama.cpp cuts a text at the spellings of special tokens before anything else, longest spellings
first, and a BPE vocabulary tokenizes what is between them piece by piece (tokenizer_st_partition
and llama_vocab::impl::tokenize in llama-vocab.cpp). So the tokens of a text are those of its
pieces, if it is cut only before special tokens that no other special token can overlap.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from sys import getsizeof

from cllm.engine.llama import Vocab
from cllm.engine.recent import Recent

Owner = tuple[str, ...]
"""Whose pieces they are. No owner can tell by the time taken what another one sent."""

MOST_BYTES = 2**24
"""Memory of all pieces together."""

_MOST_CUTS = 1024  # special tokens that a text is cut at


class PieceCache:
    """For any thread."""

    def __init__(self, vocab: Vocab, most_bytes: int = MOST_BYTES) -> None:
        self._vocab = vocab
        self._cut: re.Pattern[str] | None = None
        self._looked = False
        self._recent: Recent[tuple[Owner, str, bool], array[int]] = Recent(most_bytes)

    def tokenize(self, text: str, add_special: bool, owner: Owner) -> list[int]:
        """The same as Vocab.tokenize with parse_special, and raises the same."""
        if not self._looked:  # two threads may look at once, and find the same
            spellings = cuts(self._vocab)
            self._cut = re.compile("|".join(map(re.escape, spellings))) if spellings else None
            self._looked = True
        if self._cut is None or (add_special and self._vocab.adds_eos):
            return self._vocab.tokenize(text, add_special, parse_special=True)
        tokens: list[int] = []
        try:
            for piece in _pieces(self._cut, text):
                tokens += self._tokens((owner, piece, add_special))
                add_special = False
        except UnicodeEncodeError:
            text.encode()  # raises it with the position in the whole text
            raise
        return tokens

    def _tokens(self, key: tuple[Owner, str, bool]) -> array[int]:
        tokens = self._recent.get(key)
        if tokens is None:
            owner, piece, add_special = key
            tokens = array("i", self._vocab.tokenize(piece, add_special, parse_special=True))
            size = getsizeof(piece) + getsizeof(tokens) + sum(map(getsizeof, owner))
            self._recent.put(key, tokens, size)
        return tokens


def _pieces(cut: re.Pattern[str], text: str) -> Iterator[str]:
    """The parts of a text, each of which begins with a cut; at least one."""
    at = 0
    for match in cut.finditer(text):
        if match.start() > at:
            yield text[at : match.start()]
            at = match.start()
    if text[at:] or not at:
        yield text[at:]


def cuts(vocab: Vocab) -> list[str]:
    """The spellings of control tokens before which a text can be cut; none: it cannot be."""
    return separate(vocab.control_texts(), vocab.special_texts()) if vocab.cuts_texts else []


def separate(controls: Sequence[str], specials: Sequence[bytes]) -> list[str]:
    """Those of `controls` that no spelling of `specials`, where they are too, can overlap.

    A shorter one within it is allowed, as llama.cpp looks for the longer one first.
    """
    try:
        if not all(text and text.decode() for text in specials):
            return []
    except UnicodeDecodeError:
        return []
    beginnings = {text[:end] for text in specials for end in range(1, len(text))}
    ends = {text[begin:] for text in specials for begin in range(1, len(text))}
    joined = b"\xff" + b"\xff\xff".join(specials) + b"\xff"  # no text has this byte
    found = []
    for control in islice(dict.fromkeys(controls), _MOST_CUTS):
        spelled = control.encode()
        parts = range(1, len(spelled))
        overlaps = any(spelled[at:] in beginnings or spelled[:at] in ends for at in parts)
        within = joined.count(spelled) != joined.count(b"\xff" + spelled + b"\xff")
        if spelled and not overlaps and not within:
            found.append(control)
    return found
