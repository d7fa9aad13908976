"""Calls that are JSON objects: `{"name": …, "arguments": {…}}` between marks or in a list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cllm.api.chat.conversation import Tool
from cllm.api.formats.calls import Calls, dump, read_json_call, read_keyed_call
from cllm.api.formats.format import Called, next_mark
from cllm.api.formats.grammar import MOST_CALLS, Grammar, enclosed, repeated
from cllm.api.formats.reader import Reader, Steps

_FENCE, _FENCE_END = "```json", "```"
_SEPARATORS = (",", ";")


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """Where the objects stand, and the names of their keys.

    begin, end: the marks; end may be "". open, close: what comes next to them on the inside.
    between: what separates calls between one pair of marks; "": each call has its own pair, and
        `gap` stands between the pairs.
    id: the key of a number that comes first; "": there is none.
    keyed: a call is `{"NAME": {arguments}}`.
    bare: calls may also begin the answer without the mark; with `marked` False they always do.
    """

    begin: str
    end: str = ""
    open: str = ""
    close: str = ""
    between: str = ""
    gap: str = "\n"
    name: str = "name"
    arguments: str = "arguments"
    id: str = ""
    keyed: bool = False
    bare: bool = False
    marked: bool = True

    def read(self, reader: Reader, calls: Calls, frames: Sequence[str]) -> Steps[None]:
        """See `Layout`."""
        if self.bare:
            before = yield from reader.space()
            if (yield from reader.starts("{")) or (yield from reader.starts("[")):
                yield from self.read_section(reader, calls, before)
            else:
                reader.text = before + reader.text
        while (yield from next_mark(reader, (self.begin,), frames)) is not None:
            yield from self.read_section(reader, calls, reader.dropped + self.begin)

    def read_section(self, reader: Reader, calls: Calls, before: str) -> Steps[None]:
        """Read the calls after a mark, and the mark at their end.

        before: text that was read, and is shown if there is no call.
        """
        before += yield from reader.space()
        fenced = _FENCE in self.open and (yield from reader.take(_FENCE))
        if fenced:
            before += _FENCE + (yield from reader.space())
        listed = yield from reader.take("[")
        if listed:
            before += "[" + (yield from reader.space())
        read = read_keyed_call if self.keyed else read_json_call
        if not (yield from read(reader, calls)):
            yield from reader.left(before)
            return
        while True:
            after = yield from reader.space()
            for separator in _SEPARATORS:
                if (yield from reader.take(separator)):
                    after += separator + (yield from reader.space())
            if not (yield from read(reader, calls)):
                break
        if listed and (yield from reader.take("]")):
            after = yield from reader.space()
        if fenced and (yield from reader.take(_FENCE_END)):
            after = yield from reader.space()
        if self.end and not fenced and (yield from reader.take(self.end)):
            after = yield from reader.space()
        elif listed or not self.end:
            after = after.strip()
        if not (reader.cut and not reader.text):
            reader.text = after + reader.text

    def rules(self, grammar: Grammar, tools: Sequence[Tool], forced: bool, many: bool) -> str:
        """See `Layout`."""
        one = grammar.one_of(*(self._rule(grammar, tool) for tool in tools))
        opened, closed = grammar.text(self.open), grammar.text(self.close)
        closed = f"{closed} {grammar.marker(self.end)}" if self.end else closed
        if not self.between:
            return repeated(grammar, self.begin, f"{opened} {one} {closed}", forced, many)
        several = f"({grammar.text(self.between)} {one}){{0,{MOST_CALLS - 1}}}" if many else ""
        calls = f"{opened} {one} {several} {closed}"
        if self.marked:
            return enclosed(grammar, self.begin, calls, forced)
        if forced:
            return calls
        # An answer that begins with an object is a call.
        said = grammar.rule("/[^{](.|\\n)*/")
        return f"({grammar.marker(self.begin)}? {calls} | {said}?)"

    def write(self, called: Sequence[Called]) -> str:
        """See `Layout`."""
        written = [self._write(number, *call) for number, call in enumerate(called)]
        before, behind = (self.begin if self.marked else "") + self.open, self.close + self.end
        if self.between:
            return before + self.between.join(written) + behind
        return self.gap.join(before + call + behind for call in written)

    def _write(self, number: int, name: str, arguments: object) -> str:
        if self.keyed:
            return f"{{{dump(name)}: {dump(arguments)}}}"
        id = f'"{self.id}": "{number}", ' if self.id else ""
        return f'{{{id}"{self.name}": {dump(name)}, "{self.arguments}": {dump(arguments)}}}'

    def _rule(self, grammar: Grammar, tool: Tool) -> str:
        id = f'{grammar.text(f"{{{dump(self.id)}: ")} /"[0-9]{{1,2}}"/ ", "' if self.id else '"{"'
        head = f'"{self.name}": {dump(tool.name)}, "{self.arguments}": '
        if self.keyed:
            head = f"{dump(tool.name)}: "
        return f"{id} {grammar.text(head)} {grammar.json(tool.schema)} {grammar.text('}')}"
