"""gpt-oss: messages in channels, analysis for thoughts, commentary for calls, final for answers.

Source: openai/harmony, docs/format.md. The prompt ends with `<|start|>assistant`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Event, Reasoning, Text
from cllm.api.formats.calls import Calls
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_CONSTRAIN, _CALL, _END = "<|constrain|>", "<|call|>", "<|end|>"
_ENDS = (_END, _CALL, "<|return|>", _START, _CHANNEL)
_OPENINGS = (_CHANNEL, _START, " to=")
_RECIPIENT = re.compile(r"\bto=functions\.([\w.-]+?)(?=[\s<]|$)")


def _fits(source: str) -> bool:
    return _CHANNEL in source and _MESSAGE in source


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    opened = False
    for opening in _OPENINGS:
        opened = opened or (yield from reader.starts(opening))
    if not opened:  # the prompt left a message open, or there are no channels
        yield from _pass(reader, Text)
    while reader.text or not reader.ended:
        head, marker = yield from reader.take_until((_MESSAGE,))
        if marker is None:
            yield from _broken(head)
            return
        recipient = _RECIPIENT.search(head)
        if recipient is not None and recipient[1] in calls.tools:
            yield from _read_call(reader, calls, recipient[1])
        elif recipient is None and f"{_CHANNEL}analysis" in head:
            yield from _pass(reader, Reasoning)
        else:
            yield from _pass(reader, Text)


def _pass(reader: Reader, event: Callable[[str], Event]) -> Steps[None]:
    if (yield from reader.pass_until(_ENDS, event)) == _CHANNEL:
        reader.text = _CHANNEL + reader.text  # a head whose beginning is in the prompt


def _broken(head: str) -> Steps[None]:
    """The text ended within a head, which is not text; a part without a head is."""
    if head.strip() and not any(mark in head for mark in (_CHANNEL, _START, "assistant", "to=")):
        yield Text(head)


def _read_call(reader: Reader, calls: Calls, name: str) -> Steps[None]:
    yield from reader.space()
    yield calls.begin(name)
    if (yield from reader.starts("{")):
        if not (yield from reader.pass_object(calls.arguments)):
            return
    else:
        text, _ = yield from reader.take_until(_ENDS)
        yield calls.arguments(text)
        yield calls.end()
        return
    yield calls.end()
    rest, _ = yield from reader.take_until(_ENDS)
    if rest.strip():
        yield Text(rest)


def _analysis(grammar: Grammar) -> str:
    """Thoughts and words before a call, each a message of its own."""
    start = f'{grammar.marker(_START)} "assistant"'
    channel = f'{grammar.marker(_CHANNEL)} ("analysis" | "commentary") {grammar.marker(_MESSAGE)}'
    return f"({grammar.rule(f'{channel} {grammar.until(_END)} {start}')})*"


def _rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
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


def _answer(grammar: Grammar, expression: str) -> str:
    return f"{_analysis(grammar)} {_final(grammar)} {expression}"


def _final(grammar: Grammar) -> str:
    return f'{grammar.marker(_CHANNEL)} "final" {grammar.marker(_MESSAGE)}'


FORMAT = Format("gpt-oss", _fits, _read, _rules, think=None, answer=_answer, spell_special=True)
