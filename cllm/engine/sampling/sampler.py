"""Logits -> tokens, by one request's sampling parameters.

Bias and penalties change a few dozen logits, so they are written into llama.cpp's row in place.
llama.cpp's samplers then get mostly a few hundred candidates instead of a whole vocabulary
(151 936 candidates cost 0.4 ms per token).
"""

from __future__ import annotations

import math
import secrets
from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cllm.engine.errors import EngineError
from cllm.engine.llama import (
    FloatArray,
    IntArray,
    Link,
    SamplerChain,
    Vocab,
    dry_link,
)
from cllm.engine.sampling.params import MAX_LAST_N, SamplingParams

_GROUP = 64
_SMALL_GROUP = 16  # of a small vocabulary: more groups leave fewer candidates
_WIDE = 2**16  # logits; from here on it is faster to search only groups with large maxima
_NOTHING_BELOW = 104.0  # exp(-104) is 0 in float32
_NAN = "the model's output is not a number (NaN)"
_RANDOM_SEED = 0xFFFFFFFF  # llama.h: LLAMA_DEFAULT_SEED, "choose one"


class TokenSampler:
    """Chooses one request's tokens. Its only state is random numbers and the tokens shown to it.

    The same seed and logits give the same tokens, regardless of the rest of the batch.
    """

    __slots__ = (
        "_accepted", "_bias", "_biased", "_chain", "_chosen", "_first", "_looks_back", "_params",
    )  # fmt: skip

    def __init__(self, params: SamplingParams, vocab: Vocab) -> None:
        self._params = params
        bias = dict(params.logit_bias)
        if params.ignore_eos:
            bias.update(dict.fromkeys(vocab.eog_tokens().tolist(), -np.inf))
        self._biased: IntArray = np.array(list(bias.keys()), dtype=np.int32)
        self._bias: FloatArray = np.array(list(bias.values()), dtype=np.float32)
        active = params.active
        # min_keep may keep more than candidates() would.
        self._first = next(iter(active), "") if params.min_keep < 2 else ""
        self._looks_back = not {"dry", "adaptive_p"}.isdisjoint(active)
        self._chosen = -1  # the newest token, where it was the only candidate
        self._accepted = 0  # tokens shown to the sampler chain
        self._chain = None if params.greedy else SamplerChain(_links(params, vocab))

    def choose(self, row: FloatArray, tokens: array[int]) -> int:
        """Choose the token that follows `tokens`; overwrites `row`, its logits [n_vocab].

        Raises EngineError if a logit is not a number.
        """
        if len(self._biased):
            row[self._biased] += self._bias
        if self._params.penalized:
            _penalize(row, tokens, self._params)
        if self._chain is None:
            self._chosen = token = int(row.argmax())
            if row[token] != row[token]:
                raise EngineError(_NAN)
        else:
            if self._looks_back:
                start = max(self._accepted, len(tokens) - MAX_LAST_N)
                self._chain.accept(tokens[start:])
                self._accepted = len(tokens)
            token = self._chain.choose(*candidates(row, self._params, self._first))
        return token

    def chances(self, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
        """Of the newest choice: log-probability of `token`, and of the `count` most probable.

        The probabilities are those that the samplers left; tokens without a chance are omitted.
        """
        left = [(self._chosen, 1.0)] if self._chain is None else self._chain.candidates()
        found = sorted(((p, each) for each, p in left if p > 0.0), key=lambda pair: -pair[0])
        own = next((p for p, each in found if each == token), 0.0)
        top = tuple((each, math.log(p)) for p, each in found[:count])
        return (math.log(own) if own else -math.inf), top

    def close(self) -> None:
        """Free the samplers."""
        if self._chain is not None:
            self._chain.close()


def _links(params: SamplingParams, vocab: Vocab) -> Iterator[Link]:
    """llama.cpp's samplers for these parameters (common_sampler_init in common/sampling.cpp)."""
    seed, active = folded_seed(params.seed), params.active
    keep = max(1, params.min_keep)
    for name in active:
        value = getattr(params, name, None)
        if name == "dry":
            numbers = (params.dry_multiplier, params.dry_base, params.dry_allowed_length)
            last_n = MAX_LAST_N if params.dry_penalty_last_n < 0 else params.dry_penalty_last_n
            yield dry_link(vocab, *numbers, last_n, breakers=params.dry_sequence_breakers)
        elif name == "xtc":
            yield "xtc", (params.xtc_probability, params.xtc_threshold, keep, seed)
        elif name == "infill":
            yield "infill", (vocab.handle,)
        elif name == "adaptive_p":
            pass  # chooses, so it is the last
        elif name == "temperature" and params.dynamic_temperature:
            yield "temp_ext", (value, params.dynatemp_range, params.dynatemp_exponent)
        elif name == "temperature":
            yield "temp", (value,)
        elif name in ("top_k", "top_n_sigma"):
            yield name, (value,)
        elif name != "top_p" or active[0] != "top_p" or keep > 1:  # else candidates() applied it
            yield name.replace("typical_p", "typical"), (value, keep)
    if params.mirostat == 1:
        yield "mirostat", (vocab.n_tokens, seed, params.mirostat_tau, params.mirostat_eta, 100)
    elif params.mirostat == 2:
        yield "mirostat_v2", (seed, params.mirostat_tau, params.mirostat_eta)
    elif "adaptive_p" in active:
        yield "adaptive_p", (params.adaptive_target, params.adaptive_decay, seed)
    else:
        yield "dist", (seed,)


def candidates(
    row: FloatArray, params: SamplingParams, first: str
) -> tuple[NDArray[np.intp], FloatArray]:
    """Return the tokens that the samplers, of which `first` is the first, can choose.

    With their logits. Raises EngineError if a logit that matters is not a number.
    """
    if first == "top_k":
        ids = greatest(row, params.top_k)
    elif first == "top_p":
        ids = _nucleus(row, params.top_p)
    elif first == "min_p":  # with a margin for rounding: llama.cpp's min_p makes the cut
        ids = np.flatnonzero(row >= row.max() + math.log(params.min_p) - 1e-3)
    else:
        ids = np.arange(len(row))
    logits = row[ids]
    if not len(ids) or math.isnan(np.maximum.reduce(logits)):  # which a NaN passes through
        raise EngineError(_NAN)
    return ids, logits


def greatest(row: FloatArray, top_k: int) -> NDArray[np.intp]:
    """Return all tokens that can be among the top_k, and usually few more.

    The top_k-th greatest of the maxima of disjoint groups of logits cannot be greater than the
    top_k-th greatest logit, so no logit below it counts.
    """
    wide = len(row) >= _WIDE
    size = _GROUP if wide else _SMALL_GROUP
    groups = len(row) // size
    if top_k > groups:
        return np.arange(len(row))
    grid = row[: groups * size].reshape(size, groups)
    maxima = np.maximum.reduce(grid, axis=0)
    least = np.partition(maxima, groups - top_k)
    floor = least[groups - top_k]
    if floor == -np.inf and np.maximum.reduce(maxima) > floor:
        return _positions(row > floor)  # a constraint has left fewer than top_k
    if wide:
        columns = _positions(~(maxima < floor))  # also groups with a NaN
        if len(columns) <= groups // 4:
            found = _positions((grid.take(columns, axis=1) >= floor).ravel())
            lines, at = np.divmod(found, len(columns))
            rest = _positions(row[groups * size :] >= floor) + groups * size
            return np.concatenate((lines * groups + columns[at], rest))
    return _positions(row >= floor)


def _positions(flags: NDArray[np.bool_]) -> NDArray[np.intp]:
    """np.flatnonzero of a flat array, with less overhead."""
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


def folded_seed(seed: int | None) -> int:
    """Fold a 64-bit seed into llama.cpp's 32 bits, one value of which means "random"."""
    if seed is None:
        return secrets.randbelow(_RANDOM_SEED)
    seed &= 2**64 - 1
    return min((seed >> 32) ^ (seed & 0xFFFFFFFF), _RANDOM_SEED - 1)


def _penalize(row: FloatArray, tokens: array[int], params: SamplingParams) -> None:
    """llama_sampler_init_penalties (llama-sampler.cpp), over the last tokens of the text."""
    last_n = MAX_LAST_N if params.penalty_last_n < 0 else params.penalty_last_n
    recent = np.array(tokens[-last_n:] if last_n else (), dtype=np.int32)
    seen, counts = np.unique(recent, return_counts=True)
    logits = row[seen]
    repetition = params.repetition_penalty
    logits = np.where(logits <= 0, logits * repetition, logits / repetition)
    row[seen] = logits - counts * params.frequency_penalty - params.presence_penalty
