"""Llama 3.2 and 4: the answer is a Python list of calls, `[f(a=1), g(b="x")]`.

Source: the chat templates of meta-llama/Llama-3.2 and Llama-4.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Text
from cllm.api.formats.calls import Calls, dump
from cllm.api.formats.format import Format
from cllm.api.formats.grammar import Grammar
from cllm.api.formats.reader import Reader, Steps

_BEGIN, _END = "<|python_start|>", "<|python_end|>"
_NAMES = {"true": True, "false": False, "null": None}
_HEAD = re.compile(r"\[\s*([\w.-]*)")


def _fits(source: str) -> bool:
    return _BEGIN in source or "func_name1(params_name1=" in source


def _read(reader: Reader, calls: Calls) -> Steps[None]:
    before = yield from reader.space()
    if (yield from reader.starts(_BEGIN)):
        before += reader.skip(len(_BEGIN))
        before += yield from reader.space()
    made = yield from _read_calls(reader, calls)
    if not made:
        if before:
            yield Text(before)
    else:
        yield from reader.space()
        if (yield from reader.starts(_END)):
            reader.skip(len(_END))
            yield from reader.space()
    while (marker := (yield from reader.pass_until((_BEGIN, _END), Text))) is not None:
        if marker == _BEGIN and not (yield from _read_calls(reader, calls)):
            yield Text(reader.dropped + marker)


def _read_calls(reader: Reader, calls: Calls) -> Steps[bool]:
    """Read the list; return whether there was one. If not, nothing was read."""
    tried = 0
    while True:
        text = reader.text
        while (end := text.find("]", tried) + 1) > 0:
            tried = end
            found = _decoded(text[:end], calls)
            if found:
                reader.skip(end)
                for name, arguments in found:
                    yield from calls.whole(name, arguments)
                return True
        if reader.ended or not _may_be_calls(text, calls):
            return False
        yield None


def _may_be_calls(text: str, calls: Calls) -> bool:
    if not text:
        return True
    head = _HEAD.match(text)
    if head is None:
        return False
    if head.end() == len(text):
        return any(name.startswith(head[1]) for name in calls.tools)
    return head[1] in calls.tools


def _decoded(text: str, calls: Calls) -> list[tuple[str, str]] | None:
    """(name, arguments) of every call, if this is a complete list of calls."""
    try:
        tree = ast.parse(text, mode="eval").body
        if not isinstance(tree, ast.List):
            return None
        found = []
        for call in tree.elts:
            if not isinstance(call, ast.Call) or call.args:
                return None
            name = ast.unparse(call.func)
            if name not in calls.tools:
                return None
            arguments = {each.arg: _value(each.value) for each in call.keywords if each.arg}
            found.append((name, dump(arguments)))
        return found
    except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
        return None


def _value(node: ast.expr) -> Any:
    """A literal, in Python's or JSON's names; raises ValueError for anything else."""
    return ast.literal_eval(_Names().visit(node))


class _Names(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node


def _call(grammar: Grammar, tool: Tool) -> str:
    """One call; values as JSON, which is Python except for three names."""
    schema = tool.schema
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    required = schema.get("required", ())
    # The order is free in Python, so the required ones come first, which simplifies commas.
    properties = sorted(
        schema.get("properties", {}).items(), key=lambda item: item[0] not in required
    )
    body, first = [], True
    for name, inner in properties:
        value = grammar.json({**inner, **shared} if isinstance(inner, dict) else {})
        part = f"{grammar.text(name + '=')} {value}"
        if name in required:
            body.append(part if first else f'", " {part}')
            first = False
        elif not first:
            body.append(f'(", " {part})?')
    return " ".join([grammar.text(tool.name + "("), *body, '")"'])


def _rules(grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
    one = grammar.one_of(*(_call(grammar, tool) for tool in tools))
    listed = f'"[" {one} (", " {one})* "]"' if many else f'"[" {one} "]"'
    if forced:
        return listed
    said = grammar.rule("/[^\\[](.|\\n)*/")
    return f"({grammar.marker(_BEGIN)}? {listed} {grammar.marker(_END)}? | {said}?)"


FORMAT = Format("pythonic", _fits, _read, _rules, spell_special=True)
