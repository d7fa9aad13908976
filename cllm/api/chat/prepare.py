"""A conversation made ready for the engine: its prompt, its constraint, the parser of its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cllm.api.chat.constraint import (
    Thinking,
    constraint_of,
    is_plain,
    thinking_of,
)
from cllm.api.chat.conversation import Conversation
from cllm.api.chat.dialect import dialect_of
from cllm.api.chat.events import Parser, Text
from cllm.api.chat.offer import Offer
from cllm.api.chat.prompt import completed, prompt_of
from cllm.api.chat.tools import callable_tools
from cllm.api.constraint_fields import checked
from cllm.api.envelopes import JSON, encode
from cllm.api.formats.calls import Calls
from cllm.api.formats.reader import Reader, Script, Steps
from cllm.api.formats.reasoning import read_reasoning
from cllm.api.service import Service
from cllm.engine import InvalidRequest, PromptTooLong
from cllm.engine.constraints.constraint import Constraint
from cllm.http import HttpResponse


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the engine is to be given, and what reads its text; one parser a generation.

    text: the prompt as the template wrote it.
    constraint and spell_special: for SamplingParams' fields of these names.
    """

    tokens: list[int]
    text: str
    constraint: Constraint | None
    spell_special: bool
    parser: Callable[[], Parser]


def prepare(service: Service, conversation: Conversation, tenant: str = "") -> Prepared:
    """Get a conversation ready for the engine. Nothing is queued.

    tenant: whose turn it is when constraints are compiled.

    Raises HttpError 400 and InvalidRequest, which name the field of OpenAI's chat completions;
    HttpError 503, EngineClosed; ConstraintPending: ask again when it is compiled.
    """
    conversation = replace(completed(service, conversation), tenant=tenant)
    engine, response = service.engine, conversation.response
    template = service.template_for(bool(conversation.tools))
    if conversation.tools:
        offer = Offer(template, conversation.owner, conversation.tools)
        conversation = replace(conversation, offer=offer)
    dialect = dialect_of(template)
    format = dialect.format
    tools = callable_tools(conversation)
    prompt = prompt_of(service, conversation)
    checked(engine, response, tenant)
    plain = is_plain(response)
    if response is not None and plain and tools:
        raise InvalidRequest(response.field, "a constraint", "no tools together with it")
    if not dialect.parallel:
        conversation = replace(conversation, parallel=False)
    thinking = thinking_of(conversation, dialect, prompt.text)
    constraint = constraint_of(engine, conversation, dialect, tools, thinking)

    shown = conversation.shows_thoughts

    def read(reader: Reader) -> Steps[None]:
        if thinking is not Thinking.NONE and not shown:
            yield from read_reasoning(reader, dialect.think, thinking is Thinking.OPENED)
        if plain or not (tools or format.channels or format.frames):
            yield from read_text(reader)
        else:
            yield from format.read(reader, Calls(tools, format.new_id))

    spell_special = format.spell_special and not plain
    return Prepared(prompt.tokens, prompt.text, constraint, spell_special, partial(Script, read))


def counted(service: Service, conversation: Conversation, tenant: str) -> HttpResponse:
    """The number of tokens of a conversation's prompt, also if it is too long; raises as above."""
    try:
        count = len(prepare(service, conversation, tenant).tokens)
    except PromptTooLong as error:
        count = error.prompt_tokens
    return HttpResponse.bytes(
        encode({"object": "response.input_tokens", "input_tokens": count}), JSON
    )


def read_text(reader: Reader) -> Steps[None]:
    """Everything is the answer."""
    while True:
        if reader.text:
            yield Text(reader.skip(len(reader.text)))
        if reader.ended:
            return
        reader.free = "", Text
        yield None
