"""Bodies of the Anthropic endpoints. Unknown fields are ignored, null means left out.

Source: the Anthropic API reference, "Messages". Images and files have types that are not among
these, so they are refused by name.
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


class PlainSource(Struct, tag_field="type", tag="text"):
    """A document's text."""

    data: str


class ContentSource(Struct, tag_field="type", tag="content"):
    """A document in blocks of text."""

    content: str | list[TextBlock]


class DocumentBlock(Struct, tag_field="type", tag="document"):
    """A document of text."""

    source: PlainSource | ContentSource
    title: str | None = None
    context: str | None = None

    @property
    def text(self) -> str:
        """What the model reads."""
        source = self.source
        content = source.data if isinstance(source, PlainSource) else source.content
        if not isinstance(content, str):
            content = "\n".join(block.text for block in content)
        return "\n".join(part for part in (self.title, self.context, content) if part)


class SearchResultBlock(Struct, tag_field="type", tag="search_result"):
    """A passage that the client found."""

    title: str
    source: str
    content: list[TextBlock]

    @property
    def text(self) -> str:
        """What the model reads."""
        return "\n".join((self.title, self.source, *(block.text for block in self.content)))


class ToolReference(Struct, tag_field="type", tag="tool_reference"):
    """A tool that a search found."""

    tool_name: str

    @property
    def text(self) -> str:
        """What the model reads."""
        return self.tool_name


ResultBlock = TextBlock | DocumentBlock | SearchResultBlock | ToolReference


class ToolResultBlock(Struct, tag_field="type", tag="tool_result"):
    """The result of a call."""

    tool_use_id: NonEmpty
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


class ServerToolUse(Struct, tag_field="type", tag="server_tool_use"):
    """A call that Anthropic's servers ran; omitted from the prompt, as its results."""


class WebSearchResult(Struct, tag_field="type", tag="web_search_tool_result"):
    """What a search of Anthropic's servers found."""


class WebFetchResult(Struct, tag_field="type", tag="web_fetch_tool_result"):
    """What Anthropic's servers fetched."""


Readable = TextBlock | DocumentBlock | SearchResultBlock
Block = (
    Readable
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ServerToolUse
    | WebSearchResult
    | WebFetchResult
)


class Message(Struct):
    """One turn, or a part of one."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


# The beginnings of the types of tools that Anthropic's servers run, and that clients run.
_HOSTED = ("web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "mcp_toolset")
_OF_CLIENTS = ("bash_", "text_editor_", "memory_")


class Tool(Struct):
    """A function that the model may call, or a tool of one of Anthropic's types."""

    name: NonEmpty | None = None
    input_schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    type: str | None = None

    def __post_init__(self) -> None:
        """Refuse what lacks a name or a schema: ValueErrors become the 400's text."""
        if self.hosted:
            return
        if self.name is None:
            raise ValueError("name: missing; expected a non-empty string")
        if self.type in (None, "custom"):
            if self.input_schema is None:
                raise ValueError("input_schema: missing; expected a JSON schema")
        elif not (self.type or "").startswith(_OF_CLIENTS):
            instead = 'give it an input_schema, and the type "custom"'
            raise ValueError(f'type: "{(self.type or "")[:80]}" is not served; {instead}')

    @property
    def hosted(self) -> bool:
        """Whether Anthropic's servers run it; the model is not told of it."""
        return (self.type or "").startswith(_HOSTED)


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
    """Whether the model is to think first. budget_tokens: the most tokens of thoughts."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=0, le=INT32)] | None = None


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
