"""Hermes, Qwen and their derivatives: JSON between `<tool_call>` and `</tool_call>`.

Source: the chat templates of NousResearch/Hermes-2-Pro and Qwen/Qwen3.
"""

from __future__ import annotations

from collections.abc import Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, dump, read_json_call
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar, repeated
from cllm.api.formats.reader import Reader, Steps

BEGIN, END = "<tool_call>", "</tool_call>"


def _fits(source: str) -> bool:
    return BEGIN in source and '"arguments"' in source.replace('\\"', '"')


def read(reader: Reader, calls: Calls) -> Steps[None]:
    """The parser of text with calls in it."""
    marker = yield from reader.pass_until((BEGIN,), Text)
    while marker is not None:
        before = reader.dropped + BEGIN
        before += yield from reader.space()
        if (yield from read_json_call(reader, calls)):
            yield from close(reader)
        else:
            yield Text(before)
        marker = yield from reader.pass_until((BEGIN,), Text)


def close(reader: Reader) -> Steps[None]:
    """Skip the mark that ends a call; other text there stays."""
    space = yield from reader.space()
    if (yield from reader.starts(END)):
        reader.skip(len(END))
        yield from reader.space()
    else:
        reader.text = space + reader.text


def call(grammar: Grammar, tool: Tool) -> str:
    """One call, without its markers."""
    head = f'{{"name": {dump(tool.name)}, "arguments": '
    return f"{grammar.text(head)} {grammar.json(tool.schema)} {grammar.text('}')}"


def rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    """The expression of calls, see `Format.rules`."""
    bodies = [call(grammar, tool) for tool in tools]
    one = f'"\\n" {grammar.one_of(*bodies)} "\\n" {grammar.marker(END)}'
    return repeated(grammar, BEGIN, one, forced, many)


FORMAT = Format("hermes", _fits, read, rules)
