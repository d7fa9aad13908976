"""Body of ``/v1/responses``. Unknown fields are ignored, null means left out.

Source: the OpenAI API reference, "Responses". Fields that are not supported are declared, so that
asking for them is refused by name and never overlooked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from cllm.api.llama_fields import LlamaFields, OrAll
from cllm.api.openai.responses.tools import GivenTool, is_left_out
from cllm.api.openai.schemas import Alternatives
from cllm.api.sampling import Temperature
from cllm.api.schemas import Fraction, NonEmpty, Schema

# A field with one of these values asks for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "background": (None, False),
    "conversation": (None,),
    "prompt": (None,),
}

# What an item of each type must have.
_NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call": ("call_id", "name", "input"),
    "custom_tool_call_output": ("call_id", "output"),
    "reasoning": (),
    "item_reference": ("id",),
}
# Items of OpenAI's own tools, which another model's turns may have left; they are omitted.
_OMITTED = (
    "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call",
    "computer_call", "computer_call_output", "local_shell_call", "local_shell_call_output",
    "shell_call", "shell_call_output", "apply_patch_call", "apply_patch_call_output",
    "mcp_list_tools", "mcp_call", "mcp_approval_request", "mcp_approval_response",
    "tool_search_call", "tool_search_output", "compaction",
)  # fmt: skip


class Part(Struct):
    """A part of a content; images and files have types that are not among these."""

    type: Literal["input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text"]
    text: str = ""
    refusal: str = ""


Content = str | list[Part]


class Item(Struct, omit_defaults=True):
    """One item of the input: a message, a call, its output, thoughts, or a stored item's id."""

    type: str = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = None
    call_id: NonEmpty | None = None
    name: NonEmpty | None = None
    namespace: str | None = None
    arguments: Any = None
    input: str | None = None
    output: Any = None
    summary: list[Part] | None = None

    def __post_init__(self) -> None:
        """Refuse an item that lacks what its type needs: ValueErrors become the 400's text."""
        if self.type in _OMITTED:
            return
        if self.type not in _NEEDED:
            known = ", ".join(_NEEDED)
            raise ValueError(f'type: "{self.type[:80]}" is not valid; expected one of {known}')
        for name in _NEEDED[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"{name}: missing; a {self.type} requires it")
        if self.type == "function_call" and not isinstance(self.arguments, str):
            raise ValueError("arguments: expected a string of JSON")
        if self.type.endswith("_output"):
            try:
                self.output = msgspec.convert(self.output, Content)
            except msgspec.ValidationError as error:
                raise ValueError(f"output: {error}; expected a string or parts of text") from None

    @property
    def omitted(self) -> bool:
        """Whether it says nothing to the model."""
        return self.type in _OMITTED


class NamedTool(Struct):
    """A tool by its name."""

    type: str
    name: NonEmpty | None = None
    namespace: str | None = None

    def __post_init__(self) -> None:
        """Refuse a tool that is not served."""
        if self.type not in ("function", "custom"):
            reason = "is not served" if is_left_out(self.type) else "is not valid"
            raise ValueError(f'type: "{self.type[:80]}" {reason}; expected "function" or "custom"')
        if self.name is None:
            raise ValueError(f"name: missing; a {self.type} requires it")


class ToolChoice(Struct):
    """This tool must be called; or only some tools may, or one of them must, be called."""

    type: str
    name: NonEmpty | None = None
    namespace: str | None = None
    tools: list[NamedTool] | None = None
    mode: Literal["auto", "required"] = "auto"

    def __post_init__(self) -> None:
        """Refuse a choice without what its type says, and a tool that is not served."""
        if self.type != "allowed_tools":
            NamedTool(self.type, self.name, self.namespace)
        elif self.tools is None:
            raise ValueError("tools: missing; allowed_tools requires it")


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
    tools: list[GivenTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    include: list[str] | None = None
    top_logprobs: Alternatives | None = None
    truncation: Literal["auto", "disabled"] | None = None
    # Not OpenAI's: names of the native API and of chat completions.
    seed: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Not supported.
    background: Any = None
    conversation: Any = None
    prompt: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not supported: ValueErrors become the 400's text."""
        super().__post_init__()
        for name, nothing in _NOTHING.items():
            if getattr(self, name) not in nothing:
                raise ValueError(f"{name}: is not supported; leave it out")

    @property
    def logprobs(self) -> int | None:
        """The alternatives shown for each token of the text; None: no log-probabilities."""
        included = "message.output_text.logprobs" in (self.include or ())
        return self.top_logprobs or 0 if included or self.top_logprobs else None

    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [Item(role="user", content=self.input)]
        return self.input


RESPONSES = Schema(ResponsesRequest)
