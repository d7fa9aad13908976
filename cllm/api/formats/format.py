"""What a format is: how one family of models writes its calls and thoughts."""

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
    read: the parser of what follows the thoughts, where tools may be called.
    rules: (grammar, tools, forced, many) -> the expression of what follows the thoughts: calls
        of these tools, with any text between them unless forced; one call, or many.
    think: what stands around the thoughts; None: `read` tells them from the answer itself, and is
        needed without tools too.
    answer: (grammar, expression) -> the expression in its place; None: it stands alone.
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
