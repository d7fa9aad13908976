"""gpt-oss: messages in channels, analysis for thoughts, commentary for calls, final for answers.

Source: openai/harmony, docs/format.md. The prompt ends with `<|start|>assistant`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Event, Reasoning, Text
from cllm.api.formats.calls import Calls, dump
from cllm.api.formats.format import Called
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_CONSTRAIN, _CALL, _END = "<|constrain|>", "<|call|>", "<|end|>"
_ENDS = (_END, _CALL, "<|return|>", _START, _CHANNEL)
_OPENINGS = (_CHANNEL, _START, " to=")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+?)(?=[\s<]|$)")


class HarmonyCalls:
    """Calls as messages to functions; see `Layout`."""

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        opened = False
        for opening in _OPENINGS:
            opened = opened or (yield from reader.starts(opening))
        if reader.cut and any(opening.startswith(reader.text) for opening in _OPENINGS):
            return
        if not opened:  # the prompt left a message open, or there are no channels
            yield from _pass(reader, Text)
        while reader.text or not reader.ended:
            head, marker = yield from reader.take_until((_MESSAGE,))
            if marker is None:
                yield from _broken(reader, head)
                return
            recipient = _RECIPIENT.search(head)
            if recipient is not None and recipient[1] in calls.tools:
                yield from _read_call(reader, calls, recipient[1])
            elif recipient is None and f"{_CHANNEL}analysis" in head:
                yield from _pass(reader, Reasoning)
            else:
                yield from _pass(reader, Text)

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        bodies = []
        channel, constrain = grammar.marker(_CHANNEL), grammar.marker(_CONSTRAIN)
        kind = f'({constrain} "json" | "json" | "")'
        for tool in tools:
            to = f"to=functions.{tool.name}"
            head = (
                f"({grammar.text(' ' + to)} {channel} {grammar.text('commentary ')} {kind}"
                f" | {channel} {grammar.text('commentary ' + to + ' ')} {kind})"
            )
            bodies.append(f"{head} {grammar.marker(_MESSAGE)} {grammar.json(tool.schema)}")
        call = grammar.one_of(*bodies)
        if not forced:
            call = f"({call} | {_final(grammar)} TEXT)"
        return f"{_analysis(grammar)} {call}"

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        return f"{_CALL}{_START}assistant".join(
            f"{_CHANNEL}commentary to=functions.{name} {_CONSTRAIN}json{_MESSAGE}{dump(arguments)}"
            for name, arguments in called
        )


def _pass(reader: Reader, event: Callable[[str], Event]) -> Steps[None]:
    if (yield from reader.pass_until(_ENDS, event)) == _CHANNEL:
        reader.text = _CHANNEL + reader.text  # a head whose beginning is in the prompt


def _broken(reader: Reader, head: str) -> Steps[None]:
    """The text ended within a head, which is not text; a part without a head is."""
    if head.strip() and not any(mark in head for mark in (_CHANNEL, _START, "assistant", "to=")):
        yield from reader.left(head)


def _read_call(reader: Reader, calls: Calls, name: str) -> Steps[None]:
    yield from reader.space()
    yield calls.begin(name)
    if (yield from reader.starts("{")):
        if not (yield from reader.pass_object(calls.arguments)):
            return
    else:
        text, mark = yield from reader.take_until(_ENDS)
        yield calls.arguments(text)
        if mark is not None or not reader.cut:
            yield calls.end()
        return
    yield calls.end()
    rest, mark = yield from reader.take_until(_ENDS)
    if rest.strip() and (mark is not None or not reader.cut):
        yield Text(rest)


def _analysis(grammar: Grammar) -> str:
    """Thoughts and words before a call, each a message of its own."""
    start = f'{grammar.marker(_START)} "assistant"'
    channel = f'{grammar.marker(_CHANNEL)} ("analysis" | "commentary") {grammar.marker(_MESSAGE)}'
    return f"({grammar.rule(f'{channel} {grammar.until(_END)} {start}')})*"


def answer(grammar: Grammar, expression: str) -> str:
    """See `Format.answer`."""
    return f"{_analysis(grammar)} {_final(grammar)} {expression}"


def _final(grammar: Grammar) -> str:
    return f'{grammar.marker(_CHANNEL)} "final" {grammar.marker(_MESSAGE)}'
