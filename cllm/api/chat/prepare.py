"""From a conversation to a prompt, to what holds the model to its format, and to its parser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cllm.api.chat.chat_template import TemplateError
from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.events import Parser, Text
from cllm.api.chat.tools import callable_tools, described, held_tools
from cllm.api.formats import Format, detect, generic
from cllm.api.formats.calls import Calls, short_id
from cllm.api.formats.grammar import Grammar, thoughts
from cllm.api.formats.reader import Reader, Script, Steps
from cllm.api.formats.reasoning import read_reasoning
from cllm.api.service import Service
from cllm.engine import InvalidRequest
from cllm.engine.constraints.constraint import Constraint
from cllm.http import HttpError

if TYPE_CHECKING:
    from cllm.engine import Engine

_TAIL = 16  # tokens at a prompt's end among which thoughts would be opened
# Efforts that OpenAI names and templates do not know -> the nearest that they know.
_EFFORTS = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is to be given, and what reads its text; one parser a generation.

    constraint and spell_special: for SamplingParams' fields of these names.
    """

    tokens: list[int]
    constraint: Constraint | None
    spell_special: bool
    parser: Callable[[], Parser]


def prepare(service: Service, conversation: Conversation) -> Prepared:
    """Get a conversation ready for the engine. Nothing is queued.

    Raises HttpError 400 and InvalidRequest, which name the field of OpenAI's chat completions;
    HttpError 503, EngineClosed; ConstraintPending: ask again when it is compiled.
    """
    engine, template = service.engine, service.chat_template
    format = detect(template.source)
    tools = callable_tools(conversation)
    tokens = _prompt(service, conversation)
    engine.check_prompt(tokens)
    opened = _opened(engine, conversation, format, tokens)
    _check_response(engine, conversation.response)
    plain = conversation.response is not None and not _is_json(conversation.response)
    if plain and tools:
        kind = conversation.response and conversation.response.kind
        raise InvalidRequest(str(kind), "a constraint", "no tools in the same request")
    thinks = format.think is not None and not plain and (opened or not conversation.continued)
    constraint = conversation.response
    if not plain:
        silent = conversation.reasoning in (False, "none")
        may_think = thinks and (opened or (not silent and _think_of(format)[0] in template.source))
        constraint = _held(engine, conversation, format, tools, may_think, opened)

    def write(reader: Reader) -> Steps[None]:
        if thinks:
            yield from read_reasoning(reader, _think_of(format), opened)
        if plain or (not tools and format.think is not None):
            yield from _read_text(reader)
        else:
            yield from format.read(reader, Calls(tools, format.new_id))

    return Prepared(tokens, constraint, format.spell_special and not plain, partial(Script, write))


def _check_response(engine: Engine, response: Constraint | None) -> None:
    if response is not None:
        try:
            engine.check_constraint(response, wait=False)
        except InvalidRequest as error:
            if response.kind != "json_schema":
                raise
            name = "response_format.json_schema.schema"
            raise InvalidRequest(name, error.value, error.expected) from None


def _read_text(reader: Reader) -> Steps[None]:
    while True:
        if reader.text:
            yield Text(reader.skip(len(reader.text)))
        if reader.ended:
            return
        yield None


def prompt_text(service: Service, conversation: Conversation, **variables: Any) -> str:
    """The conversation as the template writes it; variables: more for the template.

    Raises HttpError 400 and 503.
    """
    template = service.chat_template
    messages, given = _shown(template.source, conversation)
    try:
        return template.render(messages, {**given, **variables}, continued=conversation.continued)
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None


def _prompt(service: Service, conversation: Conversation) -> list[int]:
    template = service.chat_template
    messages, variables = _shown(template.source, conversation)
    try:
        return template.tokens(
            service.engine, messages, variables, continued=conversation.continued
        )
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None


def _shown(
    source: str, conversation: Conversation
) -> tuple[Sequence[Mapping[str, Any]], dict[str, Any]]:
    """What a template is given: messages and variables."""
    messages: Sequence[Mapping[str, Any]] = conversation.messages
    tools = described(conversation.tools) if conversation.choice != "none" else []
    variables = {**_reasoning(conversation.reasoning), **conversation.template_kwargs}
    if "tools" not in source:
        messages = generic.described(messages, tools)
    elif tools:
        variables["tools"] = tools
    if detect(source).new_id is short_id:
        messages = [_with_short_ids(message) for message in messages]
    return messages, variables


