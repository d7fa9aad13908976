"""The tools of a conversation: their checks, and which schemas a model can be held to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cllm.api.chat.conversation import Conversation, Tool
from cllm.engine import ConstraintPending, InvalidRequest
from cllm.engine.constraints.constraint import Constraint, relaxed
from cllm.engine.constraints.json_keywords import TYPES, is_texts

if TYPE_CHECKING:
    from cllm.engine import Engine

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_AT_ONCE = 8  # schemas of one request that are compiled at the same time
_MOST = 1000  # tools that are looked at one by one; the verdicts of far more are kept
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def callable_tools(conversation: Conversation) -> list[Tool]:
    """The tools that may be called. Raises InvalidRequest for an invalid tool."""
    tools, names = conversation.tools, [tool.name for tool in conversation.tools]
    conversation.once("checks", partial(_check_all, tools, names))
    if conversation.choice == "none":
        return []
    allowed = names if conversation.allowed is None else conversation.allowed
    for name in allowed:
        if name not in names:
            raise InvalidRequest("tool_choice", name, "the name of one of the tools")
    if conversation.choice == "required" and not allowed:
        raise InvalidRequest("tool_choice", "required", "at least one tool in tools")
    return [tool for tool in tools if tool.name in allowed]


def held_tools(engine: Engine, conversation: Conversation) -> list[Tool]:
    """The tools that may be called, each with an enforceable schema of its arguments.

    A schema that cannot be enforced is refused for strict tools and forced calls; otherwise the
    model reads the keywords that cannot be held, and is held to the rest. Raises InvalidRequest,
    and ConstraintPending once several compilations have started, so that the tools do not each need
    a separate round.
    """
    names = [tool.name for tool in conversation.tools]
    forced = conversation.choice == "required"
    held, tools = [], callable_tools(conversation)
    pending: list[ConstraintPending] = []
    if len(tools) > _MOST:
        expected = f"at most {_MOST} tools where one of them cannot be held"
        raise InvalidRequest("tools", f"{len(tools)} tools", expected)
    for tool in tools:
        where = f"tools[{names.index(tool.name)}].function.parameters"
        try:
            held.append(_held(engine, tool, where, forced, conversation.tenant))
        except ConstraintPending as error:
            pending.append(error)
            if len(pending) == _AT_ONCE:
                break
    if pending:
        raise ConstraintPending(pending[-1].settled, lambda: [each.leave() for each in pending])
    return held


def _held(engine: Engine, tool: Tool, where: str, forced: bool, tenant: str) -> Tool:
    try:
        return _checked(engine, tool, tenant)
    except InvalidRequest as error:
        if forced or tool.strict:
            raise InvalidRequest(where, error.value, error.expected) from None
    try:
        return _checked(engine, Tool(tool.name, tool.description, relaxed(tool.schema)), tenant)
    except InvalidRequest:
        return Tool(tool.name, tool.description, _ANY_OBJECT)


def _checked(engine: Engine, tool: Tool, tenant: str) -> Tool:
    # Not to be kept: of more tools than are kept, each round would drop others.
    constraint = Constraint("json_schema", dict(tool.schema))
    engine.check_constraint(constraint, wait=False, keep=False, tenant=tenant)
    return tool


def _kind(schema: Mapping[str, Any]) -> Any:
    """The type, as it is compiled: null says nothing, and some write it in capitals."""
    kind = schema.get("type")
    if kind in (None, "", []):
        return "object"
    return kind.lower() if isinstance(kind, str) else kind


def _check_all(tools: Sequence[Tool], names: Sequence[str]) -> str:
    """Refuse tools that are invalid; the text says that none is."""
    for number, tool in enumerate(tools):
        where = f"tools[{number}].function"
        if not _NAME.fullmatch(tool.name) or names.index(tool.name) != number:
            once = "1 to 64 letters, digits, '_', '-' or '.', different from other tools' names"
            raise InvalidRequest(f"{where}.name", tool.name, once)
        _check(tool.schema, f"{where}.parameters")
    return "valid"


def _check(schema: Any, where: str) -> None:
    """Refuse what is not a JSON schema; which keywords can be enforced is checked elsewhere."""
    if _kind(schema) != "object":
        raise InvalidRequest(f"{where}.type", schema["type"], '"object"')
    waiting: list[tuple[Any, str]] = [(schema, where)]
    while waiting:
        each, path = waiting.pop()
        if isinstance(each, bool):
            continue
        if not isinstance(each, Mapping):
            raise InvalidRequest(path, each, "a JSON schema")
        kinds = _kind(each)
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind not in (*TYPES, "any"):
                raise InvalidRequest(f"{path}.type", kind, f"one of {', '.join(TYPES)}")
        properties = each.get("properties") or {}
        if not isinstance(properties, Mapping):
            raise InvalidRequest(f"{path}.properties", properties, "an object of JSON schemas")
        waiting += [(inner, f"{path}.properties.{name}") for name, inner in properties.items()]
        required = each.get("required") or []
        if required is not True and not is_texts(required):  # true: draft 3
            raise InvalidRequest(f"{path}.required", required, "a list of names")
        if isinstance(each.get("items"), (Mapping, str, int)):
            waiting.append((each["items"], f"{path}.items"))
