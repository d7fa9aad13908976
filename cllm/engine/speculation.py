"""Speculative decoding: tokens guessed ahead are evaluated in one step with the newest one.

The guess is prompt lookup (Saxena 2023): what followed the same last tokens before, in prompt or
answer, may follow again. At each guessed place the sampler chooses as if nothing had been guessed;
a guess only decides whether that choice needed a step of its own. So what is generated, and its
distribution under sampling, are what they would be without.
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING

from cllm.engine.config import SPARE_ROWS

if TYPE_CHECKING:
    from cllm.engine.sequence import Sequence

_GRAM = 3  # tokens that must be the same; two are too often followed by something else
_TOKEN_BITS = 21  # a token's number in a key
_PROBE = 32  # steps without a guess after which one is tried again
_PROBE_TOKENS = 2
_PLAIN = 32  # steps with guesses after which one is left plain: what it takes is known anew
_MEMORY = 0.8  # weight of the past at each observation
_PRIOR_HITS, _PRIOR_TRIES = 2.0, 3.0  # a sequence begins by trusting its text


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


class Guesser:
    """One sequence's guesses: how often they come true, and so how far ahead to guess."""

    __slots__ = ("_hits", "_lookup", "_since_probe", "_tries")

    def __init__(self) -> None:
        self._lookup = Lookup()
        self._hits, self._tries = _PRIOR_HITS, _PRIOR_TRIES
        self._since_probe = 0

    def guess(self, tokens: array[int], most: int, price: float) -> list[int]:
        """At most `most` tokens, as many as are worth their price.

        price: what a guessed token costs, in tokens that could be generated instead.
        """
        worth = self._worth(price)
        if not worth:
            self._since_probe += 1
            if self._since_probe < _PROBE:
                return []
            worth = _PROBE_TOKENS
        guessed = self._lookup.guess(tokens, min(most, worth))
        if guessed:
            self._since_probe = 0
        return guessed

    def _worth(self, price: float) -> int:
        """How many guessed tokens are each likelier to come true than they cost."""
        if price >= 1.0:
            return 0
        likely = min(self._hits / self._tries, 0.99)
        return int(math.log(max(price, 0.01)) / math.log(likely)) if likely > 0 else 0

    def observe(self, guessed: int, right: int) -> None:
        """Learn that the first `right` of so many guessed tokens came true."""
        tried = right + (right < guessed)  # those behind a wrong one say nothing
        self._hits = self._hits * _MEMORY + right
        self._tries = self._tries * _MEMORY + tried


class Speculation:
    """Decides how far each sequence guesses ahead in the next step. Engine thread only."""

    __slots__ = ("_extra_s", "_guessing", "_most", "_same")

    def __init__(self, most: int, same: bool) -> None:
        """most: tokens that one sequence guesses. same: whether sequences are evaluated together
        only with equally many tokens, as in a cache that is split by sequence.
        """
        self._most = most
        self._same = same
        self._extra_s: float | None = None  # what a guessed token adds to a step
        self._guessing = 0  # steps since one was left as it is

    def guess(self, sequences: list[Sequence], room: int, step_s: float | None) -> None:
        """Give sequences that generate their guesses.

        room: tokens for guesses in the batch. step_s: what a step without guesses takes.
        """
        if step_s is None:
            return  # nothing to compare with yet
        if self._guessing >= _PLAIN:
            self._guessing = 0
            return
        count = len(sequences)
        extra_s = step_s / (count + 1) / 4 if self._extra_s is None else self._extra_s
        price = extra_s * count / step_s
        room = min(room, SPARE_ROWS) // count
        guesses = []
        for sequence in sequences:
            guesser = sequence.guesser
            most = min(self._most, room, sequence.max_length - len(sequence.tokens) - 1)
            guesses.append(guesser.guess(sequence.tokens, most, price) if guesser else [])
            if self._same and count > 1 and not guesses[-1]:
                return
        self._guessing += 1
        shortest = min(map(len, guesses)) if self._same else self._most
        for sequence, guessed in zip(sequences, guesses, strict=True):
            sequence.suppose(guessed[:shortest])

    def observe(self, guessed: int, seconds: float, step_s: float) -> None:
        """Learn from a step with guesses what they cost."""
        extra_s = max(0.0, seconds - step_s) / guessed
        before = extra_s if self._extra_s is None else self._extra_s
        self._extra_s = before * _MEMORY + extra_s * (1 - _MEMORY)
