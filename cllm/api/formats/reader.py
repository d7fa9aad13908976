"""Reading a growing text: parsers are generators that ask for more.

Rule: a decision depends on the text alone, never on how it was split. So a decision waits until no
further text can change it, and only text that may be part of a marker is held back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from cllm.api.chat.events import Event, Text

T = TypeVar("T")

# Yields events, and None when it needs more text; returns T.
Steps = Generator[Event | None, None, T]

_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING_END = re.compile(r'["\\]')


class Reader:
    """The text that has arrived and has not been read."""

    __slots__ = ("cut", "dropped", "ended", "free", "text")

    def __init__(self) -> None:
        self.text = ""
        # While all text so far is read: the first characters of the markers that the parser waits
        # for, and the event of text without any, which Script.push() then makes by itself.
        self.free: tuple[str, Callable[[str], Event]] | None = None
        self.dropped = ""  # white space before the last marker
        self.ended = False
        self.cut = False  # it ended at a limit, so a marker or a call may be incomplete

    def skip(self, count: int) -> str:
        """Read this many characters."""
        read, self.text = self.text[:count], self.text[count:]
        return read

    def space(self) -> Steps[str]:
        """Read white space."""
        read = ""
        while True:
            rest = self.text.lstrip()
            read += self.skip(len(self.text) - len(rest))
            if rest or self.ended:
                return read
            yield None

    def starts(self, marker: str) -> Steps[bool]:
        """Whether the text begins with the marker; it is not read."""
        while len(self.text) < len(marker) and not self.ended and marker.startswith(self.text):
            yield None
        return self.text.startswith(marker)

    def take(self, marker: str) -> Steps[bool]:
        """Read the marker if it comes next; also its beginning, where the text was cut."""
        found = yield from self.starts(marker)
        if found:
            self.skip(len(marker))
        elif self.cut and self.text and marker.startswith(self.text):
            self.skip(len(self.text))
        return found

    def left(self, text: str) -> Steps[None]:
        """Text that was read as the beginning of a call and is not one.

        It is shown, unless it is the last text before a cut: then it may be half a call.
        """
        if text and not (self.cut and not self.text):
            yield Text(text)

    def take_within(self, markers: Sequence[str], most: int) -> Steps[tuple[str, str | None]]:
        """`take_until` for a marker that begins within this many characters.

        If there is none, nothing is read.
        """
        longest = max(map(len, markers))
        while True:
            found = _first(self.text[: most + longest], markers)
            if found is not None:
                before = self.skip(found[0])
                self.skip(len(found[1]))
                return before, found[1]
            if self.ended or len(self.text) >= most + longest:
                if self.cut and len(self.text) < most + longest:
                    self.skip(len(self.text))
                return "", None
            yield None

    def take_until(self, markers: Sequence[str]) -> Steps[tuple[str, str | None]]:
        """Read up to the first marker and past it; return the text before it, and the marker.

        None for the marker: the text ended without one.
        """
        while (found := _first(self.text, markers)) is None and not self.ended:
            yield None
        if found is None:
            return self.skip(len(self.text)), None
        before = self.skip(found[0])
        self.skip(len(found[1]))
        return before, found[1]

    def pass_until(
        self, markers: Sequence[str], event: Callable[[str], Event]
    ) -> Steps[str | None]:
        """Yield everything up to the first marker, and skip that; None: there was none.

        White space before a marker is `dropped`.
        """
        begins = "".join({marker[0] for marker in markers})
        while True:
            text = self.text
            if not self.ended and _is_free(text, begins):
                self.text = ""
                yield event(text)
                self.free = begins, event
                yield None
                self.free = None
                continue
            found = _first(text, markers)
            if found is not None:
                before = text[: found[0]].rstrip()
                if before:
                    yield event(before)
                self.dropped = text[len(before) : found[0]]
                self.skip(found[0] + len(found[1]))
                return found[1]
            if self.ended:
                said = text[: len(text) - _begun(text, markers)] if self.cut else text
                self.skip(len(text))
                if said:
                    yield event(said)
                return None
            sure = len(text[: len(text) - _begun(text, markers)].rstrip())
            if sure:
                yield event(self.skip(sure))
            yield None

    def pass_exactly(self, markers: Sequence[str], event: Callable[[str], Event]) -> Steps[bool]:
        """The same, including white space; returns whether there was a marker."""
        while (found := _first(self.text, markers)) is None:
            known = self.ended and not self.cut
            sure = len(self.text) - (0 if known else _begun(self.text, markers))
            if sure:
                yield event(self.skip(sure))
            if self.ended:
                self.text = ""
                return False
            yield None
        if found[0]:
            yield event(self.skip(found[0]))
        self.skip(len(found[1]))
        return True

    def pass_object(self, event: Callable[[str], Event]) -> Steps[bool]:
        """Yield a JSON object as it arrives, unparsed; returns whether it is complete."""
        scan = ObjectScan()
        while True:
            end = scan.push(self.text)
            piece = self.skip(len(self.text) if end is None else end)
            if piece:
                yield event(piece)
            if end is not None:
                return True
            if self.ended:
                return False
            yield None


class ObjectScan:
    """Finds the end of a JSON object or list that starts with the first pushed character."""

    __slots__ = ("_depth", "_escaped", "_string")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._string = False
        self._escaped = False

    def push(self, text: str) -> int | None:
        """The length of this piece's part of the object, once it is complete."""
        at = 0
        while at < len(text):
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_STRING_END if self._string else _STRUCTURE).search(text, at)
            if match is None:
                return None
            at = match.end()
            character = match[0]
            if character == "\\":
                self._escaped = True
            elif character == '"':
                self._string = not self._string
            elif character in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    return at
        return None


class Script:
    """A parser written as a generator; see `cllm.api.chat.events.Parser`."""

    __slots__ = ("_reader", "_steps")

    def __init__(self, write: Callable[[Reader], Steps[None]]) -> None:
        self._reader = Reader()
        self._steps = write(self._reader)

    def push(self, text: str) -> list[Event]:
        reader = self._reader
        free = reader.free
        if free is not None and _is_free(text, free[0]):
            return [free[1](text)]
        reader.text += text
        return self._run()

    def finish(self, cut: bool = False) -> list[Event]:
        self._reader.ended = True
        self._reader.cut = cut
        return self._run()

    def _run(self) -> list[Event]:
        events: list[Event] = []
        for event in self._steps:
            if event is None:
                break
            events.append(event)
        return events


def _first(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    return min(found) if found else None


def _is_free(text: str, begins: str) -> bool:
    """Whether the text can be shown at once: it has none of these characters, nor space behind."""
    for character in begins:
        if character in text:
            return False
    return bool(text) and not text[-1].isspace()


def _begun(text: str, markers: Sequence[str]) -> int:
    """The length of the longest suffix of the text that begins a marker."""
    longest = 0
    for marker in markers:
        at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
        while at >= 0:
            if marker.startswith(text[at:]):
                longest = max(longest, len(text) - at)
                break
            at = text.find(marker[0], at + 1)
    return longest
