"""Muse: messages to a recipient, which is the model itself, a tool or the user.

The prompt ends with `<|start|>assistant`; ` to=NAME<|message|>` and the message follow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Reasoning, Text
from cllm.api.formats.calls import Calls
from cllm.api.formats.format import Called
from cllm.api.formats.grammar import MOST_CALLS, Grammar
from cllm.api.formats.reader import Reader, Script, Steps
from cllm.api.formats.tagged_calls import TaggedCalls

_START, _MESSAGE, _NEXT, _END = "<|start|>", "<|message|>", "<|eom|>", "<|eot|>"
_ENDS = (_NEXT, _END, _START)
_RECIPIENT = re.compile(r"\bto=([\w.-]+)")
_OPENINGS = (" to=", _START, _MESSAGE)

_CALLS = TaggedCalls(
    outer="<atem:function_calls>\n",
    outer_end="</atem:function_calls>",
    call=('<atem:invoke name="', '"', ">"),
    call_end="\n</atem:invoke>\n",
    argument=('\n<atem:parameter name="', '"', ">"),
    argument_end="</atem:parameter>",
)


class MuseCalls:
    """Calls as messages to tools; see `Layout`."""

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        opened = False
        for opening in _OPENINGS:
            opened = opened or (yield from reader.starts(opening))
        if reader.cut and any(opening.startswith(reader.text) for opening in _OPENINGS):
            return
        if not opened:  # the prompt left a message open
            yield from reader.pass_until(_ENDS, Text)
        while reader.text or not reader.ended:
            head, mark = yield from reader.take_until((_MESSAGE,))
            recipient = _RECIPIENT.search(head)
            if mark is None:
                return
            if recipient is not None and recipient[1] == "self":
                yield from reader.pass_until(_ENDS, Reasoning)
            elif recipient is not None and recipient[1] in calls.tools:
                yield from _read_calls(reader, calls)
            else:
                yield from reader.pass_until(_ENDS, Text)

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        start = f'{grammar.marker(_START)} "assistant"'
        message = grammar.marker(_MESSAGE)
        bodies = [
            f"{grammar.text(' to=' + tool.name)} {message} "
            f"{_CALLS.rules(grammar, [tool], True, False)}"
            for tool in tools
        ]
        one = grammar.one_of(*bodies)
        more = f"({grammar.marker(_NEXT)} {start} {one}){{0,{MOST_CALLS - 1}}}" if many else ""
        calls = f"{one} {more}"
        if not forced:
            calls = f'({calls} | " to=user" {message} TEXT)'
        return f"{_thoughts(grammar)} {calls}"

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        return f"{_NEXT}{_START}assistant".join(
            f" to={name}{_MESSAGE}{_CALLS.write([(name, arguments)])}" for name, arguments in called
        )


def answer(grammar: Grammar, expression: str) -> str:
    """See `Format.answer`."""
    return f'{_thoughts(grammar)} " to=user" {grammar.marker(_MESSAGE)} {expression}'


def _thoughts(grammar: Grammar) -> str:
    head = f'" to=self" {grammar.marker(_MESSAGE)}'
    tail = f'{grammar.marker(_START)} "assistant"'
    return f"({grammar.rule(f'{head} {grammar.until(_NEXT)} {tail}')})*"


def _read_calls(reader: Reader, calls: Calls) -> Steps[None]:
    """Read the message of a call, by a reader of its own: it ends with the message."""
    inner = Script(lambda part: _CALLS.read(part, calls, ()))
    for event in reader.pass_exactly(_ENDS, Text):
        if isinstance(event, Text):
            yield from inner.push(event.text)
        else:
            yield None
    yield from inner.finish(reader.cut)
