"""The usual samplers in Python: top_k, top_p, min_p, temperature, and the draw.

llama.cpp's samplers take three times as long after llama_decode, when their code is not in the
processor's caches, as in a loop. For the few tokens near the best one Python is faster, where a
vocabulary is small enough to find them in one pass. It computes in 64 bits what llama.cpp computes
in 32. Where a limit is so near that rounding decides, or the chosen token has a twin with the same
logit, it does not answer, and llama.cpp chooses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np

from cllm.engine.llama import CANDIDATE, SamplerChain
from cllm.engine.sampling.params import SamplingParams

_ORDER = ("top_k", "top_p", "min_p", "temperature")
_SMALL = 2**13  # tokens of a vocabulary
_HUGE = 300.0  # logits whose exponentials are far from the limits of 64 bits
NEAR = 8.0
"""Nats below the best logit, from which on tokens are not near; the usual min_p drops more."""

_FAR = math.exp(-NEAR)
_LEAST_MIN_P = math.exp(1 - NEAR)
_FIRST = 128  # random numbers that are made at once

# In 32 bits a sum of n numbers has a relative error of at most n times this, any other result once.
_ROUNDING = 2.0**-24


class Drawer:
    """Chooses one request's tokens as a chain of llama.cpp's samplers with the same seed does."""

    __slots__ = ("_by_top_p", "_depth", "_temperature", "_top_k", "_top_p", "_uniforms", "drawn")

    @classmethod
    def of(cls, params: SamplingParams, seed: int, n_vocab: int) -> Drawer | None:
        """None: llama.cpp must choose. seed: folded."""
        if n_vocab > _SMALL:
            return None
        active = params.active
        usual = tuple(name for name in _ORDER if name in active) == active
        usual = usual and active[:1] == ("top_k",)
        # What min_p keeps must be near the best token.
        usual = usual and "min_p" in active and params.min_p > _LEAST_MIN_P
        usual = usual and params.min_keep < 2 and not params.mirostat
        # llama.cpp knows the probabilities after its own samplers.
        usual = usual and not (params.sampled_logprobs or params.dynamic_temperature)
        return cls(params, active, seed) if usual and _draws_as_llama_cpp() else None

    def __init__(self, params: SamplingParams, active: Sequence[str], seed: int) -> None:
        """active: of the parameters, which take a while to find them."""
        self._top_k = params.top_k
        self._top_p = float(np.float32(params.top_p))
        self._by_top_p = "top_p" in active and self._top_p < 1
        self._depth = math.log(np.float32(params.min_p))
        self._temperature = 1.0
        if "temperature" in active:
            self._temperature = float(np.float32(params.temperature))
        self._uniforms = Uniforms(seed)
        self.drawn = 0  # random numbers that llama.cpp would have used

    def draw(self, logits: Sequence[float]) -> int | None:
        """The position of the chosen token among the candidates; None: it is in doubt.

        The caller counts it in `drawn`. logits: those up to NEAR below the best.
        """
        if len(logits) == 1:  # as in most rows of a model that is sure
            return 0 if -_HUGE < logits[0] < _HUGE else None
        order = sorted(logits, reverse=True)
        if not order or not -_HUGE < (best := order[0]) < _HUGE:
            return None
        # top_p and min_p keep a part of the top_k, from the best on.
        floor = best + self._depth
        unsure = 4 * _ROUNDING * (abs(best) + 4)
        if order[1] < floor - unsure:
            return logits.index(best)
        kept = self._kept(order[: self._top_k], floor, unsure)
        at = self._among(order[:kept], self._uniforms.at(self.drawn)) if kept > 1 else kept - 1
        if at < 0:
            return None
        chosen = order[at]
        # Which of two tokens with the same logit comes first is a matter of how llama.cpp sorts.
        if (at and order[at - 1] == chosen) or order[at + 1 : at + 2] == [chosen]:
            return None
        return logits.index(chosen)

    def _kept(self, order: list[float], floor: float, unsure: float) -> int:
        """How many of falling logits top_p and min_p keep; 0: it is in doubt."""
        if not self._by_top_p:
            kept = sum(logit >= floor - unsure for logit in order)
            return 0 if kept > 1 and order[kept - 1] < floor + unsure else kept
        weights = list(map(math.exp, order))
        least = self._top_p * sum(weights)
        slack = least * _ROUNDING * (3 * self._top_k + 12)
        far = (self._top_k - len(order)) * weights[0] * _FAR  # what the others of the top_k may add
        most = least + slack + far
        least -= slack
        reached, last = 0.0, len(order)
        for kept, weight in enumerate(weights, start=1):
            if kept > 1 and order[kept - 1] < floor + unsure:
                return 0 if order[kept - 1] > floor - unsure else kept - 1
            reached += weight
            if reached >= least and kept < last:
                return kept if reached >= most else 0
        return last

    def _among(self, order: list[float], uniform: float) -> int:
        """The position of the one drawn from falling logits; -1: rounding decides."""
        temperature, best = self._temperature, order[0]
        weights = [math.exp((logit - best) / temperature) for logit in order]
        total = sum(weights)
        target = uniform * total
        slack = total * _ROUNDING * (6 * abs(best) / temperature + 3 * len(order) + 12)
        reached, last = 0.0, len(order) - 1
        for at, weight in enumerate(weights):
            reached += weight
            if reached >= target - slack or at == last:
                return at if at == last or reached >= target + slack else -1
        raise AssertionError


class Uniforms:
    """The numbers from 0 to 1 that llama.cpp's `dist` draws with a seed: std::mt19937's."""

    __slots__ = ("_begin", "_end", "_seed", "_words")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._begin, self._end = 0, 0
        self._words: list[int] = []  # those from `_begin` to `_end`
        self._make(_FIRST)

    def at(self, index: int) -> float:
        """One of them; the index never falls."""
        while index >= self._end:
            self._make(2 * self._end)
        return self._words[index - self._begin] / 2**64

    def _make(self, end: int) -> None:
        """Make them again from the seed on; faster than to keep 2.5 kB of a generator's state."""
        with _lock:
            _generator.seed(self._seed)
            words = np.frombuffer(_generator.bytes(8 * end), "<u8")
        self._words = words[self._end :].tolist()
        self._begin, self._end = self._end, end


_generator = np.random.RandomState(0)  # the C++ standard's mt19937, seeded as it says
_lock = Lock()


@lru_cache(maxsize=1)
def _draws_as_llama_cpp() -> bool:
    """Whether Uniforms are what llama.cpp draws here: C++ libraries may differ."""
    seed, count, draws = 20_000_003, 1024, 24
    uniforms = Uniforms(seed)
    chain = SamplerChain([("dist", (seed,))])
    records = np.zeros(count, dtype=CANDIDATE)  # with the same logit, so all are as probable
    records["id"] = np.arange(count)
    try:
        return all(
            chain.choose(records) == math.ceil(uniforms.at(index) * count) - 1
            for index in range(draws)
        )
    finally:
        chain.close()
