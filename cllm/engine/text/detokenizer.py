"""Incremental tokens to text: only whole characters leave, even if tokens split them."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Converts one generation's tokens to text.

    A character whose bytes are spread over several tokens appears with the last of them. Bytes
    that cannot become a character give U+FFFD as soon as that is certain, one for each maximal
    subpart (The Unicode Standard, section 3.9; also what bytes.decode("utf-8", "replace") does).
    """

    __slots__ = ("_decoder", "_piece")

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        """piece: the bytes that a token stands for."""
        self._piece = piece
        self._decoder = _new_decoder(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; often none, rarely more than a word."""
        piece = self._piece(token)
        if piece.isascii() and not self._decoder.buffer:  # decoding in C, without a state
            return piece.decode("ascii")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The text for an unfinished character at the end of the tokens: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)

    def drop(self) -> None:
        """Forget an unfinished character: the tokens were cut off before its last byte."""
        self._decoder.reset()
