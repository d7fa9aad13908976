"""llama-server's own fields, which every API takes, in the engine's terms.

Fields that change what an answer may be are served or refused by name; see NOTHING. Those without
effect here are listed in docs/api.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cllm.api.constraint_fields import ConstraintFields
from cllm.api.schemas import INT32
from cllm.engine import InvalidRequest
from cllm.engine.sampling.params import MAX_LAST_N, MAX_LOGPROBS, ON_REQUEST, SAMPLERS

if TYPE_CHECKING:
    from cllm.engine import Engine

RANDOM_SEED = 0xFFFFFFFF  # llama.h: LLAMA_DEFAULT_SEED

OrAll = Annotated[int, Meta(ge=-1, le=INT32)]
_Count = Annotated[int, Meta(ge=0, le=INT32)]


class LoraScale(Struct):
    """How much a LoRA adapter applies."""

    id: int
    scale: float


class LlamaFields(ConstraintFields, kw_only=True):
    """The fields. Where llama-server clamps a value, cLLM does the same."""

    n_predict: OrAll | None = None
    n_keep: OrAll | None = None
    n_discard: _Count | None = None
    n_indent: _Count | None = None
    t_max_predict_ms: Annotated[int, Meta(ge=-1)] | None = None
    id_slot: OrAll | None = None
    cache_prompt: bool | None = None
    n_probs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    post_sampling_probs: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None

    top_n_sigma: float | None = None
    typical_p: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    repeat_last_n: int | None = None
    repeat_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None
    min_keep: int | None = None
    samplers: str | list[str] | None = None
    lora: list[LoraScale] | None = None

    reproducible: bool | None = None  # cLLM's own

    # Of conversations.
    reasoning_format: Literal["none", "auto", "deepseek"] | None = None
    thinking_budget_tokens: OrAll | None = None
    reasoning_budget_tokens: OrAll | None = None

    # Not supported: refused by name.
    grammar_lazy: Any = None
    grammar_triggers: Any = None
    reasoning_budget_message: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not supported: ValueErrors become the 400's text."""
        super().__post_init__()
        for name, nothing in NOTHING.items():
            if getattr(self, name) not in (None, nothing):
                raise ValueError(f"{name}: is not supported; leave it out, or give {nothing!r}")

    @property
    def budget(self) -> int | None:
        """The most tokens of thoughts; None: as the server says."""
        budget = self.thinking_budget_tokens
        return self.reasoning_budget_tokens if budget is None else budget

    @property
    def shows_thoughts(self) -> bool | None:
        """Whether thoughts stay in the text; None: as the server says."""
        return None if self.reasoning_format is None else self.reasoning_format == "none"


# A field with this value asks for nothing.
NOTHING: Mapping[str, Any] = {
    "grammar_lazy": False,
    "grammar_triggers": [],
    "reasoning_budget_message": "",
}


_INTEGER = re.compile(r"-?\d+")
_DIGITS = 40  # of a token; Python reads no thousands of them, and so many are out of range too

# llama-server's names and letters -> the engine's names.
_SAMPLERS = {
    **{name: name for name in (*SAMPLERS, *ON_REQUEST)},
    **{name.replace("_", "-"): name for name in (*SAMPLERS, *ON_REQUEST)},
    **{name.replace("_", ""): name for name in (*SAMPLERS, *ON_REQUEST)},
    "nucleus": "top_p", "temp": "temperature",
    "typ_p": "typical_p", "typ-p": "typical_p", "typp": "typical_p", "typ": "typical_p",
    "typical": "typical_p",
    "e": "penalties", "d": "dry", "s": "top_n_sigma", "k": "top_k", "y": "typical_p", "p": "top_p",
    "m": "min_p", "x": "xtc", "t": "temperature", "i": "infill", "a": "adaptive_p",
}  # fmt: skip
# Field -> the engine's name, the range to which values are clamped, as in llama-server.
NUMBERS: Mapping[str, tuple[str, float, float]] = {
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
    "adaptive_target": ("adaptive_target", -1, 1),
    "adaptive_decay": ("adaptive_decay", 0, 0.99),
    "min_keep": ("min_keep", 0, 2**31 - 1),
    "n_keep": ("n_keep", -1, 2**31 - 1),
    "n_discard": ("n_discard", 0, 2**31 - 1),
    "mirostat": ("mirostat", 0, 2),
    "mirostat_tau": ("mirostat_tau", 0, 100),
    "mirostat_eta": ("mirostat_eta", 0, 1),
}
_SHARED = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
_OWN = tuple(name for name in NUMBERS if name not in _SHARED)
DRY_LAST_N = 64  # llama-server's default


