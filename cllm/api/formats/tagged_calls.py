"""Calls whose arguments stand between marks of their own: `<parameter=a>value</parameter>`.

Text arguments are written unchanged, all others as JSON. A call in JSON between the outer marks is
read too, and forced where a schema asks for more than marks can hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cllm.api.chat.conversation import Tool
from cllm.api.chat.events import Event, Text
from cllm.api.formats.calls import Calls, dump, read_json_call
from cllm.api.formats.format import Called, next_mark
from cllm.api.formats.grammar import MOST_CALLS, Grammar, enclosed, repeated
from cllm.api.formats.nested import decoded, nested_rule, nested_text
from cllm.api.formats.reader import Reader, Steps
from cllm.api.formats.shapes import (
    Argument,
    arguments_of,
    is_text,
    kind_of,
    kinds_of,
    options_of,
    written,
)

_MOST_NAME = 256  # characters of a name and of what stands next to it in its mark
_ARGUMENT_NAME = re.compile(r"""[^<>"'=\s\[\]]+""")
_TOOL_NAME = re.compile(r"[\w.-]+")
_CDATA, _CDATA_END = "<![CDATA[", "]]>"


@dataclass(frozen=True, slots=True)
class TaggedCalls:
    """The marks, from the outside to the inside, with the white space that models write.

    outer, outer_end: around all calls, or around each with `each`; "": there are none.
    call: before and after the name; the second may be "", then white space or a mark ends it.
        A third part: the end of the mark, after more attributes.
    argument: the same for an argument's name; the value follows.
    argument_end: with `{}` for the name, if it repeats it.
    padded: a line break stands on both sides of a value.
    attribute: from a type's name in JSON to what stands between the second and third part.
    cdata: text with `<`, `&` or line breaks stands in a CDATA section.
    nested: lists and objects are marks in marks: `nested` comes before each.
    """

    call: tuple[str, ...]
    call_end: str
    argument: tuple[str, ...]
    argument_end: str
    outer: str = ""
    outer_end: str = ""
    each: bool = True
    padded: bool = False
    attribute: Callable[[str], str] | None = None
    number: str = ""
    cdata: bool = False
    nested: str = ""

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        outer, call = self.outer.strip(), self.call[0]
        triggers = (outer, call) if outer else (call,)
        while (mark := (yield from next_mark(reader, triggers, frames))) is not None:
            before = yield from self._read_section(
                reader, calls, reader.dropped + mark, mark == call
            )
            yield from reader.left(before)

    def _read_section(self, reader: Reader, calls: Calls, before: str, inside: bool) -> Steps[str]:
        """Read the calls after a mark; return text that was read and is not a call.

        inside: the mark was that of a call.
        """
        called = False
        while True:
            if not inside:
                before += yield from reader.space()
                inside = yield from reader.take(self.call[0])
                before += self.call[0] if inside else ""
            if (yield from self._read_json(reader, calls)):
                called, before = True, ""
            elif inside:
                name, mark = yield from self._name(reader)
                if name not in calls.tools:
                    return before + name + mark
                if not (yield from self._read_arguments(reader, calls, calls.tools[name])):
                    return ""
                called, before = True, ""
            if not inside or not self.outer:
                break
            inside = False
        if not called:
            return before
        before += yield from reader.space()
        end = self.outer_end if self.outer else self.call_end
        if (yield from reader.take(end.strip())):
            before = yield from reader.space()
        elif not self.outer:
            before = ""
        if not (reader.cut and not reader.text):
            reader.text = before + reader.text
        return ""

    def _read_json(self, reader: Reader, calls: Calls) -> Steps[bool]:
        space = yield from reader.space()
        if (yield from reader.starts("{")) and (yield from read_json_call(reader, calls)):
            return True
        reader.text = space + reader.text
        return False

    def _name(self, reader: Reader) -> Steps[tuple[str, str]]:
        """The tool's name and the rest of its mark; nothing is read if it is not a name."""
        if not self.call[1]:
            space = yield from reader.space()
            while (found := _TOOL_NAME.match(reader.text)) is None or (
                found.end() == len(reader.text) and not reader.ended
            ):
                if reader.ended or (found is None and reader.text):
                    return "", space
                yield None
            return reader.skip(found.end()), ""
        name, mark = yield from reader.take_within((self.call[1], "\n"), _MOST_NAME)
        if mark != self.call[1]:
            reader.text = name + (mark or "") + reader.text
            return "", ""
        if len(self.call) > 2:
            rest, last = yield from reader.take_within((self.call[2],), _MOST_NAME)
            if last is None:
                return "", name + mark
            mark += rest + last
        return name, mark

    def _read_arguments(self, reader: Reader, calls: Calls, tool: Tool) -> Steps[bool]:
        """Read from the name to the call's end; returns whether that was there."""
        yield calls.begin(tool.name)
        properties = tool.schema.get("properties", {})
        begin, end = self.argument[0].strip(), self.call_end.strip()
        before = "{"
        while True:
            between, mark = yield from reader.take_until((begin, end))
            if between.strip() and not (mark is None and reader.cut):
                yield Text(between)
            if mark != begin:
                break
            name, found = yield from reader.take_until((self.argument[1],))
            if self.nested and name.startswith("/"):
                mark = end
                break
            attributes = ""
            if found is not None and len(self.argument) > 2:
                attributes, found = yield from reader.take_until((self.argument[2].strip(),))
            if found is None:
                return False
            yield calls.arguments(f"{before}{dump(name)}: ")
            before = ", "
            schema = properties.get(name, {}) if isinstance(properties, Mapping) else {}
            if not (yield from self._read_value(reader, calls, name, schema, attributes)):
                return False
        if mark is None:
            return False
        yield calls.arguments("{}" if before == "{" else "}")
        yield calls.end()
        return True

    def _read_value(
        self, reader: Reader, calls: Calls, name: str, schema: Any, attributes: str
    ) -> Steps[bool]:
        end = self.argument_end.strip().format(name)
        ends = ("\n" + end, end) if self.padded else (end,)
        if self.padded and (yield from reader.starts("\n")):
            reader.skip(1)
        text, known = is_text(schema), False
        if self.attribute is not None and attributes.strip():
            known = True
            text = attributes.strip() == self.attribute("string").strip()
        if self.cdata and (yield from reader.starts(_CDATA)):
            reader.skip(len(_CDATA))
            text, ends = True, (_CDATA_END + end,)
        if text:
            yield calls.arguments('"')

            def escaped(piece: str) -> Event:
                return calls.arguments(dump(piece)[1:-1])

            if not (yield from reader.pass_exactly(ends, escaped)):
                return False
            yield calls.arguments('"')
            return True
        value, mark = yield from reader.take_until((end,))
        begin = self.nested + f"<{name}>"
        while self.nested and mark is not None and value.count(begin) > value.count(end):
            more, mark = yield from reader.take_until((end,))
            value += end + more
        if mark is None:
            return False
        value = value.removesuffix("\n") if self.padded else value
        if self.nested:
            yield calls.arguments(decoded(value, schema, self.nested))
        else:
            yield calls.arguments(written(value, {} if known else schema))
        return True

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        calls = [self._call(grammar, tool) for tool in tools]
        one = grammar.one_of(*calls)
        begin = self.outer or self.call[0]
        trigger, space = begin.rstrip(), grammar.text(_space_after(begin))
        if not self.outer:
            return repeated(grammar, trigger, one, forced, many)
        end = grammar.marker(self.outer_end)
        if self.each:
            return repeated(grammar, trigger, f"{space} {one} {end}", forced, many)
        more = f"{one}{{0,{MOST_CALLS - 1}}}" if many else ""
        return enclosed(grammar, trigger, f"{space} {one} {more} {end}", forced)

    def _call(self, grammar: Grammar, tool: Tool) -> str:
        """One call, without its first mark if no other comes before it."""
        arguments = arguments_of(tool.schema, _ARGUMENT_NAME)
        if arguments is None:
            head = f'{{"name": {dump(tool.name)}, "arguments": '
            call = f"{grammar.text(head)} {grammar.json(tool.schema)} {grammar.text('}')}"
            return call if self.outer else f"{call} {grammar.marker(self.call_end)}"
        parts = [grammar.marker(self.call[0])] if self.outer else []
        parts.append(grammar.marker(tool.name + self.call[1]))
        if self.number:
            before, _, behind = self.number.partition("{}")
            parts += [grammar.text(before), "/[0-9]{1,2}/", grammar.text(behind)]
        parts += [grammar.marker(mark) for mark in self.call[2:]]
        for argument in arguments:
            part = self._argument(grammar, argument)
            parts.append(part if argument.required else f"({part})?")
        return " ".join([*parts, grammar.marker(self.call_end)])

    def _argument(self, grammar: Grammar, argument: Argument) -> str:
        name, schema, _ = argument
        options, end = options_of(schema), self.argument_end.format(name)
        kinds = kinds_of(schema) or {"object"}
        kind = min(kinds - {"null"} or kinds)
        if kind == "string" and not (is_text(schema) or options):
            kind = "object"  # written as JSON
        begin = grammar.marker(self._argument_mark(name, kind))
        if is_text(schema) and self.cdata:
            plain = f"/[^<&\\n]*/ {grammar.marker(end)}"
            marked = grammar.until(_CDATA_END + end.rstrip())
            return f"{begin} ({grammar.text(_CDATA)} {marked} | {plain})"
        if is_text(schema):
            return f"{begin} {grammar.until(end.rstrip())} {grammar.text(_space_after(end))}"
        if options:
            value = grammar.one_of(*map(grammar.text, options))
        elif self.nested:
            value = nested_rule(grammar, schema, self.nested)
        else:
            value = grammar.json(schema if isinstance(schema, (Mapping, bool)) else {})
        return f"{begin} {value} {grammar.marker(end)}"

    def _argument_mark(self, name: str, kind: str) -> str:
        attribute = self.attribute(kind) if self.attribute is not None else ""
        rest = attribute + self.argument[2] if len(self.argument) > 2 else ""
        line = "\n" if self.padded else ""
        return f"{self.argument[0]}{name}{self.argument[1]}{rest}{line}"

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        written_calls = [self._write(number, *call) for number, call in enumerate(called, 1)]
        if not self.outer:
            return "\n".join(written_calls)
        if self.each:
            return "\n".join(f"{self.outer}{call}{self.outer_end}" for call in written_calls)
        return f"{self.outer}{''.join(written_calls)}{self.outer_end}"

    def _write(self, number: int, name: str, arguments: Mapping[str, Any]) -> str:
        order = self.number.format(number) if self.number else ""
        parts = [f"{self.call[0]}{name}{self.call[1]}{order}{''.join(self.call[2:])}"]
        for key, value in arguments.items():
            if self.nested:
                text = nested_text(value, self.nested)
            else:
                text = value if isinstance(value, str) else dump(value)
            if self.cdata and isinstance(value, str) and set(value) & set("<&\n"):
                text = f"{_CDATA}{text}{_CDATA_END}"
            parts += [self._argument_mark(key, kind_of(value)), text, self.argument_end.format(key)]
        return "".join([*parts, self.call_end])


def _space_after(mark: str) -> str:
    return mark[len(mark.rstrip()) :]
