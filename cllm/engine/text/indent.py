"""The end of a text at a line that is indented less than the lines before the gap it fills.

The same rule as llama-server's `n_indent` (server-context.cpp, process_token): the first line may
begin anywhere, and a line without text counts as one without indentation.
"""

from __future__ import annotations

_BLANK = " \t"


class IndentLimit:
    """Passes a text on up to the first character of a line that is indented too little."""

    __slots__ = ("_least", "_left")

    def __init__(self, least: int) -> None:
        """least: blanks and tabs that each line after the first must begin with."""
        self._least = least
        self._left = 0  # blanks that the current line still needs

    def push(self, text: str) -> tuple[str, bool]:
        """The part of the text that may be shown, and whether the text ends there."""
        for position, character in enumerate(text):
            if self._left > 0:
                if character not in _BLANK:
                    return text[:position], True
                self._left -= 1
            elif character == "\n":
                self._left = self._least
        return text, False
