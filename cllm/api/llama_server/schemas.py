"""Bodies of llama-server's endpoints. Unknown fields are ignored, null means left out."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from cllm.api.constraint_fields import ConstraintFields
from cllm.api.openai.schemas import ChatRequest
from cllm.api.schemas import INT32, Schema, TokenId
from cllm.engine.sampling.params import MAX_LOGPROBS

_Count = Annotated[int, Meta(ge=0, le=INT32)]
_OrAll = Annotated[int, Meta(ge=-1, le=INT32)]


class PromptObject(Struct):
    """A prompt that may contain images or sounds."""

    prompt_string: str
    multimodal_data: list[str] | None = None


Mixed = list[str | TokenId]
Prompt = str | PromptObject | list[str | TokenId | PromptObject | Mixed]


class CompletionRequest(ConstraintFields, kw_only=True):
    """Body of ``/completion``.

    `n_predict`, `n_cmpl` and `n_probs` have OpenAI's names as aliases. `n_keep` and `n_discard`
    select what a context shift keeps; there is none: a full context ends the text.
    Where llama-server clamps a value, cLLM does the same (`sampling.py`).
    """

    prompt: Prompt | None = None
    stream: bool | None = None
    n_predict: _OrAll | None = None
    max_tokens: _OrAll | None = None
    max_completion_tokens: _OrAll | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=INT32)] | None = None
    n: Annotated[int, Meta(ge=1, le=INT32)] | None = None
    n_keep: _OrAll | None = None
    n_discard: _Count | None = None
    id_slot: _OrAll | None = None
    cache_prompt: bool | None = None
    t_max_predict_ms: Annotated[int, Meta(ge=-1)] | None = None

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
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
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    samplers: str | list[str] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float | bool] | list[Any] | None = None

    n_probs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    response_fields: list[str] | None = None

    # Fields of llama-server that are not supported here: refused by name, never ignored.
    post_sampling_probs: bool | None = None
    backend_sampling: bool | None = None
    adaptive_target: float | None = None
    min_keep: int | None = None
    n_indent: int | None = None
    n_cache_reuse: int | None = None
    lora: list[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what is not supported: ValueErrors become the 400's text."""
        super().__post_init__()
        for name, nothing in NOTHING.items():
            if getattr(self, name) not in (None, nothing):
                raise ValueError(f"{name}: is not supported; leave it out, or give {nothing}")
        if self.adaptive_target is not None and self.adaptive_target >= 0:
            raise ValueError("adaptive_target: is not supported; leave it out, or give -1")


# A field with this value asks for nothing.
NOTHING: dict[str, Any] = {
    "post_sampling_probs": False,
    "backend_sampling": False,
    "min_keep": 0,
    "n_indent": 0,
    "n_cache_reuse": 0,
    "lora": [],
}


class Chunk(Struct):
    """Another file as context of the inserted text."""

    text: str
    filename: str = "tmp"


class InfillRequest(CompletionRequest, kw_only=True):
    """Body of ``/infill``; `prompt` is the start of the inserted text."""

    input_prefix: str
    input_suffix: str
    input_extra: list[Chunk] = field(default_factory=list)


class TokenizeRequest(Struct):
    """Body of ``/tokenize``."""

    content: str | Mixed = ""
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct):
    """Body of ``/detokenize``."""

    tokens: list[TokenId] = []


class ApplyTemplateRequest(ChatRequest, kw_only=True):
    """Body of ``/apply-template``: that of a chat completion."""

    add_generation_prompt: bool | None = None


COMPLETION = Schema(CompletionRequest)
INFILL = Schema(InfillRequest)
TOKENIZE = Schema(TokenizeRequest)
DETOKENIZE = Schema(DetokenizeRequest)
APPLY_TEMPLATE = Schema(ApplyTemplateRequest)
