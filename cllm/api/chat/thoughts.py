"""How many of a generation's tokens were thoughts."""

from __future__ import annotations


class Thoughts:
    """Counts the pieces of a text, of which one may hold several tokens, and those of thoughts."""

    __slots__ = ("_pieces", "_silent", "_thought")

    def __init__(self) -> None:
        self._pieces = 0
        self._silent = 0  # before anything was thought or said
        self._thought = 0

    def count(self, thinking: bool | None) -> None:
        """A piece was read; whether the model thinks at its end, None: it has not begun to speak.

        A beginning of marks and white space belongs to what follows it.
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
