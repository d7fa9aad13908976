"""Grammars of answers, in llguidance's dialect of Lark.

Source: llguidance, docs/syntax.md. A marker may be a single token, which no text can match, or
ordinary text; the vocabulary decides which.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cllm.engine.constraints.constraint import json_rule

MOST_CALLS = 16  # of an answer: a weak model would never end by itself
_FRAMES = 3  # marks before a forced call

# What may be a token of its own within a mark.
_TOKENS = re.compile(r"<[|｜]?[^<>|｜\s]*[|｜]?>|｜[^<>｜\s]+｜|\[/?[A-Z_]+\]|\]<\][^\s<>]+\[>\[")


class Grammar:
    """Collects rules. Expressions are strings for a rule's right side."""

    __slots__ = ("_marker_token", "_rules", "frames")

    def __init__(self, marker_token: Callable[[str], int | None]) -> None:
        """marker_token: the token of a marker, if it is a single token."""
        self._marker_token = marker_token
        self.frames: tuple[str, ...] = ()  # marks that may stand around text
        self._rules = ["TEXT: /(.|\\n)*/", "SPACE: /[ \\n]{0,3}/"]

    def source(self, start: str) -> str:
        """The whole grammar with this `start`."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, ""])

    def rule(self, body: str, attributes: str = "") -> str:
        """Add a rule."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Exactly this text."""
        return json.dumps(text, ensure_ascii=False) if text else ""

    def marker(self, text: str) -> str:
        """A marker, as the model writes it: the tokens in it, and the text around them."""
        return _joined(self._pieces(text))

    def until(self, marker: str) -> str:
        """Any text up to the marker, and the marker."""
        pieces, spelled = self._pieces(marker), self.text(marker)
        written = self.rule(f"TEXT {spelled}", "[lazy]")
        if _has_token(pieces):
            written = f"({written} | {self._text_before(pieces)})"
        framed = self._framed()
        return f"({self.said()} {framed} {written} | {written})" if framed else written

    def said(self) -> str:
        """Any text, with the marks that may stand around it."""
        framed = self._framed()
        return f"TEXT ({framed} TEXT)*" if framed else "TEXT"

    def opening(self) -> str:
        """The marks that may come before a forced call."""
        framed = self._framed()
        return f"{framed}{{0,{_FRAMES}}}" if framed else ""

    def _framed(self) -> str:
        """Any of the marks that no text can match."""
        framed = [pieces for frame in self.frames if _has_token(pieces := self._pieces(frame))]
        marks = [_joined(pieces) for pieces in framed]
        return f"({' | '.join(marks)})" if marks else ""

    def _text_before(self, pieces: Sequence[tuple[str, bool]]) -> str:
        """Any text and then this marker, in which tokens are."""
        if pieces[0][1]:
            return f"TEXT {_joined(pieces)}"
        first = self.rule(f"TEXT {pieces[0][0]}", "[lazy]")
        return f"{first} {_joined(pieces[1:])}"

    def _pieces(self, text: str) -> list[tuple[str, bool]]:
        """The expressions of a marker's parts, and whether each is a token."""
        whole = self._marker_token(text)
        if whole is not None:
            return [(f"<[{whole}]>", True)]
        pieces, at = [], 0
        for found in _TOKENS.finditer(text):
            token = None if found[0] == text else self._marker_token(found[0])
            if token is not None:
                if found.start() > at:
                    pieces.append((self.text(text[at : found.start()]), False))
                pieces.append((f"<[{token}]>", True))
                at = found.end()
        if text[at:]:
            pieces.append((self.text(text[at:]), False))
        return pieces

    def json(self, schema: Mapping[str, Any] | bool) -> str:
        """JSON of this schema. Raises InvalidRequest."""
        return self.rule(json_rule(schema))

    def one_of(self, *bodies: str) -> str:
        """Any of these expressions."""
        return self.rule(" | ".join(bodies))


def _has_token(pieces: Sequence[tuple[str, bool]]) -> bool:
    return any(token for _, token in pieces)


def _joined(pieces: Sequence[tuple[str, bool]]) -> str:
    return " ".join(piece for piece, _ in pieces)


def thoughts(
    grammar: Grammar, think: tuple[str, str], opened: bool, budget: int | None = None
) -> str:
    """The optional thoughts before an answer; required if the prompt opened them.

    budget: the most tokens of thoughts, where a single token ends them.
    """
    begin, end = think
    if budget is None:
        closed = f"{grammar.until(end)} SPACE"
    else:
        thought = grammar.rule("TEXT", f"[max_tokens={budget}]") if budget else ""
        closed = f"{thought} {grammar.marker(end)} SPACE"
    return closed if opened else f"({grammar.marker(begin)} {closed})?"


def repeated(grammar: Grammar, trigger: str, call: str, forced: bool, many: bool) -> str:
    """Calls that each begin with the trigger, followed by `call`."""
    if forced:
        one = grammar.rule(f"{grammar.marker(trigger)} {call}")
        return grammar.opening() + (
            f" {one} (SPACE {one}){{0,{MOST_CALLS - 1}}}" if many else f" {one}"
        )
    one = grammar.rule(f"{grammar.until(trigger)} {call}")
    return f"{one}* {grammar.said()}" if many else f"({one} | {grammar.said()})"


def enclosed(grammar: Grammar, trigger: str, calls: str, forced: bool) -> str:
    """Calls after one common trigger, which `calls` follows."""
    if forced:
        return f"{grammar.opening()} {grammar.marker(trigger)} {calls}"
    return f"({grammar.until(trigger)} {calls} | {grammar.said()})"
