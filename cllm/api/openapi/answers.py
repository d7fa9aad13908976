"""The answers of endpoints as types, for description only.

Main fields; a response may have others. Tests check real responses against them.
"""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType

T = TypeVar("T")

# Native


class Success(Struct, Generic[T]):
    """A native answer."""

    success: bool
    data: T


class Failure(Struct):
    """A native error: the field, its value, what was expected."""

    success: bool
    error: str


class Endpoint(Struct):
    """One endpoint of the list."""

    method: str
    path: str
    description: str


class Index(Struct):
    """The list of endpoints."""

    name: str
    version: str
    endpoints: list[Endpoint]


class Health(Struct):
    """The server's state."""

    status: Literal["healthy", "loading", "unhealthy"]
    model_loaded: bool
    components: dict[str, Any] | UnsetType = UNSET
    metrics: dict[str, Any] | UnsetType = UNSET
    dependencies: dict[str, str] | UnsetType = UNSET


class NativeUsage(Struct):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Generated(Struct):
    """A continuation."""

    id: str
    text: str
    response_time: float
    tokens_per_second: float
    finish_reason: str
    usage: NativeUsage


class Encoded(Struct):
    """Tokens of a text."""

    tokens: list[int]
    length: int


class Decoded(Struct):
    """Text of tokens."""

    text: str


class Benchmarked(Struct):
    """The results of a benchmark; times in seconds."""

    total_requests: int
    successful_requests: int
    failed_requests: int
    avg_response_time: float
    min_response_time: float
    max_response_time: float
    p50_response_time: float
    p95_response_time: float
    p99_response_time: float
    time_to_first_token: float
    avg_throughput: float
    avg_tokens_per_second: float
    total_tokens_processed: int
    avg_generated_tokens: float
    total_time: float


class ModelInfo(Struct):
    """The model and the context in use."""

    model_path: str
    model_name: str | None
    architecture: str
    capability: str
    vocab_size: int
    hidden_size: int | None
    max_sequence_length: int | None
    quantization: dict[str, Any]
    llama_cpp: dict[str, Any]
    lora_adapters: list[dict[str, Any]]


# OpenAI


class OpenAIError(Struct):
    """The error; `param` is the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIFailure(Struct):
    """OpenAI's envelope of an error."""

    error: OpenAIError


class Model(Struct):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    tags: list[str]


class ModelList(Struct):
    """The list of models, which has one entry."""

    object: Literal["list"]
    data: list[Model]


class Accounts(Struct):
    """What tenants have used. seconds: since the start."""

    seconds: float
    tenants: list[Account]


class Account(Struct):
    """Counts since the start of one tenant, and its limits."""

    tenant: str
    requests: int
    refused: dict[str, int]
    in_flight: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    limits: dict[str, float | bool]


class Usage(Struct):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | UnsetType = UNSET
    prompt_tokens_details: dict[str, int] | UnsetType = UNSET
    completion_tokens_details: dict[str, int] | UnsetType = UNSET


class TextChoice(Struct):
    """A continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class TextCompletion(Struct):
    """Continuations of prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChatMessage(Struct):
    """The assistant's text, calls and reasoning."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[dict[str, Any]] | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Struct):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    timings: dict[str, float]


class Response(Struct):
    """An answer as items of output."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    usage: dict[str, Any] | None


class EmbeddingList(Struct):
    """Vectors, as numbers or as base64."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    model: str
    usage: Usage


# Anthropic


class AnthropicFailure(Struct):
    """Anthropic's envelope of an error."""

    type: Literal["error"]
    error: dict[str, str]


class AnthropicMessage(Struct):
    """The assistant's turn, in blocks of text, thinking and tool_use."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: str
    stop_sequence: str | None
    usage: dict[str, int]


class Count(Struct):
    """The number of tokens of a conversation."""

    input_tokens: int


class Counted(Struct):
    """The number of tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int
