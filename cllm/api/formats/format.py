"""A format: how one family of models writes its calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, long_id
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps

Called = tuple[str, Mapping[str, Any]]
"""A call: the tool's name, and its arguments."""


class Layout(Protocol):
    """One description of how calls are written, from which all else follows."""

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """The parser of an answer after its thoughts. frames: marks that are not shown."""

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """The expression of an answer after its thoughts: calls of these tools.

        forced: nothing but calls; else any text between them. many: more than one call.
        """

    def write(self, called: Sequence[Called]) -> str:
        """Calls as the model writes them."""


@dataclass(frozen=True, slots=True)
class Format:
    """One format.

    hints: texts that all stand in the source of a template of this format. Needed where a template
        shows no calls; else the format is found by reading a call that the template wrote.
    frames: marks around parts of the answer, which are not shown.
    given: the beginning of the first call, which stands at the end of the prompt.
    channels: the layout separates thoughts from the answer itself, and reads answers without tools.
    answer: (grammar, expression) -> the expression of a structured answer, where it needs marks.
    spell_special: marks are control tokens, so they must appear in the text.
    """

    name: str
    layout: Layout
    hints: tuple[str, ...] = ()
    frames: tuple[str, ...] = ()
    given: str = ""
    channels: bool = False
    answer: Callable[[Grammar, str], str] | None = None
    spell_special: bool = True
    new_id: Callable[[], str] = long_id

    def read(self, reader: Reader, calls: Calls) -> Steps[None]:
        """The parser of an answer after its thoughts."""
        reader.text = self.given + reader.text
        return self.layout.read(reader, calls, self.frames)

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout.rules`."""
        grammar.frames = self.frames
        expression = self.layout.rules(grammar, tools, forced, many)
        grammar.frames = ()  # not in thoughts
        return expression


def next_mark(reader: Reader, marks: Sequence[str], frames: Sequence[str]) -> Steps[str | None]:
    """Yield text up to the next of the marks, which is skipped; None: there was none."""
    both = (*marks, *frames)
    while True:
        mark = yield from reader.pass_until(both, Text)
        if mark not in frames:
            return mark
        yield from reader.space()
