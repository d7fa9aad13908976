"""The sampling parameters of one request and their ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from cllm.engine.constraints.constraint import Constraint
from cllm.engine.errors import InvalidRequest

MAX_STOPS = 32
MAX_LOGPROBS = 20
MAX_NAMED_LOGPROBS = 128
MAX_STOP_CHARS = 1024

SAMPLERS = (
    "penalties", "dry", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc", "temperature",
)  # fmt: skip
"""The samplers that are applied by default, in this order; llama-server's names and order."""

ON_REQUEST = ("infill", "adaptive_p")
"""Samplers that are applied only where a request names them; adaptive_p at the end, wherever."""

MAX_LAST_N = 2**15
"""Tokens that a penalty can look back on."""

GREEDY_BELOW = 1e-4
"""Temperatures below this count as 0: dividing float32 logits by less could overflow."""

_MAY_DROP_THE_BEST = {"dry", "typical_p", "xtc", "infill", "adaptive_p"}

_NO_BIAS: Mapping[int, float] = MappingProxyType({})

# Field -> minimum, maximum, the text for a value outside.
_RANGES: Mapping[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "a number from 0 (greedy) to 100"),
    "top_p": (0.0, 1.0, "a number from 0 to 1 (1: off)"),
    "min_p": (0.0, 1.0, "a number from 0 to 1 (0: off)"),
    "repetition_penalty": (0.01, 100.0, "a number from 0.01 to 100 (1: off)"),
    "presence_penalty": (-100.0, 100.0, "a number from -100 to 100 (0: off)"),
    "frequency_penalty": (-100.0, 100.0, "a number from -100 to 100 (0: off)"),
    "typical_p": (0.0, 1.0, "a number from 0 to 1 (1: off)"),
    "top_n_sigma": (-1.0, 100.0, "a number from 0 to 100 (0 or -1: off)"),
    "xtc_probability": (0.0, 1.0, "a number from 0 to 1 (0: off)"),
    "xtc_threshold": (0.0, 1.0, "a number from 0 to 1"),
    "dry_multiplier": (0.0, 100.0, "a number from 0 to 100 (0: off)"),
    "dry_base": (1.0, 100.0, "a number from 1 to 100"),
    "dynatemp_range": (0.0, 100.0, "a number from 0 to 100 (0: off)"),
    "dynatemp_exponent": (0.0, 100.0, "a number from 0 to 100"),
    "mirostat_tau": (0.0, 100.0, "a number from 0 to 100"),
    "mirostat_eta": (0.0, 1.0, "a number from 0 to 1"),
    "adaptive_target": (-1e30, 1.0, "a number from 0 to 1 (negative: off)"),
    "adaptive_decay": (0.0, 0.99, "a number from 0 to 0.99"),
}
_INTEGERS: Mapping[str, tuple[int, int, str]] = {
    "top_k": (-1, 2**31 - 1, "an integer of at least 1 (0 or -1: all)"),
    "penalty_last_n": (-1, MAX_LAST_N, f"an integer from 0 to {MAX_LAST_N} (-1: as many)"),
    "dry_penalty_last_n": (-1, MAX_LAST_N, f"an integer from 0 to {MAX_LAST_N} (-1: as many)"),
    "dry_allowed_length": (0, MAX_LAST_N, f"an integer from 0 to {MAX_LAST_N}"),
    "mirostat": (0, 2, "0 (off), 1 or 2"),
    "min_keep": (0, 2**31 - 1, "an integer of at least 0"),
    "min_indent": (0, 2**31 - 1, "an integer of at least 0 (0: any)"),
    "n_keep": (-1, 2**31 - 1, "an integer of at least 0 (-1: the whole prompt)"),
    "n_discard": (0, 2**31 - 1, "an integer of at least 0 (0: half of the rest)"),
}

