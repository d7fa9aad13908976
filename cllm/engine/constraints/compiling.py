"""Compiles one constraint for one vocabulary, within limits; used by the server and its child."""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cllm.engine.constraints.constraint import Constraint
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
    grammar = constraint.grammar()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds most too intricate grammars, and fills the tables
    if matcher.is_error():
        raise refused(constraint, " ".join(matcher.get_error().split()))
    return matcher


def refused(constraint: Constraint, reason: str) -> InvalidRequest:
    """The error for a constraint that cannot be compiled."""
    expected = f"a constraint that can be compiled ({reason})"
    return InvalidRequest(constraint.kind, constraint.source, expected)
