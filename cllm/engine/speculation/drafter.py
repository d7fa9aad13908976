"""One sequence's drafts from its own text: what they are, and how far ahead they pay.

Pure policy: prompt lookup (Saxena 2023) proposes the tokens that followed the same last tokens
before, and the rate at which drafts were accepted bounds their length.
"""

from __future__ import annotations

import math
from array import array

_GRAM = 3  # tokens that must be the same; two are too often followed by something else
_TOKEN_BITS = 21  # a token's number in a key
_PROBE = 32  # steps without a guess after which one is tried again
_PROBE_TOKENS = 2
_MEMORY = 0.8  # weight of the past at each observation
_PRIOR_LIKELY, _PRIOR_TRIES = 2 / 3, 3.0  # a sequence begins by trusting its text


class Lookup:
    """Every run of three tokens in a sequence, and where what last followed it stands."""

    __slots__ = ("_follower", "_read")

    def __init__(self) -> None:
        self._follower: dict[int, int] = {}
        self._read = _GRAM  # tokens before this one have been looked at as followers

    def guess(self, tokens: array[int], most: int) -> list[int]:
        """What followed the last tokens before, at most so much of it; often nothing."""
        follower, length = self._follower, len(tokens)
        if length < _GRAM:
            return []
        for position in range(self._read, length):
            follower[_key(tokens, position)] = position
        self._read = max(self._read, length)
        start = follower.get(_key(tokens, length))
        if start is None:
            return []
        guessed = tokens[start : start + most].tolist()
        while len(guessed) < most:  # a text that repeats itself goes on doing so
            guessed.append(guessed[len(guessed) - (length - start)])
        return guessed


def _key(tokens: array[int], end: int) -> int:
    first, second, third = tokens[end - 3], tokens[end - 2], tokens[end - 1]
    return (first << 2 * _TOKEN_BITS) | (second << _TOKEN_BITS) | third


class Trust:
    """How likely guesses of one kind are to come true, the latest ones weighing most."""

    __slots__ = ("_hits", "_memory", "_of", "_tries")

    def __init__(self, memory: float = _MEMORY, of: Trust | None = None) -> None:
        """of: everybody's trust in that kind, from which this one begins and which learns too."""
        self._hits = _PRIOR_TRIES * (_PRIOR_LIKELY if of is None else of.likely)
        self._tries = _PRIOR_TRIES
        self._memory = memory
        self._of = of

    @property
    def likely(self) -> float:
        """How likely the next guessed token comes true."""
        return min(self._hits / self._tries, 0.99)

    def observe(self, guessed: int, right: int) -> None:
        """Learn that the first `right` of so many guessed tokens came true."""
        tried = right + (right < guessed)  # those behind a wrong one say nothing
        self._hits = self._hits * self._memory + right
        self._tries = self._tries * self._memory + tried
        if self._of is not None:
            self._of.observe(guessed, right)


def worth(likely: float, price: float) -> int:
    """How many guessed tokens are each likelier to come true than they cost.

    price: what a guessed token costs, in tokens that could be generated instead.
    """
    if price >= 1.0 or likely <= 0:
        return 0
    return int(math.log(max(price, 0.01)) / math.log(likely))


class Guesser:
    """One sequence's guesses: how often they come true, and so how far ahead to guess.

    model: trust in the draft model, once it was thought of. drafted: whether the last guess was
    the draft model's.
    """

    __slots__ = ("_lookup", "_own", "_since_probe", "drafted", "model")

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._own = Trust()
        self._since_probe = 0
        self.model: Trust | None = None
        self.drafted = False

    def guess(self, tokens: array[int], most: int, price: float) -> list[int]:
        """At most `most` tokens from the text itself, as many as are worth their price."""
        self.drafted = False
        farthest = worth(self._own.likely, price)
        if not farthest:
            self._since_probe += 1
            if self._since_probe < _PROBE:
                return []
            farthest = _PROBE_TOKENS
        guessed = self._lookup.guess(tokens, min(most, farthest))
        if guessed:
            self._since_probe = 0
        return guessed

    def observe(self, guessed: int, right: int) -> None:
        """Learn that the first `right` of so many guessed tokens came true."""
        trust = self.model if self.drafted and self.model is not None else self._own
        trust.observe(guessed, right)
