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
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cllm.engine.errors import EngineError
from cllm.engine.llama import FloatArray, IntArray, Link, SamplerChain, Vocab, dry_link
from cllm.engine.sampling.drawing import NEAR, Drawer
from cllm.engine.sampling.params import MAX_LAST_N, SamplingParams
from cllm.engine.sampling.prefilter import (
    MIROSTAT_M,
    Found,
    Near,
    best_together,
    candidates,
    near_together,
    records,
    row_of,
)
from cllm.engine.sampling.survivors import typical

_NAN = "the model's output is not a number (NaN)"
_FEW = 16  # biases
GREEDY = 2**62
"""The filter of a sampler that needs only the greatest logit."""

_RANDOM_SEED = 0xFFFFFFFF  # llama.h: LLAMA_DEFAULT_SEED, "choose one"


class TokenSampler:
    """Chooses one request's tokens. Its only state is random numbers and the tokens shown to it.

    The same seed and logits give the same tokens, regardless of the rest of the batch.
    filter: the top_k of a first sampler of that kind, else 0; negative: of its candidates,
        those near the best one are enough. GREEDY: the greatest logit is enough.
    """

    __slots__ = (
        "_accepted", "_bias", "_biased", "_chain", "_chosen", "_drawer", "_few", "_first",
        "_looks_back", "_make", "_mu", "_params", "_past", "_penalized", "_since", "_typical",
        "_used", "filter",
    )  # fmt: skip

    def __init__(self, params: SamplingParams, vocab: Vocab) -> None:
        self._params = params
        self._penalized = params.penalized
        bias = dict(params.logit_bias)
        if params.ignore_eos:
            bias.update(dict.fromkeys(vocab.eog_tokens().tolist(), -np.inf))
        self._biased: IntArray = np.array(list(bias.keys()), dtype=np.int32)
        self._bias: FloatArray = np.array(list(bias.values()), dtype=np.float32)
        # numpy takes as long for one token of an array of them as for 20 single ones.
        few = len(bias) <= _FEW
        self._few = list(zip(bias, self._bias, strict=True)) if few else None
        active = params.active
        # min_keep may keep more than candidates() would.
        self._first = next(iter(active), "") if params.min_keep < 2 else ""
        self._looks_back = not {"dry", "adaptive_p"}.isdisjoint(active)
        self._chosen = -1  # the newest token, where it was the only candidate
        self._accepted = 0  # tokens shown to the sampler chain
        self._past = array("i")  # what was before the last context shift
        self._since = 0  # the number of `tokens` that are in it
        seed = folded_seed(params.seed)
        self._drawer = None if params.greedy else Drawer.of(params, seed, vocab.n_tokens)
        # With a drawer, llama.cpp's chain is built when a choice is left to it.
        self._make = partial(_chain, params, vocab, seed)
        self._chain = None if params.greedy or self._drawer else self._make()
        self._used = 0  # random numbers, by that chain
        self._mu = 2 * params.mirostat_tau
        # llama.cpp's sampler, for rows whose survivors numpy cannot tell.
        self._typical: SamplerChain | None = None
        if self._chain is not None and self._first == "typical_p":
            self._typical = SamplerChain([("typical", (params.typical_p, 1))])
        if params.greedy:
            self.filter = GREEDY
        else:
            top_k = params.top_k if self._first == "top_k" else 0
            self.filter = -top_k if self._drawer else top_k

    def prepare(self, row: FloatArray, tokens: array[int]) -> None:
        """Write bias and penalties into a row of logits."""
        if self._few is None:
            row[self._biased] += self._bias
        else:
            for token, bias in self._few:
                row[token] += bias
        if self._penalized:
            _penalize(row, self._last(tokens, self._params.penalty_last_n), self._params)

    def choose(self, row: FloatArray, tokens: array[int]) -> int:
        """Choose the token that follows `tokens`; overwrites `row`, its logits [n_vocab].

        Raises EngineError if a logit is not a number.
        """
        self.prepare(row, tokens)
        return self.choose_prepared(row, tokens)

    def choose_prepared(self, row: FloatArray, tokens: array[int]) -> int:
        """What choose() does after prepare()."""
        if self._drawer is not None:
            near = near_together(row[None], NEAR)
            return self.choose_among(self._candidates(row) if near is None else near[0], tokens)
        if self._chain is None:
            return self.choose_among(best_together(row[None])[0], tokens)
        self._look_back(self._chain, tokens)
        if self._typical is not None:
            return self._choose_typical(row, self._chain, self._typical)
        token = self._by_chain(self._chain, self._candidates(row))
        if self._params.mirostat:
            self._follow_mirostat(self._chain.probability)
        return token

    def choose_among(self, found: Found, tokens: array[int]) -> int:
        """Choose the token that follows `tokens` from what the filter found in a prepared row.

        Only with a filter. Raises EngineError if a logit is not a number.
        """
        if isinstance(found, int):
            if found < 0:
                raise EngineError(_NAN)
            self._chosen = found
            return found
        if isinstance(found, tuple):
            token = self.draw(found)
            if token is not None:
                return token
            found = self._candidates(row_of(found))
        drawer = self._drawer
        if drawer is None:
            assert self._chain is not None
            self._look_back(self._chain, tokens)
        if self._chain is None:
            self._chain = self._make()
        if drawer is not None:
            if drawer.drawn > self._used:
                self._chain.skip(drawer.drawn - self._used)
            drawer.drawn += 1
            self._used = drawer.drawn
        return self._by_chain(self._chain, found)

    def draw(self, near: Near) -> int | None:
        """Choose without llama.cpp; None: it is in doubt, and nothing has changed."""
        drawer, (positions, logits, first, _) = self._drawer, near
        assert drawer is not None
        at = drawer.draw(logits)
        if at is None:
            return None
        drawer.drawn += 1
        return positions[at] - first

    def _candidates(self, row: FloatArray) -> NDArray[np.void]:
        return candidates(row, self._params, self._first, self._mu)

    def _look_back(self, chain: SamplerChain, tokens: array[int]) -> None:
        if self._looks_back:
            start = max(self._accepted, len(tokens) - MAX_LAST_N)
            chain.accept(tokens[start:])
            self._accepted = len(tokens)

    def _by_chain(self, chain: SamplerChain, found: NDArray[np.void]) -> int:
        if not len(found):
            raise EngineError(_NAN)
        return chain.choose(found)

    def _choose_typical(self, row: FloatArray, chain: SamplerChain, whole: SamplerChain) -> int:
        """Choose where typical_p is the first sampler. whole: llama.cpp's, for a whole row."""
        found = typical(row, self._params.typical_p)
        if found is not None:
            kept, unsure = found
            few = records(row, kept)
            if not len(few):
                raise EngineError(_NAN)
            before = chain.clone() if len(unsure) else None
            token = chain.choose(few)
            if before is None or token not in unsure:
                if before is not None:
                    before.close()
                return token
            chain.close()
            self._chain = chain = before
        everything = records(row, np.arange(len(row)))
        if not len(everything):
            raise EngineError(_NAN)
        return chain.choose(whole.narrow(everything))

    def _follow_mirostat(self, probability: float) -> None:
        """What llama.cpp's sampler does with its state after a choice."""
        params = self._params
        surprise = -math.log2(probability) if probability > 0 else math.nan
        self._mu -= params.mirostat_eta * (surprise - params.mirostat_tau)

    def note_shift(self, before: array[int], length: int) -> None:
        """Remember tokens that a context shift discards: penalties go on counting them.

        before: all tokens before the shift. length: their number after it.
        """
        self._past = self._last(before, -1)
        self._since = length
        self._accepted = max(0, self._accepted - (len(before) - length))

    def _last(self, tokens: array[int], last_n: int) -> array[int]:
        """The last tokens of the text; -1: as many as any penalty looks back on."""
        last_n = MAX_LAST_N if last_n < 0 else last_n
        start = max(self._since, len(tokens) - last_n)
        missing = last_n - (len(tokens) - start)
        past = self._past[-missing:] if missing > 0 else array("i")
        return past + tokens[start:] if past else tokens[start:]

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
        for chain in (self._chain, self._typical):
            if chain is not None:
                chain.close()


