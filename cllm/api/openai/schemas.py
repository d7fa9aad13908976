"""Bodies of the OpenAI endpoints. Unknown fields are ignored, null means left out.

Source: the OpenAI API reference, "Completions" and "Chat". Fields that are known there and not
served here are declared, so that asking for them is refused by name and never overlooked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cllm.api.schemas import INT32, Fraction, NonEmpty, Penalty, Schema, TokenId
from cllm.engine import SamplingParams
from cllm.engine.params import MAX_STOPS

MOST_CHOICES = 128  # generations of one request

Count = Annotated[int, Meta(ge=1, le=INT32)]
Stops = NonEmpty | Annotated[list[NonEmpty], Meta(max_length=MAX_STOPS)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]

# What is asked for by one of these values is not asked for.
NOTHING: dict[str, tuple[Any, ...]] = {
    "suffix": (None, ""),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, ["text"]),
}


class StreamOptions(Struct):
    """What a stream tells beside the text."""

    include_usage: bool = False


class Sampled(Struct, kw_only=True):
    """The fields that both kinds of completion share."""

    model: str | None = None
    max_tokens: Count | None = None
    n: Choices | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: int | None = None
    stop: Stops | None = None
    logit_bias: dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Not OpenAI's; the names of the native API.
    top_k: Annotated[int, Meta(ge=-1, le=INT32)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    ignore_eos: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is not served: ValueErrors become the 400's text."""
        for name, nothing in NOTHING.items():
            if getattr(self, name, None) not in nothing:
                raise ValueError(f"{name}: is not served yet; leave it out")

    @property
    def streams_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self, most: int | None, choice: int) -> SamplingParams:
        """How choice number `choice` is made, of at most `most` tokens; raises InvalidRequest."""
        given = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            given["seed"] = self.seed + choice
        return SamplingParams(**given, max_tokens=most)


_SAMPLING = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop"),
    *("logit_bias", "top_k", "min_p", "repetition_penalty", "ignore_eos"),
)


class CompletionRequest(Sampled, kw_only=True):
    """Body of ``/v1/completions``."""

    prompt: str | list[str | TokenId | list[TokenId]]
    echo: bool | None = None
    suffix: Any = None
    logprobs: Any = None
    best_of: Any = None


class TextPart(Struct):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Struct, omit_defaults=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class ChatRequest(Sampled, kw_only=True):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Count | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: Any = None
    top_logprobs: Any = None
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None


COMPLETION = Schema(CompletionRequest)
CHAT = Schema(ChatRequest)
