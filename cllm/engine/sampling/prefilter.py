"""Which tokens can survive a request's first sampler: a few hundred of a whole vocabulary.

Each numpy call on more than 500 values releases the interpreter lock, so rows that are filtered
alike are filtered together. After llama_decode no code is in the processor's caches, and the first
call of each function takes several times as long: so there are few different ones.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cllm.engine.llama import CANDIDATE, FloatArray
from cllm.engine.sampling.params import SamplingParams
from cllm.engine.sampling.survivors import first_mirostat, unsurprising

MIROSTAT_M = 100  # tokens from which mirostat 1 estimates the shape; llama.cpp's default

_MANY_NEAR = 64  # tokens of a row; to find the top_k is faster than to sort more
_GROUP = 64
_PARTS = 4  # of a group
_WIDE = 2**16  # logits; from here on it is faster to search only parts with great maxima
_LOWEST = np.finfo(np.float32).min
_NOTHING_BELOW = 104.0  # exp(-104) is 0 in float32


def candidates(
    row: FloatArray, params: SamplingParams, first: str, mu: float = math.nan
) -> NDArray[np.void]:
    """Return the tokens that the samplers, of which `first` is the first, can choose.

    They are CANDIDATE records; none if a logit that matters is not a number. mu: mirostat's state.
    """
    if params.mirostat:
        ids = _by_mirostat(row, params, mu)
    elif first == "top_k":
        ids = greatest(row, params.top_k)
    elif first == "top_p":
        ids = _nucleus(row, params.top_p)
    elif first == "min_p":  # with a margin for rounding: llama.cpp's min_p makes the cut
        ids = np.flatnonzero(row >= row.max() + math.log(params.min_p) - 1e-3)
    else:
        ids = np.arange(len(row))
    return records(row, ids)


def _by_mirostat(row: FloatArray, params: SamplingParams, mu: float) -> NDArray[np.intp]:
    temperature = params.temperature if "temperature" in params.active else 1.0
    if params.mirostat == 2:
        found = unsurprising(row, temperature, mu)
    else:
        found = first_mirostat(row, temperature, mu, MIROSTAT_M)
    return np.arange(len(row)) if found is None else found


def records(row: FloatArray, ids: NDArray[np.intp]) -> NDArray[np.void]:
    """CANDIDATE records of some tokens; none if a logit of theirs is not a number."""
    logits = row[ids]
    if not len(ids) or math.isnan(np.maximum.reduce(logits)):  # which a NaN passes through
        return np.empty(0, dtype=CANDIDATE)
    found = np.empty(len(ids), dtype=CANDIDATE)
    found["id"] = ids
    found["logit"] = logits
    return found


Near = tuple[list[int], list[float], int, FloatArray]
"""The tokens of a row near the best one. No logit is -infinity or not a number.

