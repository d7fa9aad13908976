"""What mirostat and typical_p keep of a row: they need the probabilities of the whole vocabulary.

llama.cpp sorts the records of the whole row for them and adds up 32-bit numbers. numpy finds the
same tokens in a fraction of the time, except where rounding might put one on the other side of a
limit: then the answer is None, and llama.cpp gets the whole row.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama import FloatArray

Ids = NDArray[np.intp]

_HALF_ULP = 2.0**-24  # of a 32-bit sum, at most, relative to it
_MARGIN = 1e-5  # for what is not the sum: exponentials, logarithms, mirostat's state
_ROUNDING = 2e-5  # of a sum of 150 000 numbers in 32 bits; several times what is usual
_NOTHING = 80.0  # nats; exp(-80) adds nothing to a sum
_NEAR, _MANY = 8.0, 2**14  # nats, tokens: a row with so many so near the greatest is flat
_TIE = 4e-6  # between two scores of some nats that llama.cpp may round to the same
# llama.cpp adds up weights in falling order from 1. One below this does not change the sum, and
# neither do those after it.
_LOST = 17.0  # nats, exp(-17) < 2**-24
_LOST_BITS = 24.0


def unsurprising(row: FloatArray, temperature: float, mu: float) -> Ids | None:
    """The tokens with a surprise of at most `mu` bits (mirostat 2); the best, if there are none.

    If llama.cpp gets these alone, it cuts none of them and draws as from the whole row.
    """
    best = row.max()
    weights = np.exp((row - best) / np.float32(temperature))
    total = float(weights.sum(dtype=np.float64))
    if total != total:
        return np.empty(0, dtype=np.intp)
    depth = mu * math.log(2) - math.log(total)
    slack = _error(weights, total) + _MARGIN
    outer: Ids = (row >= best - (depth + slack) * temperature).nonzero()[0]
    inner = row[outer] >= best - (depth - slack) * temperature
    if not inner.all():
        return relevant(row, temperature) if mu < _LOST_BITS else None
    return outer if len(outer) else np.array([row.argmax()])


def relevant(row: FloatArray, temperature: float) -> Ids:
    """The tokens that change llama.cpp's sum of all weights."""
    found: Ids = (row >= row.max() - _LOST * temperature).nonzero()[0]
    return found


def first_mirostat(row: FloatArray, temperature: float, mu: float, estimate: int) -> Ids | None:
    """Tokens of which mirostat 1 keeps some, for the same reason as of the whole row.

    estimate: how many of the greatest logits show the shape of the distribution.
    """
    found = relevant(row, temperature)
    if len(found) <= estimate:
        return None
    scaled = np.sort(row[found])[: -estimate - 1 : -1].astype(np.float64) / temperature
    steps = np.log(np.arange(2, estimate + 1) / np.arange(1, estimate))
    slope = float((steps * -np.diff(scaled)).sum() / (steps * steps).sum())
    excess = slope - 1
    with np.errstate(all="ignore"):
        share = 1 - np.float64(len(row)) ** -excess
        kept = (excess * np.float64(2) ** mu / share) ** (1 / slope)
    return found if 1.02 * kept + 2 < len(found) else None  # not where it is not a number


def typical(row: FloatArray, typical_p: float) -> tuple[Ids, Ids] | None:
    """What typical_p keeps, in llama.cpp's order: the surprise nearest to the mean one first.

    Then those of them that llama.cpp may have in another order.
    """
    below = row - row.max()
    if np.count_nonzero(below > -_NEAR) > _MANY:  # there are ties among so many
        return None
    # llama.cpp's sums, in its order and precision. What is left out does not change them.
    falling = np.sort(below)[::-1]
    weights = np.exp(falling[: np.count_nonzero(falling > -_NOTHING)])
    if not len(weights):  # the greatest is not a number
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    total = np.cumsum(weights)[-1]
    chances = weights / total
    entropy = float(np.cumsum(-chances * np.log(chances))[-1])
    error = _ROUNDING * (1 + entropy)
    away = (math.log(total) - entropy) - below
    scores = np.abs(away)
    width, count = 1.0, 0
    while True:
        ids: Ids = (scores <= width).nonzero()[0]
        ids = ids[np.argsort(scores[ids])]
        reached = np.cumsum(np.exp(below[ids]), dtype=np.float64) / float(total)
        count = int(np.searchsorted(reached, typical_p, side="right")) + 1
        if count < len(ids):
            break
        if width > _NOTHING:
            return None
        width *= 2
    # One more than is kept: it may change places with the last.
    order = away[ids[: count + 1]]
    least = np.where(np.diff(order < 0), 2 * error, _TIE)
    close = np.diff(np.abs(order)) < least
    ends = reached[max(0, count - 2) : count]
    if close[-1] or (np.abs(ends - typical_p) <= _ROUNDING).any():
        return None
    return ids[:count], ids[:count][close | np.concatenate(([False], close[:-1]))]


def _error(weights: FloatArray, total: float) -> float:
    """How far llama.cpp's 32-bit sum may be from the true one, relative to it."""
    return float(np.minimum(weights, np.float32(_HALF_ULP * total)).sum(dtype=np.float64)) / total
