"""The answers of llama-server's endpoints as types: see `answers`."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class LlamaError(Struct):
    """The error; with the lengths if a prompt is too long."""

    code: int
    message: str
    type: str
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class LlamaFailure(Struct):
    """llama-server's envelope of an error."""

    error: LlamaError


class Completed(Struct):
    """A continuation; fewer fields with `response_fields`."""

    content: str | UnsetType = UNSET
    tokens: list[int] | UnsetType = UNSET
    stop: bool | UnsetType = UNSET
    stop_type: str | UnsetType = UNSET
    id_slot: int | UnsetType = UNSET
    tokens_predicted: int | UnsetType = UNSET
    tokens_evaluated: int | UnsetType = UNSET
    generation_settings: dict[str, Any] | UnsetType = UNSET
    timings: dict[str, float] | UnsetType = UNSET
    completion_probabilities: list[dict[str, Any]] | UnsetType = UNSET


class Predictions(Struct):
    """An answer to each instance, in their order."""

    predictions: list[dict[str, Any]]


class Tokenized(Struct):
    """Tokens, with their pieces if requested."""

    tokens: list[int | dict[str, Any]]


class Detokenized(Struct):
    """Text of tokens."""

    content: str
    prompt: str


class TokenizerInfo(Struct):
    """Special tokens and the chat template, in the names of Hugging Face's tokenizers."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool
    add_eos_token: bool
    chat_template: str | None
    model_max_length: int


class Applied(Struct):
    """A conversation as a prompt."""

    prompt: str


class LoraAdapter(Struct):
    """An adapter, and the scale that applies where a request does not say."""

    id: int
    path: str
    scale: float
    task_name: str
    prompt_prefix: str


class Props(Struct):
    """The settings of the server."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_path: str
    chat_template: str
    build_info: str
    lora_adapters: list[LoraAdapter]


class LoraApplied(Struct):
    """The default scales are as asked."""

    success: bool


class Slot(Struct):
    """A slot and its state."""

    id: int
    n_ctx: int
    is_processing: bool


class SlotAction(Struct):
    """The result of saving, restoring or erasing a slot."""

    id_slot: int
    filename: str | UnsetType = UNSET
    n_saved: int | UnsetType = UNSET
    n_restored: int | UnsetType = UNSET
    n_erased: int | UnsetType = UNSET


class Vectors(Struct):
    """The vectors of one input."""

    index: int
    embedding: list[list[float]]


class Ranking(Struct):
    """Documents, the best first."""

    model: str
    results: list[dict[str, Any]]
    usage: dict[str, int]


class Score(Struct):
    """A document's score, in the format of Text Embeddings Inference."""

    index: int
    score: float
