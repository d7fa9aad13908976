"""One sequence's drafts from its own text, and the chance that each drafted token is accepted.

Pure policy. Prompt lookup (Saxena 2023) predicts the tokens that followed the same last tokens
earlier in the prompt or the answer. A draft never changes a text, so a prediction need not be
evaluated to learn whether it is right: the next tokens of the text say so. The longer the run of
right predictions, the likelier is the next one.
"""

from __future__ import annotations

from array import array

import numpy as np

from cllm.engine.speculation.chance import Chance

_GRAM = 3  # tokens that must match; after two the text too often continues differently
_SLICE = (
    1024  # tokens that one call adds to a table: 0.1 ms, of a prompt of 32 000 it would be 7 ms
)
_FEW = 32  # tokens for which a loop is faster than numpy
_TOKEN_BITS = 21  # of a token in a key
_KEY_MASK = (1 << _GRAM * _TOKEN_BITS) - 1
_USUAL = (0.8, 0.85, 0.85, 0.9, 0.9, 0.97, 0.72, 0.75, 0.7, 0.8, 0.8, 0.97)
"""Share of right predictions after a run of 0, 1, 2 to 3, 4 to 7, 8 to 15 and more right ones: of
those from the prompt, then of those from the answer. Measured with a small model on real text."""
_START = 0.2  # tokens that a sequence's drafts may lose at first
_ALLOWED = 0.005  # and for each token that is generated
_MOST = 4.0  # tokens of what they have gained that they may lose later
_SURE = 4  # right predictions after which they are evaluated although they have lost too much
_COPIES, _FIRST = 4, 3  # a text without a run of so many drafts only so many tokens
_RUNS = len(_USUAL) // 2  # kinds of runs
_USUAL_TRIES = 12.0  # that what was known before counts for
_SHARED_MEMORY = 0.98  # weight of the past at each observation, of all sequences together
_OWN_MEMORY = 0.97
_PRIOR_RATE, _PRIOR_TRIES = 0.8, 3.0  # of a draft model, which was chosen to agree


class CopyRates:
    """The share of right predictions of each kind; the latest count most."""

    __slots__ = ("_before", "_hits", "_memory", "_tries")

    def __init__(self, before: CopyRates | None = None) -> None:
        """before: the rates of all sequences, which those of this one begin with and add to."""
        self._before = before
        self._memory = _SHARED_MEMORY if before is None else _OWN_MEMORY
        self._hits = [0.0] * len(_USUAL)
        self._tries = [0.0] * len(_USUAL)

    def values(self) -> list[float]:
        """The probability that the next prediction is right, for each kind."""
        usual = _USUAL if self._before is None else self._before.values()
        return [
            (_USUAL_TRIES * share + hits) / (_USUAL_TRIES + tries)
            for share, hits, tries in zip(usual, self._hits, self._tries, strict=True)
        ]

    def observe(self, kind: int, right: bool) -> None:
        """Learn whether a prediction was right."""
        self._hits[kind] = self._hits[kind] * self._memory + right
        self._tries[kind] = self._tries[kind] * self._memory + 1
        if self._before is not None:
            self._before.observe(kind, right)


class PromptLookup:
    """Every run of three tokens in a sequence, and the position of what last followed it.

    run: how many of the latest predictions were right, one after the other. longest: the longest
    run so far.
    """

    __slots__ = ("_follower", "_key", "_next", "_prompt", "_read", "_seen", "longest", "run")

    def __init__(self) -> None:
        self._follower: dict[int, int] = {}
        self._read = _GRAM  # tokens before this one are in the table as followers
        self._key = 0  # of the last three tokens, once follow() was called
        self._seen: int | None = None  # tokens that were there at the last call
        self._prompt = 0  # tokens of the prompt
        self._next = 0  # position of the token that is predicted to come; 0: none is
        self.run = self.longest = 0

    def follow(self, tokens: array[int], rates: CopyRates) -> bool:
        """Compare new tokens with the predictions; return whether there is one now.

        The table of a long prompt is filled over several calls, the beginning first.
        """
        length, seen = len(tokens), self._seen
        if seen is None:
            seen = self._prompt = length
            self._key = _key(tokens, length)
        if self._read < seen:
            self._fill(tokens, min(seen, self._read + _SLICE))
        follower, key = self._follower, self._key
        for position in range(seen, length):
            token, right = tokens[position], False
            if self._next:
                right = tokens[self._next] == token
                rates.observe(self.kind(0), right)
            if self._read == position:
                follower[key] = position
                self._read += 1
            key = (key << _TOKEN_BITS | token) & _KEY_MASK
            if right:
                self.run += 1
                self.longest = max(self.longest, self.run)
                self._next += 1
            else:
                self.run, self._next = 0, follower.get(key, 0)
        self._seen, self._key = length, key
        if not self._next:  # a slice of the prompt may have it
            self._next = follower.get(key, 0)
        return self._next > 0

    def kind(self, ahead: int) -> int:
        """The kind of a prediction, the one that is that many tokens after the next."""
        run = min((self.run + ahead).bit_length(), _RUNS - 1)
        return run if self._next + ahead < self._prompt else run + _RUNS

    def draft(self, tokens: array[int], limit: int) -> list[int]:
        """The next `limit` tokens, after follow() has found a prediction."""
        start, length = self._next, len(tokens)
        draft = tokens[start : start + limit].tolist()
        while len(draft) < limit:  # a text that repeats itself is expected to go on repeating
            draft.append(draft[len(draft) - (length - start)])
        return draft

    def _fill(self, tokens: array[int], end: int) -> None:
        follower, begin = self._follower, self._read
        if end - begin < _FEW:
            for position in range(begin, end):
                follower[_key(tokens, position)] = position
        else:
            grams = np.array(tokens[begin - _GRAM : end - 1], dtype=np.int64)
            keys = (grams[:-2] << 2 * _TOKEN_BITS) | (grams[1:-1] << _TOKEN_BITS) | grams[2:]
            follower.update(zip(keys.tolist(), range(begin, end), strict=True))
        self._read = end