def _reasoning(wanted: bool | str | None) -> dict[str, Any]:
    """The variables by which templates are told to think."""
    if wanted is None:
        return {}
    on = wanted not in (False, "none")
    variables: dict[str, Any] = {"enable_thinking": on, "thinking": on}
    if isinstance(wanted, str):
        variables["reasoning_effort"] = _EFFORTS.get(wanted, wanted)
    return variables


def _with_short_ids(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with ids as Mistral's templates demand them, whoever made them."""
    shown = dict(message)
    if shown.get("tool_calls"):
        shown["tool_calls"] = [{**call, "id": _short(call["id"])} for call in shown["tool_calls"]]
    if shown.get("tool_call_id"):
        shown["tool_call_id"] = _short(shown["tool_call_id"])
    return shown


def _short(id: str) -> str:
    if len(id) == 9 and id.isascii() and id.isalnum():
        return id
    return hashlib.sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _opened(
    engine: Engine, conversation: Conversation, format: Format, tokens: Sequence[int]
) -> bool:
    """Whether the prompt ends within the model's thoughts."""
    if format.think is None:
        return False
    begin, end = format.think
    if conversation.continued:
        said = str(conversation.messages[-1].get("content") or "")
        return begin in said and end not in said
    return engine.detokenize(tokens[-_TAIL:]).rstrip().endswith(begin)


def _think_of(format: Format) -> tuple[str, str]:
    assert format.think is not None
    return format.think


def _is_json(constraint: Constraint) -> bool:
    return constraint.kind in ("json_schema", "json_object")


def _held(
    engine: Engine,
    conversation: Conversation,
    format: Format,
    tools: Sequence[Tool],
    thinks: bool,
    opened: bool,
) -> Constraint | None:
    """What the text must be: of all that is wanted, as much as can be held. Raises InvalidRequest.

    Tools are looked at one by one only where all of them together cannot be held: that is slower.
    """
    try:
        return _constraint(engine, conversation, format, tools, thinks, opened)
    except InvalidRequest:
        tools = held_tools(engine, conversation)
    try:
        return _constraint(engine, conversation, format, tools, thinks, opened)
    except InvalidRequest as error:
        forced = conversation.choice == "required" or conversation.response is not None
        if forced or any(tool.strict for tool in tools):
            raise InvalidRequest("tools", f"{len(tools)} tools", error.expected) from None
        return None


def _constraint(
    engine: Engine,
    conversation: Conversation,
    format: Format,
    tools: Sequence[Tool],
    thinks: bool,
    opened: bool,
) -> Constraint | None:
    """What the whole text must be: thoughts, then calls or the wanted answer."""
    response = conversation.response
    if not tools and (response is None or (not thinks and format.answer is None)):
        return response
    grammar = Grammar(partial(_marker_token, engine))
    expressions = []
    if tools:
        forced = conversation.choice == "required"
        expressions.append(
            format.rules(grammar, tools, forced or response is not None, conversation.parallel)
        )
    if response is not None and conversation.choice != "required":
        schema = (
            json.loads(response.source) if response.kind == "json_schema" else {"type": "object"}
        )
        answer = grammar.json(schema)
        expressions.append(answer if format.answer is None else format.answer(grammar, answer))
    start = grammar.one_of(*expressions)
    if thinks:
        start = f"{thoughts(grammar, _think_of(format), opened)} {start}"
    constraint = Constraint("lark", grammar.source(start))
    engine.check_constraint(constraint, wait=False)
    return constraint


def _marker_token(engine: Engine, marker: str) -> int | None:
    """The token that a marker is, if it is a control token or looks like one."""
    special = engine.tokenize(marker, add_special=False, parse_special=True)
    if len(special) != 1:
        return None
    text = engine.tokenize(marker, add_special=False)
    return special[0] if text != special or marker[0] + marker[-1] == "<>" else None