Their positions in the flat matrix of rows, their logits, the position of the row's first logit, and
that matrix. A plain tuple: to make eight objects of a class takes longer.
"""


Found = Near | NDArray[np.void] | int
"""What the filters below find in a row; an int is the position of its greatest logit."""


def row_of(near: Near) -> FloatArray:
    """The whole row."""
    _, _, first, rows = near
    row: FloatArray = rows[first // rows.shape[1]]
    return row


def candidates_together(rows: FloatArray, top_k: int) -> list[NDArray[np.void]]:
    """Return for each of several rows what candidates() returns for a first sampler top_k.

    rows: [count, n_vocab], contiguous.
    """
    if len(rows) == 1:
        return [records(rows[0], greatest(rows[0], top_k))]
    positions = _greatest(rows, top_k)
    if len(positions) == rows.size:  # all of them, with any that are not numbers
        return [records(row, np.arange(len(row))) for row in rows]
    count, width = rows.shape
    found = np.empty(len(positions), dtype=CANDIDATE)
    found["id"] = positions % width
    found["logit"] = rows.reshape(-1)[positions]
    ends = positions.searchsorted(_ends(count, width)).tolist()
    return [found[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@lru_cache(maxsize=64)
def _ends(count: int, width: int) -> NDArray[np.intp]:
    """Positions behind each row of a matrix that is read row by row."""
    return np.arange(1, count + 1) * width


def best_together(rows: FloatArray) -> list[int]:
    """Return the position of the greatest logit of each row; -1: one is not a number."""
    places: list[int] = rows.argmax(axis=1).tolist()  # of the first NaN, if there is one
    for at, place in enumerate(places):
        if math.isnan(rows.item(at, place)):
            places[at] = -1
    return places


def near_together(rows: FloatArray, depth: float) -> list[Near] | None:
    """Return for each of several rows the tokens near the best one: up to `depth` nats below.

    None: they are many. rows: [count, n_vocab], contiguous.
    """
    floors = np.maximum.reduce(rows, axis=1, initial=_LOWEST)
    values = floors.data  # to subtract in numpy takes three times as long
    for at, best in enumerate(floors.tolist()):
        values[at] = best - depth
    positions = _positions((rows >= floors[:, None]).ravel())
    if len(positions) > _MANY_NEAR * len(rows):
        return None
    places, logits, begin = positions.tolist(), rows.reshape(-1)[positions].tolist(), 0
    width, found = rows.shape[1], []
    for first in range(0, rows.size, width):
        end = bisect_left(places, first + width, begin)
        found.append((places[begin:end], logits[begin:end], first, rows))
        begin = end
    return found


def greatest(row: FloatArray, top_k: int) -> NDArray[np.intp]:
    """Return all tokens that can be among the top_k, and usually few more, in rising order."""
    return _greatest(row[None], top_k)


def _greatest(rows: FloatArray, top_k: int) -> NDArray[np.intp]:
    """Positions in rows.ravel() of what can be among the top_k of each row, in rising order.

    The top_k-th greatest of the maxima of disjoint groups of logits cannot be greater than the
    top_k-th greatest logit, so no logit below it counts. Only parts of groups with a great maximum
    are read again.
    """
    count, width = rows.shape
    groups = width // _GROUP
    if top_k > groups:
        return np.arange(rows.size)
    grid = rows[:, : groups * _GROUP].reshape(count, _GROUP // _PARTS, groups * _PARTS)
    if rows.size < _WIDE:
        # More groups leave fewer candidates, but take longer to partition. The lowest logit is the
        # floor where a constraint has left fewer than top_k: all that it has left count.
        maxima = np.maximum.reduce(grid, axis=1, initial=_LOWEST)
        cut = maxima.shape[1] - top_k
        maxima.partition(cut, axis=1)
        return _positions((rows >= maxima[:, cut, None]).ravel())
    maxima = grid.max(axis=1)
    greats = maxima.reshape(count, _PARTS, groups).max(axis=1)
    cut = greats.shape[1] - top_k
    floors = np.partition(greats, cut, axis=1)[:, cut, None]
    # Where a constraint has left fewer than top_k, those that it has left.
    floors = np.maximum(floors, _LOWEST)
    parts = _positions(~(maxima < floors).ravel())  # also those with a NaN
    if len(parts) > maxima.size // 4:  # many ties
        return _positions((rows >= floors).ravel())
    at, columns = np.divmod(parts, groups * _PARTS)
    values = grid[at, :, columns]
    here, lines = np.divmod(_positions((values >= floors[at]).ravel()), values.shape[1])
    found = at[here] * width + lines * (groups * _PARTS) + columns[here]
    at, tail = (rows[:, groups * _GROUP :] >= floors).nonzero()
    positions: NDArray[np.intp] = np.concatenate((found, at * width + (groups * _GROUP + tail)))
    positions.sort()
    return positions


def _positions(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """np.flatnonzero of a flat array, with less overhead; much faster than nonzero of a matrix."""
    positions: NDArray[np.intp] = flags.nonzero()[0]
    return positions


def _nucleus(row: FloatArray, top_p: float) -> NDArray[np.intp]:
    """The most probable tokens that together have the probability top_p, as llama.cpp's top_p.

    llama.cpp sorts more of a whole vocabulary than needed: 8 ms for 151 936 flat logits.
    """
    best = row.max()
    weights = np.exp(row - best)
    enough = top_p * float(weights.sum(dtype=np.float64))
    depth = 4.0
    while True:
        ids = np.flatnonzero(row >= best - depth)
        if depth > _NOTHING_BELOW or weights[ids].sum(dtype=np.float64) >= enough:
            break
        depth *= 2
    ids = ids[np.argsort(-weights[ids])]
    reached = np.cumsum(weights[ids], dtype=np.float64)
    return ids[: int(np.searchsorted(reached, enough)) + 1]