def _chain(params: SamplingParams, vocab: Vocab, seed: int) -> SamplerChain:
    return SamplerChain(_links(params, vocab, seed))


def _links(params: SamplingParams, vocab: Vocab, seed: int) -> Iterator[Link]:
    """llama.cpp's samplers for these parameters (common_sampler_init in common/sampling.cpp)."""
    active = params.active
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
        elif name not in ("top_p", "typical_p") or active[0] != name or keep > 1:
            # else candidates() or _choose_typical() applied it
            yield name.replace("typical_p", "typical"), (value, keep)
    if params.mirostat == 1:
        yield (
            "mirostat",
            (vocab.n_tokens, seed, params.mirostat_tau, params.mirostat_eta, MIROSTAT_M),
        )
    elif params.mirostat == 2:
        yield "mirostat_v2", (seed, params.mirostat_tau, params.mirostat_eta)
    elif "adaptive_p" in active:
        yield "adaptive_p", (params.adaptive_target, params.adaptive_decay, seed)
    else:
        yield "dist", (seed,)


def folded_seed(seed: int | None) -> int:
    """Fold a 64-bit seed into llama.cpp's 32 bits, one value of which means "random"."""
    if seed is None:
        return secrets.randbelow(_RANDOM_SEED)
    seed &= 2**64 - 1
    return min((seed >> 32) ^ (seed & 0xFFFFFFFF), _RANDOM_SEED - 1)


def _penalize(row: FloatArray, tokens: array[int], params: SamplingParams) -> None:
    """llama_sampler_init_penalties (llama-sampler.cpp), over these tokens."""
    recent = np.array(tokens, dtype=np.int32)
    seen, counts = np.unique(recent, return_counts=True)
    logits = row[seen]
    repetition = params.repetition_penalty
    logits = np.where(logits <= 0, logits * repetition, logits / repetition)
    row[seen] = logits - counts * params.frequency_penalty - params.presence_penalty
