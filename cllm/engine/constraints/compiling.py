"""Compiles one constraint for one vocabulary, within limits; used by the server and its child."""

from __future__ import annotations

import json

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cllm.engine.constraints.constraint import Constraint
from cllm.engine.constraints.json_culprit import culprit
from cllm.engine.errors import InvalidRequest

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # about 20 ms
    step_lexer_fuel=200_000,  # about 15 ms for one mask
    step_max_items=50_000,
    max_items_in_row=8_000,
    max_lexer_states=50_000,  # 1-2 KB each
    max_grammar_size=200_000,
    verbose_errors=False,
)


def compile_constraint(constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
    """Return a matcher at the beginning of a text, its first mask computed. Raises InvalidRequest.

    Some grammars crash the process or take minutes: a child process must compile them first.
    """
    matcher = _compiled(constraint.grammar(), tokenizer)
    if not matcher.is_error():
        return matcher
    reason = _reason(matcher)
    if constraint.kind == "json_schema":
        reason = culprit(
            json.loads(constraint.source),
            reason,
            lambda expression: _refusal(f"start: {expression}", tokenizer),
        )
        raise InvalidRequest("json_schema", "a schema", f"one that can be held: {reason}")
    raise refused(constraint, reason)


def _compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds most too intricate grammars, and fills the tables
    return matcher


def _refusal(grammar: str, tokenizer: LLTokenizer) -> str | None:
    matcher = _compiled(grammar, tokenizer)
    return _reason(matcher) if matcher.is_error() else None


def _reason(matcher: LLMatcher) -> str:
    """What llguidance says, without the grammar that it quotes and its own options."""
    error = matcher.get_error()
    _, found, told = error.partition("failed to compile JSON schema: ")
    if not found:
        return " ".join(error.split())
    first, *more = told.split("\n")
    details = [line for line in more if line.startswith("error: ")]
    first = first.split(": (", 1)[0]  # an expression in llguidance's own form
    return " ".join(" ".join([first, *details[:1]]).split())


def refused(constraint: Constraint, reason: str) -> InvalidRequest:
    """The error for a constraint that cannot be compiled."""
    expected = f"a constraint that can be compiled ({reason})"
    return InvalidRequest(constraint.kind, constraint.source, expected)
