"""llama-server's sampling fields in the engine's terms and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.constraint_fields import asked_constraint, checked
from cllm.api.llama_server.schemas import CompletionRequest
from cllm.engine import InvalidRequest, SamplingParams
from cllm.engine.sampling.params import MAX_LAST_N, SAMPLERS

if TYPE_CHECKING:
    from cllm.engine import Engine

RANDOM_SEED = 0xFFFFFFFF  # llama.h: LLAMA_DEFAULT_SEED

# llama-server's names and letters -> the engine's names.
_SAMPLERS = {
    **{name: name for name in SAMPLERS},
    "top-k": "top_k", "top-p": "top_p", "nucleus": "top_p", "min-p": "min_p", "temp": "temperature",
    "top-n-sigma": "top_n_sigma", "typ_p": "typical_p", "typ-p": "typical_p", "typ": "typical_p",
    "typical": "typical_p", "typical-p": "typical_p",
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typical_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature",
}  # fmt: skip
# Field -> the engine's name, the range to which values are clamped, as in llama-server.
_NUMBERS = {
    "temperature": ("temperature", 0, 100),
    "dynatemp_range": ("dynatemp_range", 0, 100),
    "dynatemp_exponent": ("dynatemp_exponent", 0, 100),
    "top_k": ("top_k", 0, 2**31 - 1),
    "top_p": ("top_p", 0, 1),
    "min_p": ("min_p", 0, 1),
    "top_n_sigma": ("top_n_sigma", -1, 100),
    "typical_p": ("typical_p", 0, 1),
    "xtc_probability": ("xtc_probability", 0, 1),
    "xtc_threshold": ("xtc_threshold", 0, 1),
    "repeat_last_n": ("penalty_last_n", -1, MAX_LAST_N),
    "repeat_penalty": ("repetition_penalty", 0.01, 100),
    "presence_penalty": ("presence_penalty", -100, 100),
    "frequency_penalty": ("frequency_penalty", -100, 100),
    "dry_multiplier": ("dry_multiplier", 0, 100),
    "dry_base": ("dry_base", 1, 100),
    "dry_allowed_length": ("dry_allowed_length", 0, MAX_LAST_N),
    "dry_penalty_last_n": ("dry_penalty_last_n", -1, MAX_LAST_N),
    "mirostat": ("mirostat", 0, 2),
    "mirostat_tau": ("mirostat_tau", 0, 100),
    "mirostat_eta": ("mirostat_eta", 0, 1),
}
_SHOWN = {"typical_p": "typ_p"}
_DRY_LAST_N = 64  # llama-server's default


def most_tokens(asked: CompletionRequest) -> int:
    """The maximum number of tokens; -1: until the context is full."""
    for value in (asked.n_predict, asked.max_tokens, asked.max_completion_tokens):
        if value is not None:
            return value
    return -1


def sampling(
    engine: Engine, asked: CompletionRequest, choice: int = 0, tenant: str = ""
) -> SamplingParams:
    """The parameters of completion number `choice` of a prompt; raises InvalidRequest.

    tenant: whose turn it is when constraints are compiled.
    """
    given: dict[str, Any] = {}
    for field, (name, least, greatest) in _NUMBERS.items():
        value = getattr(asked, field)
        if value is not None:
            given[name] = min(max(value, least), greatest)
    given.setdefault("dry_penalty_last_n", _DRY_LAST_N)
    if asked.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(asked.dry_sequence_breakers)
    if asked.samplers is not None:
        given["samplers"] = tuple(_SAMPLERS.get(name, name) for name in asked.samplers)
    if asked.seed is not None and asked.seed not in (-1, RANDOM_SEED):
        given["seed"] = asked.seed + choice
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    probabilities = asked.n_probs or asked.logprobs
    limit = asked.t_max_predict_ms or 0
    # n_predict 0 still evaluates the prompt: one token is generated and dropped.
    most = most_tokens(asked)
    return SamplingParams(
        **given,
        max_tokens=None if most < 0 else max(most, 1),
        stop=tuple(text for text in stop if text),
        ignore_eos=bool(asked.ignore_eos),
        logit_bias=_logit_bias(engine, asked.logit_bias or {}),
        logprobs=probabilities or None,
        record_tokens=bool(asked.return_tokens or asked.stream),
        constraint=checked(engine, asked_constraint(asked), tenant),
        line_limit=limit / 1000 if limit > 0 else None,
        report_progress=bool(asked.return_progress and asked.stream),
    )


def _logit_bias(engine: Engine, given: Mapping[str, Any] | Sequence[Any]) -> dict[int, float]:
    """[[token or text, bias or false], …], or the same as an object. Raises InvalidRequest."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    found: dict[int, float] = {}
    for number, pair in enumerate(pairs):
        match pair:
            case (str() | int() as what, int() | float() as value) if value is not True:
                bias = float("-inf") if value is False else float(value)
            case _:
                field = f"logit_bias[{number}]"
                raise InvalidRequest(field, pair, "a token or text and its bias, or false")
        if isinstance(what, str) and isinstance(given, Mapping) and what.lstrip("-").isdecimal():
            what = int(what)
        tokens = [what] if isinstance(what, int) else engine.tokenize(what, add_special=False)
        found.update(dict.fromkeys(tokens, bias))
    return found


def settings(params: SamplingParams, asked: CompletionRequest | None = None) -> dict[str, Any]:
    """`generation_settings`: the settings of a request, or only its parameters."""
    most = -1 if params.max_tokens is None else params.max_tokens
    asked = asked or CompletionRequest(stream=False)
    return {
        "seed": RANDOM_SEED if params.seed is None else params.seed,
        "temperature": params.temperature,
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": params.top_n_sigma,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "typical_p": params.typical_p,
        "repeat_last_n": params.penalty_last_n,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "mirostat": params.mirostat,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "adaptive_target": -1.0,
        "adaptive_decay": 0.9,
        "stop": list(params.stop),
        "max_tokens": most,
        "n_predict": most,
        "n_keep": asked.n_keep or 0,
        "n_discard": asked.n_discard or 0,
        "ignore_eos": params.ignore_eos,
        "stream": bool(asked.stream),
        "logit_bias": [{"bias": b, "token": t} for t, b in params.logit_bias.items()],
        "n_probs": params.logprobs or 0,
        "min_keep": 0,
        "grammar": asked.grammar or "",
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": [_SHOWN.get(name, name) for name in params.samplers],
        "speculative.types": "none",
        "timings_per_token": bool(asked.timings_per_token),
        "post_sampling_probs": False,
        "backend_sampling": False,
        "lora": [],
    }


# What llama-server leaves out of a slot's settings.
_LONG = (
    *("dry_sequence_breakers", "stop", "logit_bias", "grammar", "grammar_lazy"),
    *("grammar_triggers", "preserved_tokens"),
)


def short_settings(params: SamplingParams) -> dict[str, Any]:
    """`params` of a slot."""
    return {name: value for name, value in settings(params).items() if name not in _LONG}
