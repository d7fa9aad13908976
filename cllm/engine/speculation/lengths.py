"""How many tokens to draft: as many as make a step the fastest, by their chances and their cost.

Pure policy. Times are relative to a step without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

_ROUNDS = 4  # of the search; it seldom needs more than two
_FIRST = 6  # measurements that count for more
_FIRST_RATE, _FIRST_GROWTH = 0.5, 4.0
_RATE, _GROWTH = 0.1, 1.0  # weight of one, and its maximum error relative to what was expected
_SCALE = 1.0  # drafted tokens whose cost is about the fixed one


def best_lengths(
    chances: Sequence[Sequence[float]], fixed: float, each: float
) -> tuple[list[int], float]:
    """Tokens to draft for each sequence, and by what that multiplies the tokens per second.

    chances: of each drafted token, that it and those before it are accepted. fixed, each: what
    drafts, and a drafted token, add to a step. None where nothing is gained.

    A drafted token pays if its chance exceeds its cost in tokens, which the speed so far decides
    (Dinkelbach's method for the maximum of a ratio).
    """
    count, speed = len(chances), 1.0
    best = [0] * count
    for _ in range(_ROUNDS):
        price = each * count * speed
        lengths = [sum(chance > price for chance in own) for own in chances]
        if not any(lengths) or (reached := gained(chances, lengths, fixed, each)) <= speed:
            break
        best, speed = lengths, reached
    return best, speed


def gained(
    chances: Sequence[Sequence[float]], lengths: Sequence[int], fixed: float, each: float
) -> float:
    """By what drafts of these lengths multiply the tokens per second."""
    accepted = sum(sum(own[:n]) for own, n in zip(chances, lengths, strict=True))
    return (1 + accepted / len(chances)) / (1 + fixed + each * sum(lengths))


def lost(
    chances: Sequence[Sequence[float]], lengths: Sequence[int], fixed: float, each: float
) -> float:
    """The time that drafts of these lengths are expected to lose, in steps without drafts."""
    accepted = sum(sum(own[:n]) for own, n in zip(chances, lengths, strict=True))
    return fixed + each * sum(lengths) - accepted / len(chances)


class DraftCost:
    """The seconds that drafts add to a step: fixed ones, and some for each drafted token."""

    __slots__ = ("_each", "_fixed", "_measured")

    def __init__(self, fixed: float, each: float) -> None:
        """fixed, each: assumed until they are measured."""
        self._fixed = fixed
        self._each = each
        self._measured = 0

    @property
    def trusted(self) -> int:
        """Tokens whose cost is known well enough to draft that many of each sequence."""
        return 2 << min(self._measured, 5)

    def relative(self, step_s: float) -> tuple[float, float]:
        """Both parts, relative to a step without drafts."""
        return self._fixed / step_s, self._each / step_s

    def observe(self, drafted: int, extra_s: float) -> None:
        """Learn from a step (normalized least mean squares); one delay changes little."""
        early = self._measured < _FIRST
        rate, growth = (_FIRST_RATE, _FIRST_GROWTH) if early else (_RATE, _GROWTH)
        self._measured += 1
        expected = self._fixed + self._each * drafted
        error = max(-expected, min(extra_s - expected, expected * growth))
        share = rate * error / (1 + (drafted / _SCALE) ** 2)
        self._fixed = max(0.0, self._fixed + share)
        self._each = max(0.0, self._each + share * drafted / _SCALE**2)
