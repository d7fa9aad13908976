"""Calls as a list in Python: `[f(a=1), g(b="x")]`, at the answer's beginning or between marks.

Names need not be Python's: tools and arguments often have `-` in them. A list of calls in JSON is
read too, and forced where a schema asks for more than such a call can hold.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.formats.calls import Calls, dump, refuse
from cllm.api.formats.format import Called, next_mark
from cllm.api.formats.grammar import MOST_CALLS, Grammar, enclosed
from cllm.api.formats.json_calls import JsonCalls
from cllm.api.formats.reader import Reader, Steps
from cllm.api.formats.shapes import Argument, arguments_of

_NAMES = {"true": True, "false": False, "null": None}
_PLAIN = {"type", "title", "description"}
_LARGEST = sys.float_info.max
_HEAD = re.compile(r"\[\s*([\w.-]*)")
_CALL = re.compile(r"\s*([\w.-]+)\s*\(\s*")
_KEY = re.compile(r"""\s*([^\s=,()\[\]{}'"]+)\s*=\s*""")
_ARGUMENT_NAME = re.compile(r"""[^\s=,()\[\]{}'"]+""")


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """begin, end: the marks; bare: the list may also begin the answer without them.

    marked: the calls are written with the marks.
    """

    begin: str
    end: str
    bare: bool = False
    marked: bool = True

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        if self.bare:
            before = yield from reader.space()
            if (yield from reader.starts("[")):
                yield from self._read_list(reader, calls, before)
            else:
                reader.text = before + reader.text
        while (mark := (yield from next_mark(reader, (self.begin, self.end), frames))) is not None:
            if mark == self.begin:
                yield from self._read_list(reader, calls, reader.dropped + mark)

    def _read_list(self, reader: Reader, calls: Calls, before: str) -> Steps[None]:
        before += yield from reader.space()
        scan = _Scan()
        while True:
            text = reader.text
            end = scan.end(text) if text.startswith("[") else None
            if end is not None or reader.ended or not _may_be_calls(text, calls):
                break
            yield None
        found = None if end is None else _decoded(text[:end], calls)
        if found:
            reader.skip(end or 0)
            for name, arguments in found:
                yield from calls.whole(name, arguments)
        elif text.startswith("[") and not text[1:].lstrip().startswith("{"):
            if reader.cut and end is None and _may_be_calls(text, calls):
                reader.skip(len(text))
            yield from reader.left(before)
            return
        else:
            yield from JsonCalls(self.begin, self.end).read_section(reader, calls, before)
            return
        yield from reader.space()
        if (yield from reader.take(self.end)):
            yield from reader.space()

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        one = grammar.one_of(*(_rule(grammar, tool) for tool in tools))
        more = f'(", " {one}){{0,{MOST_CALLS - 1}}}' if many else ""
        listed = f'"[" {one} {more} "]"'
        if self.marked:
            calls = f"{listed} {grammar.marker(self.end)}"
            return enclosed(grammar, self.begin, calls, forced)
        if forced:
            return listed
        said = grammar.rule("/[^\\[](.|\\n)*/")
        begin, end = grammar.marker(self.begin), grammar.marker(self.end)
        return f"(({begin})? {listed} ({end})? | {said}?)"

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        written = [
            f"{name}({', '.join(f'{key}={_written(value)}' for key, value in arguments.items())})"
            for name, arguments in called
        ]
        listed = f"[{', '.join(written)}]"
        return f"{self.begin}{listed}{self.end}" if self.marked else listed


class _Scan:
    """Finds the end of a list in Python's form; keeps its place while the text grows."""

    __slots__ = ("_at", "_depth", "_quote")

    def __init__(self) -> None:
        self._at = 0
        self._depth = 0
        self._quote = ""

    def end(self, text: str) -> int | None:
        """The length of the list that the text begins with, once it is complete."""
        while self._at < len(text):
            character = text[self._at]
            if self._quote and character == "\\":
                if self._at + 1 == len(text):
                    return None
                self._at += 1
            elif self._quote:
                self._quote = "" if character == self._quote else self._quote
            elif character in "\"'":
                self._quote = character
            elif character in "[({":
                self._depth += 1
            elif character in "])}":
                self._depth -= 1
                if self._depth == 0:
                    self._at += 1
                    return self._at
            self._at += 1
        return None


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
    found, at, inside = [], 1, text[:-1]
    while True:
        head = _CALL.match(inside, at)
        if head is None or head[1] not in calls.tools:
            return None
        at, arguments = head.end(), {}
        while not inside.startswith(")", at):
            key = _KEY.match(inside, at)
            if key is None:
                return None
            end = _value_end(inside, key.end())
            try:
                arguments[key[1]] = _value(inside[key.end() : end].strip())
            except (SyntaxError, ValueError, RecursionError, MemoryError, TypeError):
                return None
            if end == len(inside):
                return None
            at = end + len(inside[end:]) - len(inside[end:].removeprefix(",").lstrip())
        try:
            found.append((head[1], dump(arguments)))
        except (ValueError, TypeError):
            return None
        rest = inside[at + 1 :].strip()
        if not rest:
            return found
        if not rest.startswith(","):
            return None
        at = inside.index(",", at + 1) + 1


def _value_end(text: str, at: int) -> int:
    """Where the value that begins here ends: at a comma or bracket outside of it."""
    depth, quote = 0, ""
    while at < len(text):
        character = text[at]
        if quote and character == "\\":
            at += 1
        elif quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
            if depth < 0:
                return at
        elif character == "," and depth == 0:
            return at
        at += 1
    return at


def _value(text: str) -> Any:
    """A literal, in JSON or in Python with JSON's names; raises ValueError, SyntaxError, …"""
    try:
        return json.loads(text, parse_constant=refuse, parse_float=_finite)
    except ValueError:
        # Templates write line breaks in strings as they are, which Python's own parser refuses.
        tree = ast.parse(text.replace("\n", "\\n"), mode="eval").body
        return ast.literal_eval(_Names().visit(tree))


def _finite(text: str) -> float:
    """A number; beyond the range of floats the largest one, as its call must not be lost."""
    return max(-_LARGEST, min(float(text), _LARGEST))


class _Names(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_NAMES[node.id]) if node.id in _NAMES else node


def _written(value: Any) -> str:
    """A value in Python's form, with the double quotes that JSON has too."""
    if isinstance(value, str):
        return dump(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{dump(name)}: {_written(each)}' for name, each in value.items())}}}"
    return repr(value)


def _rule(grammar: Grammar, tool: Tool) -> str:
    """One call; values as JSON, which is Python except for three names."""
    arguments = arguments_of(tool.schema, _ARGUMENT_NAME)
    if arguments is None:
        head = f'{{"name": {dump(tool.name)}, "arguments": '
        return f"{grammar.text(head)} {grammar.json(tool.schema)} {grammar.text('}')}"
    parts = [_argument(grammar, argument) for argument in arguments if argument.required]
    # The order is free in Python, so the required ones come first, which simplifies commas.
    body = ' ", " '.join(parts)
    optional = [_argument(grammar, argument) for argument in arguments if not argument.required]
    if parts:
        body += "".join(f' (", " {part})?' for part in optional)
    elif optional:
        # Any of them, in their order: the first that is there has no comma before it.
        ways = []
        for number, part in enumerate(optional):
            ways.append(part + "".join(f' (", " {other})?' for other in optional[number + 1 :]))
        body = f"({' | '.join(ways)})?"
    return f"{grammar.text(tool.name + '(')} {body} {grammar.text(')')}"


def _argument(grammar: Grammar, argument: Argument) -> str:
    schema = argument.schema if isinstance(argument.schema, (Mapping, bool)) else {}
    if isinstance(schema, Mapping) and set(schema) <= _PLAIN and schema.get("type") == "boolean":
        return f'{grammar.text(argument.name + "=")} ("True" | "False" | "true" | "false")'
    return f"{grammar.text(argument.name + '=')} {grammar.json(schema)}"
