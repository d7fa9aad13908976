"""A format: how one family of models writes its calls and thoughts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cllm.api.chat.conversation import Tool
from cllm.api.formats.calls import Calls, long_id
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    fits: whether a template's source is of this format.
    read: the parser of the text after the thoughts, if tools may be called.
    rules: (grammar, tools, forced, many) -> the expression of the text after the thoughts: calls
        of these tools, with any text between them unless forced; one call, or many.
    think: the markers around the thoughts; None: `read` separates them from the answer itself, and
        is needed without tools too.
    answer: (grammar, expression) -> the expression within its markers; None: without markers.
    spell_special: markers are control tokens, so they must appear in the text.
    """

    name: str
    fits: Callable[[str], bool]
    read: Callable[[Reader, Calls], Steps[None]]
    rules: Callable[[Grammar, Sequence[Tool], bool, bool], str]
    think: tuple[str, str] | None = ("<think>", "</think>")
    answer: Callable[[Grammar, str], str] | None = None
    spell_special: bool = False
    new_id: Callable[[], str] = long_id
