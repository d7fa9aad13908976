"""Bodies of the Anthropic endpoints. Unknown fields are ignored, null means left out.

Source: the Anthropic API reference, "Messages". Tools that run on that API's servers (search,
code, files) have their own types, which these omit, so they are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cllm.api.llama_fields import LlamaFields
from cllm.api.sampling import Temperature, TopK
from cllm.api.schemas import INT32, Fraction, NonEmpty, Schema
from cllm.engine.sampling.params import MAX_STOPS


class TextBlock(Struct, tag_field="type", tag="text"):
    """Text."""

    text: str


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """The model's reasoning in an earlier turn."""

    thinking: str


class RedactedThinkingBlock(Struct, tag_field="type", tag="redacted_thinking"):
    """Thoughts that only Anthropic's servers can read; omitted from the prompt."""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A call that the model made in an earlier turn."""

    id: NonEmpty
    name: NonEmpty
    input: dict[str, Any]


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    """The result of a call."""

    tool_use_id: NonEmpty
    content: str | list[TextBlock] | None = None
    is_error: bool | None = None


Block = TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock


class Message(Struct):
    """One turn, or a part of one."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(Struct):
    """A function that the model may call."""

    name: NonEmpty
    input_schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None
    type: Literal["custom"] | None = None


class Auto(Struct, tag_field="type", tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool | None = None


class AnyTool(Struct, tag_field="type", tag="any"):
    """Some tool must be called."""

    disable_parallel_tool_use: bool | None = None


class OneTool(Struct, tag_field="type", tag="tool"):
    """This tool must be called."""

    name: NonEmpty
    disable_parallel_tool_use: bool | None = None


class NoTool(Struct, tag_field="type", tag="none"):
    """No tool may be called."""


class Thinking(Struct):
    """Whether the model is to think first. The budget of tokens is not enforced."""

    type: Literal["enabled", "adaptive", "disabled"]


class JsonFormat(Struct, tag_field="type", tag="json_schema"):
    """The format of the answer."""

    schema: dict[str, Any]


class OutputConfig(Struct):
    """How much to think, and the answer's form."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class CountRequest(LlamaFields, kw_only=True):
    """Body of ``/v1/messages/count_tokens``."""

    messages: list[Message]
    model: str | None = None
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: Auto | AnyTool | OneTool | NoTool | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None  # its name before output_config


class MessagesRequest(CountRequest, kw_only=True):
    """Body of ``/v1/messages``."""

    max_tokens: Annotated[int, Meta(ge=1, le=INT32)]
    stop_sequences: Annotated[list[NonEmpty], Meta(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: Fraction | None = None
    # Not Anthropic's: names of the native API.
    seed: int | None = None


COUNT = Schema(CountRequest)
MESSAGES = Schema(MessagesRequest)