def _key(tokens: array[int], end: int) -> int:
    """The last three tokens before `end` as one number; fewer at the beginning of a text."""
    key = 0
    for token in tokens[max(0, end - _GRAM) : end]:
        key = key << _TOKEN_BITS | token
    return key


class AcceptanceRate:
    """The share of a draft model's tokens that are accepted; the latest count most."""

    __slots__ = ("_accepted", "_memory", "_shared", "_tries")

    def __init__(self, memory: float = 0.8, shared: AcceptanceRate | None = None) -> None:
        """memory: weight of the past at each observation. shared: the rate of all sequences, which
        is the prior of this one and learns too.
        """
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


class Drafter:
    """One sequence's drafts from its text.

    What they gain and cost is counted in tokens. Where they have lost more than 0.5 % of the
    text they are not evaluated again before a long run of predictions was right.

    model_rate: the acceptance rate of the draft model, once that was considered. from_model:
    whether the last draft is the draft model's. chance: decides which tokens are accepted, in place
    of the model's own choice.
    """

    __slots__ = (
        "_balance", "_cost", "_lookup", "_rates", "_seen", "chance", "from_model", "model_rate",
    )  # fmt: skip

    def __init__(self, chance: Chance | None = None) -> None:
        self.chance = chance
        self._balance = _START
        self._cost = 0.0  # of the draft that is being evaluated
        self._seen: int | None = None  # tokens that the balance counts
        self._lookup = PromptLookup()
        self._rates: CopyRates | None = None
        self.model_rate: AcceptanceRate | None = None
        self.from_model = False

    def chances(
        self, tokens: array[int], limit: int, least: float, before: CopyRates
    ) -> list[float]:
        """Of each token that can be drafted, the chance that it and those before are accepted.

        Up to `limit`, and while the chance exceeds `least`. before: the rates of all sequences.
        """
        self.from_model, self._cost = False, 0.0
        if not self.follow(tokens, before):
            return []
        rates = self._rates
        assert rates is not None
        if self._balance <= 0 and self._lookup.run < _SURE:
            return []
        if self._lookup.longest < _COPIES:
            limit = min(limit, _FIRST)
        found, chance, values = list[float](), 1.0, rates.values()
        for ahead in range(limit):
            chance *= values[self._lookup.kind(ahead)]
            if chance <= least:
                break
            found.append(chance)
        return found

    def follow(self, tokens: array[int], before: CopyRates) -> bool:
        """Read new tokens; whether there is a prediction. before: the rates of all sequences."""
        rates = self._rates
        if rates is None:
            rates = self._rates = CopyRates(before)
        length = len(tokens)
        grown = 0 if self._seen is None else length - self._seen
        self._balance = min(self._balance + _ALLOWED * grown, _MOST)
        self._seen = length
        return self._lookup.follow(tokens, rates)

    def draft(self, tokens: array[int], limit: int, cost: float) -> list[int]:
        """The next `limit` tokens; chances() must have found some.

        cost: of their evaluation, in generated tokens.
        """
        self._cost = cost
        return self._lookup.draft(tokens, limit)

    def observe(self, drafted: int, accepted: int) -> None:
        """Learn how many of a draft were accepted."""
        if not self.from_model:
            self._balance += accepted - self._cost
        elif self.model_rate is not None:
            self.model_rate.observe(drafted, accepted)
