"""Llama 3: the whole answer is a call in JSON, or several with `;` or white space between.

Source: the chat template of meta-llama/Llama-3.1. `<|python_tag|>` may come first.
"""

from __future__ import annotations

from collections.abc import Sequence

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, dump, read_json_call
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps

_TAG = "<|python_tag|>"


def _fits(source: str) -> bool:
    return _TAG in source or ('"parameters"' in source and "ipython" in source)


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    before = yield from reader.space()
    while True:
        if (yield from reader.starts(_TAG)):
            before += reader.skip(len(_TAG))
            before += yield from reader.space()
        called = yield from read_json_call(reader, calls)
        while called:
            before = yield from reader.space()
            if (yield from reader.starts(";")):
                before += reader.skip(1)
                before += yield from reader.space()
            called = yield from read_json_call(reader, calls)
        if before and reader.text:
            yield Text(before)
        if (yield from reader.pass_until((_TAG,), Text)) is None:
            return
        before = reader.dropped
        reader.text = _TAG + reader.text


def _call(grammar: Grammar, tool: Tool) -> str:
    head = f'{{"name": {dump(tool.name)}, "parameters": '
    return f"{grammar.text(head)} {grammar.json(tool.schema)} {grammar.text('}')}"


def _rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    one = grammar.one_of(*(_call(grammar, tool) for tool in tools))
    calls = f'{one} ("; " {one})*' if many else one
    if forced:
        return calls
    # An answer that begins with an object is a call.
    said = grammar.rule("/[^{](.|\\n)*/")
    return f"({grammar.marker(_TAG)}? {calls} | {said}?)"


FORMAT = Format("llama3", _fits, _read, _rules, spell_special=True)
