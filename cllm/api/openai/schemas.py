"""Bodies of the two kinds of completion. Unknown fields are ignored, null means left out.

Source: the OpenAI API reference, "Completions" and "Chat". Fields that exist there and are not
supported here are declared, so that they are refused by name and never ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from cllm.api.choices import MOST_CHOICES
from cllm.api.llama_fields import OrAll, llama_logprobs
from cllm.api.sampling import SamplingFields, given_sampling
from cllm.api.schemas import INT32, Schema, TokenId
from cllm.engine import SamplingParams
from cllm.engine.sampling.params import MAX_NAMED_LOGPROBS

if TYPE_CHECKING:
    from cllm.api.service import Service


Count = Annotated[int, Meta(ge=1, le=INT32)]
Choices = Annotated[int, Meta(ge=1, le=MOST_CHOICES)]
Alternatives = Annotated[int, Meta(ge=0, le=20)]

# A field with one of these values asks for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "modalities": (None, ["text"]),
    "web_search_options": (None,),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
}
# What to use in place of a field that is not supported.
_INSTEAD = {"functions": "use tools", "function_call": "use tool_choice"}


class StreamOptions(Struct):
    """What a stream sends in addition to the text."""

    include_usage: bool | None = None


class Sampled(SamplingFields, kw_only=True):
    """The fields that both kinds of completion share."""

    SERVED: ClassVar[frozenset[str]] = frozenset(("prompt_logprobs",))

    model: str | None = None
    max_tokens: OrAll | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | Annotated[list[Any], Meta(max_length=0)] | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_NAMED_LOGPROBS)] | None = None
    prompt_logprobs: Alternatives | None = None
    return_tokens_as_token_ids: bool | None = None

    def __post_init__(self) -> None:
        """Refuse what is not supported: ValueErrors become the 400's text."""
        super().__post_init__()
        for name, nothing in NOTHING.items():
            if getattr(self, name, None) not in nothing:
                raise ValueError(f"{name}: is not supported; {_INSTEAD.get(name, 'leave it out')}")
        if self.stream and self.prompt_logprobs is not None:
            raise ValueError("prompt_logprobs: not in a stream; leave out stream")
        if self.logprob_token_ids and self.post_sampling_probs:
            raise ValueError("logprob_token_ids: not with post_sampling_probs; leave one out")

    @property
    def streams_usage(self) -> bool:
        """Whether the stream ends with a chunk that counts tokens."""
        options = self.stream_options
        return isinstance(options, StreamOptions) and bool(options.include_usage)

    def sampling(self, service: Service, choice: int, **more: Any) -> SamplingParams:
        """How choice number `choice` is made; raises InvalidRequest.

        more: further fields of SamplingParams; None leaves them as the request says.
        """
        given = given_sampling(self, service)
        if self.seed is not None:
            given["seed"] = None if self.seed == -1 else self.seed + choice
        given |= llama_logprobs(self)
        given |= {name: value for name, value in more.items() if value is not None}
        if self.logprob_token_ids:
            given["logprob_token_ids"] = tuple(self.logprob_token_ids)
            given.setdefault("logprobs", 0)
        given["max_tokens"] = more["max_tokens"]
        return SamplingParams(**given, report_progress=bool(self.return_progress and self.stream))


class CompletionRequest(Sampled, kw_only=True):
    """Body of ``/v1/completions``."""

    prompt: str | list[str | TokenId | list[TokenId]]
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Alternatives | None = None
    best_of: Choices | None = None

    def __post_init__(self) -> None:
        """Refuse what is not supported, and fields that exclude each other."""
        super().__post_init__()
        if self.suffix and self.echo and self.shown_logprobs is not None:
            raise ValueError("suffix: not with echo and logprobs; leave out one of the three")
        if self.best_of is not None and self.best_of > 1:
            if self.stream:
                raise ValueError("best_of: not in a stream; leave out stream")
            if self.best_of < (self.n or 1):
                raise ValueError(f"best_of: is {self.best_of}; expected at least n, {self.n}")

    @property
    def shown_logprobs(self) -> int | None:
        """How many alternatives of each token to show; None: no log-probabilities."""
        count = self.n_probs or self.logprobs
        return 0 if count is None and self.logprob_token_ids else count

    @property
    def made(self) -> int:
        """Continuations of each prompt to make, of which the best n are shown."""
        return max(self.best_of or 1, self.n or 1)

    @property
    def scored(self) -> int | None:
        """How many alternatives of each token of a prompt to find; None: no log-probabilities."""
        echoed = self.shown_logprobs if self.echo else None
        asked = [count for count in (echoed, self.prompt_logprobs) if count is not None]
        return max(asked, default=None)


class Part(Struct):
    """A part of a message's content."""

    type: Literal["text", "refusal"]
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        """Refuse a part without what its type says."""
        if getattr(self, self.type) is UNSET:
            raise ValueError(f"{self.type}: missing; a part of this type requires it")

    @property
    def said(self) -> str:
        """What it says."""
        return "".join(part for part in (self.text, self.refusal) if isinstance(part, str))


class CalledFunction(Struct):
    """What the assistant called."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct):
    """A call in an earlier answer; one without an id gets one."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"


class Message(Struct, omit_defaults=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None


class Function(Struct):
    """A tool's description."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Struct):
    """A tool; functions are the only kind supported here."""

    function: Function
    type: Literal["function"] = "function"


class Named(Struct):
    """A function by its name."""

    name: str


class NamedTool(Struct):
    """A tool by its name."""

    function: Named
    type: Literal["function"] = "function"


class AllowedTools(Struct):
    """Tools among which the model may choose, and whether it must."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Meta(min_length=1)]


class ToolChoice(Struct):
    """One named tool, or some of them."""

    type: Literal["function", "allowed_tools"] = "function"
    function: Named | None = None
    allowed_tools: AllowedTools | None = None

    def __post_init__(self) -> None:
        """Refuse a choice without what its type says."""
        if getattr(self, self.type) is None:
            raise ValueError(f"{self.type}: missing; a tool_choice of this type requires it")


class ChatRequest(Sampled, kw_only=True):
    """Body of ``/v1/chat/completions``."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: OrAll | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    verbose: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = (
        None
    )
    tools: list[FunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None

    def __post_init__(self) -> None:
        """Refuse what is not supported, and what says nothing without another field."""
        super().__post_init__()
        if self.add_generation_prompt and self.continue_final_message:
            raise ValueError("continue_final_message: cannot be true with add_generation_prompt")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        called = False
        for number, message in enumerate(self.messages):
            called = called or bool(message.tool_calls)
            if message.role == "tool" and not (message.tool_call_id or called):
                raise ValueError(f"messages[{number}].tool_call_id: missing; expected a string")

    @property
    def shows_logprobs(self) -> bool:
        """Whether the tokens of the answer are shown with their log-probabilities."""
        return bool(self.logprobs or self.n_probs or self.logprob_token_ids)


COMPLETION = Schema(CompletionRequest)
CHAT = Schema(ChatRequest)