_SWITCHES = (
    "ignore_eos", "record_tokens", "spell_special", "report_progress", "sampled_logprobs",
    "reproducible",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a generation ends.

    max_tokens: maximum number of new tokens; None: until the context is full; 0: the prompt is
        read into the cache and nothing follows.
    temperature: 0 always takes the most probable token (greedy).
    top_k: candidates kept; 0 or -1: all. top_p, min_p: llama.cpp's samplers of these names.
    repetition_penalty, presence_penalty, frequency_penalty: over the last penalty_last_n tokens,
        prompt included; applied first, at any position in `samplers`.
    typical_p, top_n_sigma, xtc_*, dry_*, dynatemp_*: llama.cpp's samplers of these names.
    mirostat: 1 or 2 replaces all samplers except penalties and temperature.
    adaptive_target, adaptive_decay: llama.cpp's adaptive-p sampler.
    min_keep: candidates that top_p, min_p, typical_p and xtc keep at least.
    samplers: those of SAMPLERS and ON_REQUEST to apply, in this order.
    seed: any 64-bit integer; the same seed and logits give the same tokens. None: random.
    stop: strings that end the generation; its text contains no part of them. One or several.
    logit_bias: token -> addend of its logit, -100 to 100 or -infinity (never chosen).
    ignore_eos: never choose a token that ends the generation.
    logprobs: record each token with its log-probability and this number of alternatives.
    logprob_token_ids: tokens whose log-probabilities are recorded too, next to the alternatives.
    prompt_logprobs: record each token of the prompt in the same way; all of it is evaluated again.
    sampled_logprobs: those are of the distribution that the samplers leave, not of the model's.
    record_tokens: record each token, without log-probabilities.
    constraint: what the text must match; it ends when nothing may follow.
    spell_special: include control tokens in the text, except the one that ends it.
    line_limit: seconds from the first token after which the text ends once it has a line break.
    min_indent: the text ends before a line, other than its first, with less white space in front.
    n_keep, n_discard: of a context shift: tokens at the beginning that stay, the BOS not counted
        (-1: the whole prompt), and how many after them are discarded (0: half).
    reproducible: the same seed gives the same text, whatever else runs; slower.
    report_progress: report each part of the prompt once evaluated; see Generation.take_progress.

    Raises InvalidRequest, which names the field, its value and what was expected.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_last_n: int = 64
    typical_p: float = 1.0
    top_n_sigma: float = -1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    adaptive_target: float = -1.0
    adaptive_decay: float = 0.9
    min_keep: int = 0
    samplers: tuple[str, ...] = SAMPLERS
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    sampled_logprobs: bool = False
    record_tokens: bool = False
    constraint: Constraint | None = None
    spell_special: bool = False
    line_limit: float | None = None
    min_indent: int = 0
    n_keep: int = 0
    n_discard: int = 0
    report_progress: bool = False
    reproducible: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 0, 2**31 - 1, "an integer of at least 0")
        for name, (least, greatest, expected) in _RANGES.items():
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= greatest:
                raise InvalidRequest(name, value, expected)
        for name, (lowest, highest, expected) in _INTEGERS.items():
            _check_int(name, getattr(self, name), lowest, highest, expected)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**64 - 1, "a 64-bit integer")
        for name in ("logprobs", "prompt_logprobs"):
            if (count := getattr(self, name)) is not None:
                expected = f"an integer from 0 to {MAX_LOGPROBS}"
                _check_int(name, count, 0, MAX_LOGPROBS, expected)
        self._check_named()
        if self.constraint is not None and not isinstance(self.constraint, Constraint):
            raise InvalidRequest("constraint", self.constraint, "a Constraint")
        limit = self.line_limit
        if limit is not None and not (_is_number(limit) and limit > 0):
            raise InvalidRequest("line_limit", limit, "a number of seconds above 0")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequest(name, getattr(self, name), "true or false")
        breakers = _checked_texts("dry_sequence_breakers", self.dry_sequence_breakers)
        object.__setattr__(self, "dry_sequence_breakers", breakers)
        object.__setattr__(self, "samplers", _checked_samplers(self.samplers))
        object.__setattr__(self, "stop", _checked_texts("stop", self.stop))
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))

    def _check_named(self) -> None:
        name, named = "logprob_token_ids", self.logprob_token_ids
        if not isinstance(named, (tuple, list)) or len(named) > MAX_NAMED_LOGPROBS:
            raise InvalidRequest(name, named, f"up to {MAX_NAMED_LOGPROBS} tokens")
        if named and (self.logprobs is None or self.sampled_logprobs):
            own = "none without logprobs of the model's own distribution"
            raise InvalidRequest(name, list(named), own)
        for token in named:
            _check_int(name, token, 0, 2**31 - 1, "token numbers")
        object.__setattr__(self, name, tuple(dict.fromkeys(named)))

    @classmethod
    def of(cls, **values: Any) -> SamplingParams:
        """Build from keyword arguments; an unknown one is an InvalidRequest, not a TypeError."""
        known = {f.name for f in fields(cls)}
        for name, value in values.items():
            if name not in known:
                raise InvalidRequest(name, value, f"one of {', '.join(sorted(known))}")
        return cls(**values)

    @property
    def greedy(self) -> bool:
        """Whether every token is the most probable one after penalties."""
        fixed = self.temperature < GREEDY_BELOW and not self.dynamic_temperature
        return fixed and _MAY_DROP_THE_BEST.isdisjoint(self.active)

    @property
    def dynamic_temperature(self) -> bool:
        """Whether the temperature follows the entropy; mirostat uses it unchanged."""
        return self.dynatemp_range > 0.0 and "temperature" in self.samplers and not self.mirostat

    @property
    def active(self) -> tuple[str, ...]:
        """The samplers that have an effect, in order."""
        if self.mirostat:
            return tuple(name for name in self.samplers if name == "temperature")
        does = {
            "dry": self.dry_multiplier > 0.0 and self.dry_penalty_last_n != 0,
            "top_n_sigma": self.top_n_sigma > 0.0,
            "top_k": self.top_k > 0,
            "typical_p": self.typical_p < 1.0,
            "top_p": self.top_p < 1.0,
            "min_p": self.min_p > 0.0,
            "xtc": self.xtc_probability > 0.0,
            "temperature": self.temperature != 1.0 or self.dynatemp_range > 0.0,
            "infill": True,
            "adaptive_p": True,
        }
        return tuple(name for name in self.samplers if does.get(name))

    @property
    def penalized(self) -> bool:
        """Whether earlier tokens affect the choice."""
        return "penalties" in self.samplers and (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _check_int(name: str, value: object, least: int, greatest: int, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= greatest:
        raise InvalidRequest(name, value, expected)


def _checked_texts(name: str, value: object) -> tuple[str, ...]:
    expected = f"up to {MAX_STOPS} non-empty texts of up to {MAX_STOP_CHARS} characters"
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (tuple, list)) or len(texts) > MAX_STOPS:
        raise InvalidRequest(name, value, expected)
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARS:
            raise InvalidRequest(name, text, expected)
    return tuple(texts)


def _checked_samplers(samplers: object) -> tuple[str, ...]:
    known = (*SAMPLERS, *ON_REQUEST)
    expected = f"names, each at most once, from {', '.join(known)}"
    if not isinstance(samplers, (tuple, list)):
        raise InvalidRequest("samplers", samplers, expected)
    for name in samplers:
        if name not in known or samplers.count(name) > 1:
            raise InvalidRequest("samplers", name, expected)
    return tuple(samplers)


def _checked_bias(bias: object) -> Mapping[int, float]:
    if not isinstance(bias, Mapping):
        raise InvalidRequest("logit_bias", bias, "a mapping from token to bias")
    for token, value in bias.items():
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise InvalidRequest("logit_bias", token, "token numbers as keys")
        if not _is_number(value) or not (-100 <= value <= 100 or value == -math.inf):
            raise InvalidRequest("logit_bias", value, "a bias from -100 to 100, or -infinity")
    return MappingProxyType(dict(bias)) if bias else _NO_BIAS
