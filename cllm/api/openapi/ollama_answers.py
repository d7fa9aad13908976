"""The answers of Ollama's API as types; see `answers`."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class OllamaFailure(Struct):
    """Ollama's envelope of an error."""

    error: str


class OllamaEnd(Struct, kw_only=True):
    """The counts, and durations in nanoseconds, of a finished answer."""

    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[dict[str, Any]] | UnsetType = UNSET


class OllamaChat(OllamaEnd, kw_only=True):
    """The assistant's turn; in a stream one for each piece."""

    model: str
    created_at: str
    message: dict[str, Any]


class OllamaGenerate(OllamaEnd, kw_only=True):
    """The answer; in a stream one for each piece. context: tokens for the next turn."""

    model: str
    created_at: str
    response: str
    thinking: str | UnsetType = UNSET
    context: list[int] | UnsetType = UNSET


class OllamaEmbeddings(Struct):
    """Vectors of length 1."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class OllamaEmbedding(Struct):
    """A vector of length 1."""

    embedding: list[float]


class OllamaStatus(Struct):
    """How far a request is; `success` at the end."""

    status: str


class OllamaVersion(Struct):
    """The version of Ollama whose API this is, and cLLM's own."""

    version: str
    cllm: str


class OllamaModels(Struct):
    """The served model."""

    models: list[dict[str, Any]]


class OllamaShow(Struct):
    """The served model in detail."""

    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    template: str
    modelfile: str
    license: str
    parameters: str
    modified_at: str
