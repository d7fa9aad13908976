"""Calls that are a name and then the arguments as a JSON object, with marks around both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cllm.api.chat.conversation import Tool
from cllm.api.formats.calls import Calls, dump
from cllm.api.formats.format import Called, next_mark
from cllm.api.formats.grammar import MOST_CALLS, Grammar, enclosed, repeated
from cllm.api.formats.json_calls import JsonCalls
from cllm.api.formats.reader import Reader, Steps

_MOST_HEAD = 256  # characters of what comes before the arguments
_NAME = r"(?P<name>[\w.-]{1,64})"
_FIELDS = {"name": _NAME, "index": r"\d{1,9}", "id": r"[^\s{}]{0,64}"}
# Numbers and ids of the model's own choice.
_RULES = {"index": "/[0-9]{1,2}/", "id": "/[a-z0-9]{1,10}/"}


@dataclass(frozen=True, slots=True)
class NamedCalls:
    """The marks, from the outside to the inside.

    section, section_end: around all calls; "": there are none. begin, end: around one call.
    heads: what stands between `begin` and `middle`, with fields `{name}`, `{index}` and `{id}`;
        the first is written. middle, fence: before and after the arguments.
    text_name: a name that stands before text, not a call; "": there is none.
    listed: calls in JSON, which are read after `begin` too.
    """

    begin: str
    middle: str
    end: str = ""
    section: str = ""
    section_end: str = ""
    heads: tuple[str, ...] = ("{name}",)
    fence: str = ""
    text_name: str = ""
    gap: str = ""
    listed: JsonCalls | None = None

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        trigger = self.section or self.begin
        while (yield from next_mark(reader, (trigger,), frames)) is not None:
            before = reader.dropped + trigger
            if self.section:
                yield from self._read_section(reader, calls, before)
            else:
                yield from reader.left((yield from self._read_call(reader, calls, before)))

    def _read_section(self, reader: Reader, calls: Calls, before: str) -> Steps[None]:
        while True:
            before += yield from reader.space()
            if not (yield from reader.take(self.begin)):
                break
            before = yield from self._read_call(reader, calls, before + self.begin)
        if (yield from reader.take(self.section_end)) and not before.strip():
            yield from reader.space()
        else:
            yield from reader.left(before)

    def _read_call(self, reader: Reader, calls: Calls, before: str) -> Steps[str]:
        """Read one call; return text that was read and is not a call."""
        if self.listed is not None:
            before += yield from reader.space()
            if (yield from reader.starts("[")) or (yield from reader.starts("{")):
                yield from self.listed.read_section(reader, calls, before)
                return ""
        middle = self.middle.strip() or self.middle
        head, mark = yield from reader.take_within((middle, "{"), _MOST_HEAD)
        if mark == "{":
            reader.text = mark + reader.text
        elif mark is not None:
            before, head = before + head + mark, head.strip()
            before += yield from reader.space()
        name = self._name(head)
        if name is None or name not in calls.tools or not (yield from reader.starts("{")):
            if name == self.text_name and name is not None:
                return ""
            return before + (head if mark == "{" else "")
        yield calls.begin(name)
        if not (yield from reader.pass_object(calls.arguments)):
            return ""
        yield calls.end()
        after = yield from reader.space()
        if self.fence and (yield from reader.take(self.fence.strip())):
            after = yield from reader.space()
        if not self.end or (yield from reader.take(self.end)):
            yield from reader.space()
            return ""
        return "" if reader.cut and not reader.text else after

    def _name(self, head: str) -> str | None:
        for pattern in self.heads:
            found = re.fullmatch(_pattern(pattern), head.strip())
            if found is not None:
                return found["name"]
        return None

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        bodies = []
        for tool in tools:
            head = [self._part(grammar, part, tool.name) for part in _split(self.heads[0])]
            arguments = f"{grammar.json(tool.schema)} {grammar.text(self.fence)}"
            bodies.append(" ".join([*head, grammar.marker(self.middle), arguments]))
        call = grammar.one_of(*bodies)
        if self.end:
            call = f"{call} {grammar.marker(self.end)}"
        if self.section:
            one = grammar.rule(f"{grammar.marker(self.begin)} {call}")
            more = f"(SPACE {one}){{0,{MOST_CALLS - 1}}}" if many else ""
            end = grammar.marker(self.section_end)
            return enclosed(grammar, self.section, f"{one} {more} {end}", forced)
        if not self.text_name:
            return repeated(grammar, self.begin, call, forced, many)
        # The prompt ends with the first call's mark.
        more = f"({grammar.marker(self.begin)} {call}){{0,{MOST_CALLS - 1}}}" if many else ""
        calls = grammar.rule(f"{call} {more}")
        if forced:
            return calls
        said = grammar.text(self.text_name + self.middle)
        return f"({calls} | {said} (TEXT | {grammar.until(self.begin)} {calls}))"

    def _part(self, grammar: Grammar, part: str, name: str) -> str:
        if part == "{name}":
            return grammar.text(name)
        return _RULES[part[1:-1]] if part.startswith("{") else grammar.marker(part)

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        written = []
        for index, (name, arguments) in enumerate(called):
            head = self.heads[0].format(name=name, index=index, id=f"call{index}")
            inside = f"{head}{self.middle}{dump(arguments)}{self.fence}"
            written.append(f"{self.begin}{inside}{self.end}")
        return f"{self.section}{self.gap.join(written)}{self.section_end}"


def _split(head: str) -> list[str]:
    return [part for part in re.split(r"(\{\w+\})", head) if part]


def _pattern(head: str) -> str:
    return "".join(
        _FIELDS[part[1:-1]] if part.startswith("{") else re.escape(part) for part in _split(head)
    )
