"""Grammars of answers, in llguidance's dialect of Lark.

Source: llguidance, docs/syntax.md. A marker may be a single token, which no text can match, or
ordinary text; the vocabulary decides which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from cllm.engine.constraints.constraint import json_rule

_MOST = 16  # maximum number of forced calls: a weak model would never end by itself


class Grammar:
    """Collects rules. Expressions are strings for a rule's right side."""

    __slots__ = ("_marker_token", "_rules")

    def __init__(self, marker_token: Callable[[str], int | None]) -> None:
        """marker_token: the token of a marker, if it is a single token."""
        self._marker_token = marker_token
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
        """A marker, as the model writes it."""
        token = self._marker_token(text)
        return self.text(text) if token is None else f"<[{token}]>"

    def until(self, marker: str) -> str:
        """Any text up to the marker, and the marker."""
        token, spelled = self._marker_token(marker), self.text(marker)
        written = self.rule(f"TEXT {spelled}", "[lazy]")
        return written if token is None else f"({written} | TEXT <[{token}]>)"

    def json(self, schema: Mapping[str, Any] | bool) -> str:
        """JSON of this schema. Raises InvalidRequest."""
        return self.rule(json_rule(schema))

    def one_of(self, *bodies: str) -> str:
        """Any of these expressions."""
        return self.rule(" | ".join(bodies))


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
        return f"{one} (SPACE {one}){{0,{_MOST - 1}}}" if many else one
    one = grammar.rule(f"{grammar.until(trigger)} {call}")
    return f"{one}* TEXT" if many else f"({one} | TEXT)"


def enclosed(grammar: Grammar, trigger: str, calls: str, forced: bool) -> str:
    """Calls after one common trigger, which `calls` follows."""
    if forced:
        return f"{grammar.marker(trigger)} {calls}"
    return f"({grammar.until(trigger)} {calls} | TEXT)"
