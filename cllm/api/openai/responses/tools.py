"""The tools of a response: which are served, and the names by which the model knows them.

Functions and custom tools are served, alone or in a namespace. Tools of OpenAI's own servers, and
tools whose schema only OpenAI's models know, are left out of the prompt: clients add them without
being asked, and work without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from msgspec import Struct

from cllm.api.chat.conversation import Tool
from cllm.api.schemas import NonEmpty

_LEFT_OUT = (
    "web_search", "file_search", "code_interpreter", "computer", "image_generation", "mcp",
    "local_shell", "shell", "apply_patch", "tool_search",
)  # fmt: skip
_SERVED = ("function", "custom", "namespace")
_LONGEST = 64  # characters of a name
_ONE_TEXT: Mapping[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def is_left_out(kind: str) -> bool:
    """Whether tools of this type are left out; types may end with a version."""
    return any(kind == known or kind.startswith(f"{known}_") for known in _LEFT_OUT)


class CustomFormat(Struct):
    """What a custom tool's input must be; a grammar is described to the model, not enforced."""

    type: Literal["text", "grammar"] = "text"
    syntax: str | None = None
    definition: str | None = None


class Member(Struct, omit_defaults=True):
    """A function, or a custom tool, whose input is one text."""

    type: Literal["function", "custom"]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: CustomFormat | None = None


class GivenTool(Struct, omit_defaults=True):
    """A tool of a request."""

    type: str
    name: NonEmpty | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: CustomFormat | None = None
    tools: list[Member] | None = None

    def __post_init__(self) -> None:
        """Refuse unknown types, and tools without a name: ValueErrors become the 400's text."""
        if self.type in _SERVED:
            if self.name is None:
                raise ValueError(f"name: missing; a {self.type} requires it")
        elif not is_left_out(self.type):
            known = ", ".join((*_SERVED, *_LEFT_OUT))
            raise ValueError(f'type: "{self.type[:80]}" is not valid; expected one of {known}')


@dataclass(frozen=True, slots=True)
class Called:
    """A tool as the client calls it. custom: its input is a text, not JSON."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(slots=True)
class Toolbox:
    """The tools that are served.

    tools: as every API has them. fields: where each stands in the request. called: the names in
    the prompt, and the client's names. given: the tools of the request that are served.
    """

    tools: list[Tool] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    called: dict[str, Called] = field(default_factory=dict)
    given: list[GivenTool] = field(default_factory=list)

    @classmethod
    def of(cls, given: Sequence[GivenTool]) -> Toolbox:
        box = cls()
        for number, tool in enumerate(given):
            if tool.type not in _SERVED:
                continue
            box.given.append(tool)
            if tool.type != "namespace":
                box._add(tool, None, f"tools[{number}]")
                continue
            for inner, member in enumerate(tool.tools or ()):
                box._add(member, tool.name, f"tools[{number}].tools[{inner}]")
        return box

    def find(self, name: str, namespace: str | None) -> str | None:
        """The name in the prompt; without a namespace any that has a tool of this name."""
        for shown, called in self.called.items():
            if called.name == name and namespace in (None, called.namespace):
                return shown
        return None

    def _add(self, tool: GivenTool | Member, namespace: str | None, where: str) -> None:
        assert tool.name is not None
        custom = tool.type == "custom"
        shown = shown_name(tool.name, namespace)
        parameters = _ONE_TEXT if custom else tool.parameters
        self.tools.append(Tool(shown, _description(tool), parameters, bool(tool.strict)))
        self.fields.append(where)
        self.called.setdefault(shown, Called(tool.name, namespace, custom))


def shown_name(name: str, namespace: str | None) -> str:
    """A tool's name in the prompt: with its namespace, because names repeat between namespaces."""
    if not namespace:
        return name
    joined = f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"
    if len(joined) <= _LONGEST:
        return joined
    return f"{joined[: _LONGEST - 9]}_{sha256(joined.encode()).hexdigest()[:8]}"


def _description(tool: GivenTool | Member) -> str:
    said, format = tool.description or "", tool.format
    if tool.type != "custom" or format is None or format.type == "text":
        return said
    grammar = f"The input follows this {format.syntax or ''} grammar:\n{format.definition or ''}"
    return f"{said}\n\n{grammar}" if said else grammar
