"""One sequence's drafts from its own text: what they are, and how far ahead they pay.

Pure policy. Prompt lookup (Saxena 2023) drafts the tokens that followed the same last tokens
earlier in the prompt or the answer. The measured acceptance rate bounds the length of a draft.
"""

from __future__ import annotations

import math
from array import array

import numpy as np

from cllm.engine.speculation.chance import Chance

_GRAM = 3  # tokens that must match; after two the text too often continues differently
_SLICE = (
    1024  # tokens that one call adds to a table: 0.1 ms, of a prompt of 32 000 it would be 7 ms
)
_FEW = 32  # tokens for which a loop is faster than numpy
_TOKEN_BITS = 21  # of a token in a key
_PROBE = 32  # steps without a draft after which one is tried again
_PROBE_TOKENS = 2
_MEMORY = 0.8  # weight of the past at each observation
_PRIOR_RATE, _PRIOR_TRIES = 2 / 3, 3.0  # what a sequence begins with


class PromptLookup:
    """Every run of three tokens in a sequence, and the position of what last followed it."""

    __slots__ = ("_follower", "_read")

    def __init__(self) -> None:
        self._follower: dict[int, int] = {}
        self._read = _GRAM  # tokens before this one are in the table as followers

    def draft(self, tokens: array[int], limit: int) -> list[int]:
        """Return up to `limit` tokens that followed the last ones before; often none.

        The table of a long prompt is filled over several calls, the beginning first.
        """
        follower, length = self._follower, len(tokens)
        if length < _GRAM:
            return []
        begin, end = self._read, min(length, self._read + _SLICE)
        if end - begin < _FEW:
            for position in range(begin, end):
                follower[_key(tokens, position)] = position
        else:
            grams = np.array(tokens[begin - _GRAM : end - 1], dtype=np.int64)
            keys = (grams[:-2] << 2 * _TOKEN_BITS) | (grams[1:-1] << _TOKEN_BITS) | grams[2:]
            follower.update(zip(keys.tolist(), range(begin, end), strict=True))
        self._read = max(begin, end)
        start = follower.get(_key(tokens, length))
        if start is None:
            return []
        draft = tokens[start : start + limit].tolist()
        while len(draft) < limit:  # a text that repeats itself is expected to go on repeating
            draft.append(draft[len(draft) - (length - start)])
        return draft


def _key(tokens: array[int], end: int) -> int:
    first, second, third = tokens[end - 3], tokens[end - 2], tokens[end - 1]
    return (first << 2 * _TOKEN_BITS) | (second << _TOKEN_BITS) | third


class AcceptanceRate:
    """The share of drafted tokens of one kind that are accepted; the latest count most."""

    __slots__ = ("_accepted", "_memory", "_shared", "_tries")

    def __init__(self, memory: float = _MEMORY, shared: AcceptanceRate | None = None) -> None:
        """shared: the rate of all sequences, which is the prior of this one and learns too."""
        self._accepted = _PRIOR_TRIES * (_PRIOR_RATE if shared is None else shared.value)
        self._tries = _PRIOR_TRIES
        self._memory = memory
        self._shared = shared

    @property
    def value(self) -> float:
        """The probability that the next drafted token is accepted."""
        return min(self._accepted / self._tries, 0.99)

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn that the first `accepted` of `drafted` tokens were accepted."""
        tried = accepted + (accepted < drafted)  # those after a rejected one say nothing
        self._accepted = self._accepted * self._memory + accepted
        self._tries = self._tries * self._memory + tried
        if self._shared is not None:
            self._shared.observe(drafted, accepted)


def draft_length(rate: float, cost: float) -> int:
    """How many tokens to draft: as long as the probability of acceptance exceeds the cost.

    rate: the acceptance rate of one token. cost: of a drafted token, relative to a generated one.
    """
    if cost >= 1.0 or rate <= 0:
        return 0
    return int(math.log(max(cost, 0.01)) / math.log(rate))


class Drafter:
    """One sequence's drafts from its text, and the acceptance rates that bound their length.

    model_rate: the acceptance rate of the draft model, once that was considered. from_model:
    whether the last draft is the draft model's. chance: decides which tokens are accepted, in place
    of the model's own choice.
    """

    __slots__ = ("_lookup", "_rate", "_since_probe", "chance", "from_model", "model_rate")

    def __init__(self, chance: Chance | None = None) -> None:
        self.chance = chance
        self._lookup = PromptLookup()
        self._rate = AcceptanceRate()
        self._since_probe = 0
        self.model_rate: AcceptanceRate | None = None
        self.from_model = False

    def draft(self, tokens: array[int], limit: int, cost: float) -> list[int]:
        """Return up to `limit` tokens from the text, at most as many as pay their cost."""
        self.from_model = False
        length = draft_length(self._rate.value, cost)
        if not length:
            self._since_probe += 1
            if self._since_probe < _PROBE:
                return []
            length = _PROBE_TOKENS
        draft = self._lookup.draft(tokens, min(limit, length))
        if draft:
            self._since_probe = 0
        return draft

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn that the first `accepted` of `drafted` tokens were accepted."""
        rate = self.model_rate if self.from_model and self.model_rate is not None else self._rate
        rate.observe(drafted, accepted)
