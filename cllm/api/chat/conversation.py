"""A conversation and what is asked of its next turn, in the form that all APIs share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cllm.api.chat.offer import Offer
    from cllm.api.constraint_fields import Asked


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. parameters: the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False

    @property
    def schema(self) -> Mapping[str, Any]:
        """The schema of the arguments, which are always an object."""
        given = self.parameters or {"properties": {}}
        said = {word: value for word, value in given.items() if word != "type" or value is not None}
        return {"type": "object", **said}


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages, and how to continue.

    messages: in the format of OpenAI's chat completions: `role`, `content` as one text,
        `reasoning_content`, `tool_calls` (whose `arguments` are JSON text), `tool_call_id`, `name`.
    allowed: the names of the tools that may be called; None: all. A named tool is choice
        "required" with one name allowed.
    parallel: whether more than one call may be made.
    response: the constraint on the answer's text, and the field that asked for it.
    reasoning: False: none; True or an effort's name: think first; None: the template's default.
    template_kwargs: further variables of the template.
    continued: the last message is the assistant's and is continued, not answered.
    tenant: whose turn it is when constraints are compiled. cache_salt: as the client gave it.
    offer: remembers what follows from the tools.
    opened: the prompt ends with the start of the assistant's turn, if nothing is continued.
    budget: the most tokens of thoughts, -1 for any number; None: as the server says.
    soft_budget: a budget that this model cannot be held to is ignored, not refused.
    shows_thoughts: they stay in the text; None: as the server says.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    allowed: frozenset[str] | None = None
    parallel: bool = True
    response: Asked | None = None
    reasoning: bool | str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    continued: bool = False
    tenant: str = ""
    cache_salt: str | None = None
    offer: Offer | None = None
    opened: bool = True
    budget: int | None = None
    soft_budget: bool = False
    shows_thoughts: bool | None = None

    @property
    def owner(self) -> tuple[str, ...]:
        """Who alone shares what is remembered of its texts."""
        return (self.tenant,) if self.cache_salt is None else (self.tenant, self.cache_salt)

    def once(self, about: Hashable, make: Callable[[], str]) -> str:
        """A text that follows from the tools and `about`, remembered if there are tools."""
        return make() if self.offer is None else self.offer.once(about, make)

    @property
    def open_thoughts(self) -> str:
        """The thoughts that are continued: those of a last message without text."""
        last = self.messages[-1] if self.continued else {}
        return "" if last.get("content") else str(last.get("reasoning_content") or "")
