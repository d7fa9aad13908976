"""Bodies of llama-server's endpoints. Unknown fields are ignored, null means left out."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from cllm.api.llama_fields import LlamaFields, OrAll
from cllm.api.openai.schemas import ChatRequest
from cllm.api.schemas import INT32, Schema, TokenId
from cllm.engine.sampling.params import MAX_LOGPROBS


class PromptObject(Struct):
    """A prompt that may contain images or sounds."""

    prompt_string: str
    multimodal_data: list[str] | None = None


Mixed = list[str | TokenId]
Prompt = str | PromptObject | list[str | TokenId | PromptObject | Mixed]


class CompletionRequest(LlamaFields, kw_only=True):
    """Body of ``/completion``.

    `n_predict`, `n_cmpl` and `n_probs` have OpenAI's names as aliases.
    Where llama-server clamps a value, cLLM does the same (`llama_fields.py`).
    """

    prompt: Prompt | None = None
    stream: bool | None = None
    max_tokens: OrAll | None = None
    max_completion_tokens: OrAll | None = None
    n_cmpl: Annotated[int, Meta(ge=1, le=INT32)] | None = None
    n: Annotated[int, Meta(ge=1, le=INT32)] | None = None

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, float | bool] | list[Any] | None = None

    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    return_tokens: bool | None = None
    response_fields: list[str] | None = None


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
    """Body of ``/tokenize``; vLLM's names are `prompt` and `add_special_tokens`."""

    content: str | Mixed = ""
    prompt: str | None = None
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None


class DetokenizeRequest(Struct):
    """Body of ``/detokenize``."""

    tokens: list[TokenId] = []


COMPLETION = Schema(CompletionRequest)
INFILL = Schema(InfillRequest)
TOKENIZE = Schema(TokenizeRequest)
DETOKENIZE = Schema(DetokenizeRequest)
APPLY_TEMPLATE = Schema(ChatRequest)  # that of a chat completion
