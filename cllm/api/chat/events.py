"""The events of a parser of the model's text, the same for every API."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class Text(Struct, frozen=True):
    """A piece of the answer."""

    text: str


class Reasoning(Struct, frozen=True):
    """A piece of the model's reasoning before its answer."""

    text: str


class CallBegin(Struct, frozen=True):
    """A tool is called; `index` counts the calls of an answer, from 0."""

    index: int
    id: str
    name: str


class CallArguments(Struct, frozen=True):
    """A piece of the arguments' JSON text; the pieces of a call make one JSON object."""

    index: int
    text: str


class CallEnd(Struct, frozen=True):
    """The arguments are complete. An unfinished call has no end."""

    index: int


Event = Text | Reasoning | CallBegin | CallArguments | CallEnd


class Parser(Protocol):
    """Reads one generation's text as it arrives. How the text is split makes no difference."""

    def push(self, text: str) -> list[Event]:
        """The events that are certain; text that may begin a marker is held back."""

    def finish(self, cut: bool = False) -> list[Event]:
        """The remaining events; no text follows.

        cut: the text ended at `max_tokens` or at the context's end. What can only be the beginning
        of a call is then dropped, not shown as text.
        """
