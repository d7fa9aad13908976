"""Grammars of answers, in llguidance's dialect of Lark.

Source: llguidance, docs/syntax.md. A marker may be a token of its own, which no text can match, or
ordinary text; which of them is the vocabulary's matter and is looked up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from cllm.engine.constraints.constraint import json_rule

_MOST = 16  # forced calls side by side: a weak model would never end by itself


class Grammar:
    """Rules as they are added. Expressions are strings that may stand on a rule's right side."""

    __slots__ = ("_marker_token", "_rules")

    def __init__(self, marker_token: Callable[[str], int | None]) -> None:
        """marker_token: the token that a marker is, if it is one."""
        self._marker_token = marker_token
        self._rules = ["TEXT: /(.|\\n)*/", "SPACE: /[ \\n]{0,3}/"]

    def source(self, start: str) -> str:
        """The whole grammar of what `start` describes."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules, ""])

    def rule(self, body: str, attributes: str = "") -> str:
        """A rule of its own."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def text(self, text: str) -> str:
        """Just this text."""
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


def thoughts(grammar: Grammar, think: tuple[str, str], opened: bool) -> str:
    """What may, or where the prompt opened it must, come before an answer."""
    begin, end = think
    closed = f"{grammar.until(end)} SPACE"
    return closed if opened else f"({grammar.marker(begin)} {closed})?"


def repeated(grammar: Grammar, trigger: str, call: str, forced: bool, many: bool) -> str:
    """Calls that each begin with the trigger; `call` is what follows it."""
    if forced:
        one = grammar.rule(f"{grammar.marker(trigger)} {call}")
        return f"{one} (SPACE {one}){{0,{_MOST - 1}}}" if many else one
    one = grammar.rule(f"{grammar.until(trigger)} {call}")
    return f"{one}* TEXT" if many else f"({one} | TEXT)"


def enclosed(grammar: Grammar, trigger: str, calls: str, forced: bool) -> str:
    """Calls that together stand behind one trigger; `calls` is what follows it."""
    if forced:
        return f"{grammar.marker(trigger)} {calls}"
    return f"({grammar.until(trigger)} {calls} | TEXT)"
