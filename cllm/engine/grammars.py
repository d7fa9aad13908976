"""Constraints compiled for a model's vocabulary; the latest are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from cllm.engine.constraint import Constraint
from cllm.engine.errors import InvalidRequest
from cllm.engine.guide import Guide
from cllm.engine.llama import Vocab

MAX_KEPT = 64
"""Compiled constraints that are kept; one takes about a megabyte, seldom more."""

_LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,  # some 20 ms
    step_lexer_fuel=200_000,  # some 15 ms for one mask
    step_max_items=50_000,
    max_items_in_row=8_000,
    max_lexer_states=50_000,  # 1-2 KB each
    max_grammar_size=200_000,
    verbose_errors=False,
)


class Grammars:
    """For any thread, for as long as the vocabulary lives."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._tokenizer: LLTokenizer | None = None

    def guide(self, constraint: Constraint) -> Guide:
        """Return the start of one request's way. Raises InvalidRequest."""
        return Guide(self._compiled(constraint).deep_copy(), self._vocab.n_tokens)

    def _compiled(self, constraint: Constraint) -> LLMatcher:
        with self._lock:
            kept = self._kept.get(constraint)
            if kept is not None:
                self._kept.move_to_end(constraint)
                return kept
            if self._tokenizer is None:  # 1.4 s for 151 936 tokens
                self._tokenizer = self._vocab.for_llguidance()
        matcher = self._compile(constraint, self._tokenizer)
        with self._lock:
            self._kept[constraint] = matcher
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return matcher

    def _compile(self, constraint: Constraint, tokenizer: LLTokenizer) -> LLMatcher:
        grammar = constraint.grammar()
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()  # finds most of what is too intricate, and fills its tables
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())
            expected = f"a constraint that can be compiled ({reason})"
            raise InvalidRequest(constraint.kind, constraint.source, expected)
        return matcher
