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

    __slots__ = ("_decoder", "_known", "_piece")

    def __init__(self, piece: Callable[[int], bytes], known: dict[int, str] | None = None) -> None:
        """piece: the bytes that a token stands for. known: the texts of tokens of ASCII that any
        generation with the same `piece` had; None: those of this one.
        """
        self._piece = piece
        self._known = {} if known is None else known
        self._decoder = _new_decoder(errors="replace")

    def push(self, token: int) -> str:
        """The text that `token` completes; often none, rarely more than a word."""
        text = self._known.get(token)
        if text is None:
            piece = self._piece(token)
            if not piece.isascii():
                return self._decoder.decode(piece)
            text = self._known[token] = piece.decode("ascii")
        return self._decoder.decode(text.encode()) if self._decoder.buffer else text

    def flush(self) -> str:
        """The text for an unfinished character at the end of the tokens: U+FFFD, or nothing."""
        return self._decoder.decode(b"", final=True)

    def drop(self) -> None:
        """Forget an unfinished character: the tokens were cut off before its last byte."""
        self._decoder.reset()