def sampler_names(given: str | list[str]) -> tuple[str, ...]:
    """The engine's names of samplers, given by names or as letters.

    As in llama-server, unknown names mean nothing. A repeated one counts once.
    """
    found = (_SAMPLERS.get(name.lower()) for name in given)
    return tuple(dict.fromkeys(name for name in found if name is not None))


def llama_sampling(asked: Struct, names: tuple[str, ...] = _OWN) -> dict[str, Any]:
    """The fields that a body gives, in the names of SamplingParams. names: those of NUMBERS."""
    given: dict[str, Any] = {}
    for field in names:
        value = getattr(asked, field, None)
        if value is not None:
            name, least, greatest = NUMBERS[field]
            given[name] = min(max(value, least), greatest)
    if "dry_multiplier" in given:
        given.setdefault("dry_penalty_last_n", DRY_LAST_N)
    if not isinstance(asked, LlamaFields):
        return given
    if asked.dry_sequence_breakers is not None:
        given["dry_sequence_breakers"] = tuple(asked.dry_sequence_breakers)
    if asked.samplers is not None:
        given["samplers"] = sampler_names(asked.samplers)
    if asked.t_max_predict_ms is not None and asked.t_max_predict_ms > 0:
        given["line_limit"] = asked.t_max_predict_ms / 1000
    if asked.reproducible is not None:
        given["reproducible"] = asked.reproducible
    if asked.n_indent:
        given["min_indent"] = asked.n_indent
    return given


def llama_logprobs(asked: LlamaFields) -> dict[str, Any]:
    """What an answer with log-probabilities records, in the names of SamplingParams."""
    if not asked.n_probs:
        return {}
    return {"logprobs": asked.n_probs, "sampled_logprobs": bool(asked.post_sampling_probs)}


class _Defaults(LlamaFields, kw_only=True, forbid_unknown_fields=True):
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool | None = None
    max_tokens: OrAll | None = None


_NO_DEFAULTS = (
    *("id_slot", "cache_prompt", "n_probs", "post_sampling_probs", "return_progress"),
    *("timings_per_token", "reasoning_format", "thinking_budget_tokens"),
    *("reasoning_budget_tokens", "lora", *NOTHING),
)


def sampling_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The server's defaults, by /completion's names, in the names of SamplingParams.

    Values may be texts. Raises InvalidRequest, which names the field.
    """
    plain = dict(given)
    if isinstance(plain.get("samplers"), str) and ";" in plain["samplers"]:
        plain["samplers"] = plain["samplers"].split(";")
    for name in plain:
        if name not in _Defaults.__struct_fields__ or name in _NO_DEFAULTS:
            raise InvalidRequest("sampling", name, "names of sampling fields of /completion")
    try:
        asked = msgspec.convert(plain, _Defaults, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequest("sampling", str(plain), f"fields of /completion ({error})") from None
    found = llama_sampling(asked, tuple(NUMBERS))
    if asked.seed is not None and asked.seed not in (-1, RANDOM_SEED):
        found["seed"] = asked.seed
    if asked.ignore_eos:
        found["ignore_eos"] = True
    most = asked.n_predict if asked.n_predict is not None else asked.max_tokens
    if most is not None and most >= 0:
        found["max_tokens"] = most
    return found


def place_of(asked: LlamaFields, n_slots: int) -> tuple[int | None, bool]:
    """The only slot that the request may run in, and whether it reuses no prefix.

    Raises InvalidRequest.
    """
    slot = asked.id_slot
    if slot is not None and slot >= n_slots:
        raise InvalidRequest("id_slot", slot, f"a slot from 0 to {n_slots - 1}, or -1: any")
    return (None if slot == -1 else slot), asked.cache_prompt is False


def lora_of(asked: object) -> list[tuple[int, float]] | None:
    """The LoRA adapters that a body asks for; None: those that apply by default."""
    given = asked.lora if isinstance(asked, LlamaFields) else None
    return [(each.id, each.scale) for each in given] if given else None


def most_tokens(
    defaults: Mapping[str, Any], *given: int | None, otherwise: int | None = None
) -> int | None:
    """The maximum number of tokens: the first that is given, else the server's default.

    -1 is given for no maximum, which is None here. otherwise: applies if nothing says more.
    """
    for value in given:
        if value is not None:
            return None if value < 0 else value
    most: int | None = defaults.get("max_tokens", otherwise)
    return most


def logit_bias(engine: Engine, given: Mapping[str, Any] | Sequence[Any]) -> dict[int, float]:
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
        if isinstance(what, str) and isinstance(given, Mapping) and _INTEGER.fullmatch(what):
            what = int(what[:_DIGITS])
        tokens = [what] if isinstance(what, int) else engine.tokenize(what, add_special=False)
        found.update(dict.fromkeys(tokens, bias))
    return found
