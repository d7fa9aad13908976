"""Body of ``/v1/responses``. Unknown fields are ignored, null means left out.

Source: the OpenAI API reference, "Responses". Fields that need a store or a tool on the server are
declared, so that asking for them is refused by name and never overlooked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from cllm.api.llama_fields import LlamaFields, OrAll
from cllm.api.sampling import Temperature
from cllm.api.schemas import Fraction, NonEmpty, Schema

# A field with one of these values asks for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "previous_response_id": (None, ""),
    "prompt": (None,),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
}

# What an item of each type must have.
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class Part(Struct):
    """A part of a content; images and files have types that are not among these."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str = ""
    refusal: str = ""


Content = str | list[Part]


class Item(Struct):
    """One item of the input: a message, a call, its output, or thoughts."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: NonEmpty | None = None
    name: NonEmpty | None = None
    arguments: str | None = None
    output: Content | None = None
    summary: list[Part] | None = None

    def __post_init__(self) -> None:
        """Refuse an item that lacks what its type needs: ValueErrors become the 400's text."""
        for name in _NEEDED[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: missing; a {self.type} requires it")


class FunctionTool(Struct):
    """A function that the model may call; what OpenAI runs on its own servers has other types."""

    type: Literal["function"]
    name: NonEmpty
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class NamedTool(Struct, tag_field="type", tag="function"):
    """This tool must be called."""

    name: NonEmpty


class AllowedTools(Struct, tag_field="type", tag="allowed_tools"):
    """Only these tools may, or one of them must, be called."""

    tools: list[NamedTool]
    mode: Literal["auto", "required"] = "auto"


class Format(Struct):
    """What the answer's text must be."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        """Refuse a schema's format without a schema."""
        if self.type == "json_schema" and self.schema is None:
            raise ValueError("schema: missing; a json_schema requires it")


class TextConfig(Struct):
    """The answer's form."""

    format: Format | None = None


class ReasoningConfig(Struct):
    """How much to think."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None


class ResponsesRequest(LlamaFields, kw_only=True):
    """The body."""

    input: NonEmpty | Annotated[list[Item], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: OrAll | None = None
    temperature: Temperature | None = None
    top_p: Fraction | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedTools | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    # Not OpenAI's: names of the native API and of chat completions.
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Not supported.
    background: Any = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None
    top_logprobs: Any = None
    truncation: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not supported: ValueErrors become the 400's text."""
        super().__post_init__()
        for name, nothing in _NOTHING.items():
            if getattr(self, name) not in nothing:
                raise ValueError(f"{name}: is not supported; leave it out")


RESPONSES = Schema(ResponsesRequest)
