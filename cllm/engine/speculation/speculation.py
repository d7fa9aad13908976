"""Speculative decoding: tokens guessed ahead are evaluated in one step with the newest one.

The guess is prompt lookup (Saxena 2023): what followed the same last tokens before, in prompt or
answer, may follow again; or a draft model's (drafting.py). At each guessed place the sampler
chooses as if nothing had been guessed; a guess only decides whether that choice needed a step of
its own. So what is generated, and its distribution under sampling, are what they would be without.
"""

from __future__ import annotations

import logging
import math
from array import array
from typing import TYPE_CHECKING

from cllm.engine.config import SPARE_ROWS

if TYPE_CHECKING:
    from cllm.engine.sequence import Sequence
    from cllm.engine.speculation.drafting import Drafting

_log = logging.getLogger("cllm.engine")

_GRAM = 3  # tokens that must be the same; two are too often followed by something else
_TOKEN_BITS = 21  # a token's number in a key
_PROBE = 32  # steps without a guess after which one is tried again
_PROBE_TOKENS = 2
_PLAIN = 32  # steps with guesses after which one is left plain: what it takes is known anew
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


class Speculation:
    """Decides how far each sequence guesses ahead in the next step. Engine thread only."""

    __slots__ = ("_drafting", "_extra_s", "_guessing", "_most", "_same")

    def __init__(self, most: int, same: bool, drafting: Drafting | None = None) -> None:
        """most: tokens that one sequence guesses. same: whether sequences are evaluated together
        only with equally many tokens, as in a cache that is split by sequence. drafting: who
        guesses where the text itself says nothing; None: nobody.
        """
        self._most = most
        self._same = same
        self._drafting = drafting
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
        if self._extra_s is None:
            self._extra_s = step_s / (count + 1) / 4
        price = self._extra_s * count / step_s
        room = min(room, SPARE_ROWS) // count
        mosts = [min(self._most, room, s.max_length - len(s.tokens) - 1) for s in sequences]
        all_or_none = self._same and count > 1
        guesses = []
        for sequence, most in zip(sequences, mosts, strict=True):
            guesser = sequence.guesser
            guesses.append(guesser.guess(sequence.tokens, most, price) if guesser else [])
            if all_or_none and not guesses[-1] and self._drafting is None:
                return
        if self._drafting is not None:
            self._improve(self._drafting, sequences, guesses, mosts, price, step_s)
            if all_or_none and not all(guesses):
                return
        self._guessing = self._guessing + 1 if any(guesses) else 0
        shortest = min(map(len, guesses)) if self._same else self._most
        for sequence, guessed in zip(sequences, guesses, strict=True):
            sequence.suppose(guessed[:shortest])

    def _improve(
        self,
        drafting: Drafting,
        sequences: list[Sequence],
        guesses: list[list[int]],
        mosts: list[int],
        price: float,
        step_s: float,
    ) -> None:
        """Have the draft model guess; it is used no more if it fails, and no request notices."""
        try:
            drafting.improve(sequences, guesses, mosts, price, step_s)
        except Exception:
            _log.exception("the draft model failed and is now off")
            drafting.give_up()
            self._drafting = None

    def observe(self, guessed: int, seconds: float, step_s: float) -> None:
        """Learn from a step with guesses what they cost; one delay changes little."""
        before = 0.0 if self._extra_s is None else self._extra_s
        most = max(2 * before, step_s / 16)
        extra_s = min(max(0.0, seconds - step_s) / guessed, most)
        self._extra_s = before * _MEMORY + extra_s * (1 - _MEMORY)
