"""The number of a generation's tokens that were thoughts."""

from __future__ import annotations


class Thoughts:
    """Counts the pieces of a text and of its thoughts; a piece may contain several tokens."""

    __slots__ = ("_pieces", "_silent", "_thought")

    def __init__(self) -> None:
        self._pieces = 0
        self._silent = 0  # before the first thought or text
        self._thought = 0

    def count(self, thinking: bool | None) -> None:
        """Count a piece; thinking: the state at its end, None: neither thought nor text so far.

        Leading marks and white space belong to the part that follows.
        """
        self._pieces += 1
        if thinking is None:
            self._silent += 1
        elif thinking:
            self._thought += self._silent + 1
            self._silent = 0
        else:
            self._silent = 0

    def tokens(self, generated: int) -> int:
        """How many of the generated tokens were thoughts, by the share of their pieces."""
        return round(generated * self._thought / self._pieces) if self._pieces else 0
