"""Bodies of Ollama's endpoints. Unknown fields are ignored, null means left out.

Source: Ollama's API reference, and the requests of its Python and JavaScript clients.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cllm.api.llama_fields import LlamaFields
from cllm.api.schemas import INT32, Fraction, Schema, TokenId
from cllm.api.sharing_fields import SharingFields
from cllm.engine.sampling.params import MAX_LOGPROBS, MAX_STOPS

_Int = Annotated[int, Meta(ge=-INT32, le=INT32)]
_Alternatives = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]

KeepAlive = str | float
Think = bool | Literal["low", "medium", "high"]


class Options(Struct, kw_only=True):
    """How tokens are chosen.

    Ignored, because the server's own settings apply and the answer stays the same: num_ctx,
    num_keep, num_batch, num_gpu, main_gpu, num_thread, numa, low_vram, use_mmap, use_mlock, f16_kv,
    vocab_only.
    """

    num_predict: _Int | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_k: _Int | None = None
    top_p: Fraction | None = None
    min_p: Fraction | None = None
    typical_p: Fraction | None = None
    repeat_penalty: float | None = None
    repeat_last_n: _Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: Annotated[int, Meta(ge=0, le=2)] | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Meta(max_length=MAX_STOPS)] | None = None
    tfs_z: float | None = None
    penalize_newline: bool | None = None

    def __post_init__(self) -> None:
        """Refuse samplers that llama.cpp no longer has."""
        if self.tfs_z not in (None, 1):
            raise ValueError(f"tfs_z: {self.tfs_z:g} is not supported; leave it out, or give 1")
        if self.penalize_newline is False:
            raise ValueError(
                "penalize_newline: false is not supported; leave it out: newlines are penalized "
                "like other tokens"
            )


class Asked(LlamaFields, kw_only=True):
    """What a chat and a completion have in common. keep_alive: the model stays loaded."""

    model: str
    stream: bool | None = None
    options: Options | None = None
    think: Think | None = None
    keep_alive: KeepAlive | None = None
    logprobs: bool | None = None
    top_logprobs: _Alternatives | None = None


class CalledFunction(Struct):
    """What the assistant called."""

    name: str
    arguments: dict[str, Any] | str = {}


class ToolCall(Struct):
    """A call in an earlier answer."""

    function: CalledFunction
    id: str | None = None


class Message(Struct):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def __post_init__(self) -> None:
        """Refuse images."""
        refuse_images(self.images)


class Function(Struct):
    """A tool's description."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    """A tool; functions are the only kind."""

    function: Function
    type: Literal["function"] = "function"


class ChatRequest(Asked, kw_only=True):
    """Body of ``/api/chat``. Without messages it loads the model, which is loaded."""

    messages: list[Message] | None = None
    tools: list[Tool] | None = None


class GenerateRequest(Asked, kw_only=True):
    """Body of ``/api/generate``. Without a prompt it loads the model, which is loaded.

    context: tokens of earlier turns, as an answer gave them.
    """

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    context: list[TokenId] | None = None
    images: list[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what is not supported, and fields that contradict each other."""
        super().__post_init__()
        refuse_images(self.images)
        if self.template:
            raise ValueError(
                "template: a template of a request is not supported; leave it out, format the "
                "prompt yourself with raw, or start the server with --chat-template-file"
            )
        if self.suffix:
            for name in ("system", "context", "raw"):
                if getattr(self, name):
                    raise ValueError(f"{name}: cannot be combined with suffix; leave one out")
        if self.raw:
            for name in ("system", "context"):
                if getattr(self, name):
                    raise ValueError(f"{name}: cannot be combined with raw; leave one out")


class EmbedRequest(SharingFields):
    """Body of ``/api/embed``. truncate: cut inputs that are too long, which is the default."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class EmbeddingsRequest(SharingFields):
    """Body of ``/api/embeddings``, the older endpoint: one text."""

    model: str
    prompt: str
    options: Options | None = None
    keep_alive: KeepAlive | None = None


class ModelRequest(Struct):
    """Body of ``/api/show`` and ``/api/pull``; `name` is the older spelling of `model`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a request without a model."""
        if not self.named:
            raise ValueError("model: missing; expected the name of a model")

    @property
    def named(self) -> str:
        """The model's name."""
        return self.model or self.name or ""


def refuse_images(images: list[Any] | None) -> None:
    """Raises ValueError if there are any."""
    if images:
        raise ValueError("images: are not supported; send text only")


CHAT = Schema(ChatRequest)
GENERATE = Schema(GenerateRequest)
EMBED = Schema(EmbedRequest)
EMBEDDINGS = Schema(EmbeddingsRequest)
MODEL = Schema(ModelRequest)
