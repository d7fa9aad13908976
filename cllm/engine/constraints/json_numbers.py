"""Numbers in JSON schemas: which llguidance reads exactly, and integers as expressions.

llguidance reads every number as a double, multiplies the digits by a power of ten with an error in
the last bit, and turns bounds of integers into 64-bit ones. So it enforces integers exactly up to
2^53 and most other numbers; json_exact.py moves the rest, json_writer.py writes them as grammars or
refuses them.
"""

from __future__ import annotations

import math
from decimal import Decimal

EXACT = 2**53
"""Integers up to here are all doubles."""

MAX_DIGITS = 100
"""Of an integer."""

_STEPS = 64  # one in nine numbers is not exact


def is_exact(number: float) -> bool:
    """Whether llguidance reads this number exactly."""
    if isinstance(number, int) or abs(number) > EXACT:  # a larger float would become an integer
        return isinstance(number, int) and abs(number) <= EXACT
    _, digits, exponent = Decimal(repr(number)).as_tuple()
    assert isinstance(exponent, int)
    # serde_json without its feature float_roundtrip
    read = float(int("".join(map(str, digits))))
    if exponent < -308:
        return False
    power = float(f"1e{abs(exponent)}")
    read = read * power if exponent >= 0 else read / power
    return read == abs(number)


def inward(bound: float, upper: bool) -> float | None:
    """The nearest number inside a bound for which is_exact, a few units of the last bit away.

    None: there is none near, as for numbers next to zero.
    """
    for _ in range(_STEPS):
        if is_exact(bound):
            return bound
        bound = math.nextafter(bound, -math.inf if upper else math.inf)
    return None


def apart(low: float, high: float) -> float:
    """A number a little above an exclusive bound `low`, and below `high`."""
    return max(low + min(1e-9, (high - low) / 1000), math.nextafter(low, math.inf))


def integers(low: int | None, high: int | None) -> str:
    """A regular expression for the integers from low to high, a non-empty closed range."""
    parts = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        parts.append("-" + _naturals(least, None if low is None else -low))
    if high is None or high >= 0:
        parts.append(_naturals(max(0, low or 0), high))
    return "(" + "|".join(parts) + ")"


def _naturals(low: int, high: int | None) -> str:
    first = str(low)
    if high is None:
        longer = f"[1-9][0-9]{{{len(first)},}}"
        return f"({_of_one_length(first, '9' * len(first))}|{longer})"
    last = str(high)
    if len(first) == len(last):
        return _of_one_length(first, last)
    parts = [_of_one_length(first, "9" * len(first))]
    if len(last) - len(first) > 1:
        parts.append(f"[1-9][0-9]{{{len(first)},{len(last) - 2}}}")
    parts.append(_of_one_length("1" + "0" * (len(last) - 1), last))
    return "(" + "|".join(parts) + ")"


def _of_one_length(first: str, last: str) -> str:
    if first == last:
        return first
    rest = len(first) - 1
    if first[0] == last[0]:
        return first[0] + _of_one_length(first[1:], last[1:])
    low, high = int(first[0]), int(last[0])
    parts = []
    if first[1:] != "0" * rest:
        parts.append(first[0] + _of_one_length(first[1:], "9" * rest))
        low += 1
    if last[1:] != "9" * rest:
        parts.append(last[0] + _of_one_length("0" * rest, last[1:]))
        high -= 1
    if low <= high:
        parts.append(f"[{low}-{high}]" + (f"[0-9]{{{rest}}}" if rest else ""))
    return "(" + "|".join(parts) + ")"
