"""From a conversation to a prompt, to what holds the model to its format, and to its parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cllm.api.chat.conversation import Conversation
from cllm.api.chat.events import Event, Parser, Text
from cllm.api.chat_template import TemplateError
from cllm.api.service import Service
from cllm.http import HttpError

if TYPE_CHECKING:
    from cllm.engine.constraint import Constraint


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
    HttpError 503, EngineClosed.
    """
    engine = service.engine
    try:
        tokens = service.chat_template.tokens(
            engine,
            conversation.messages,
            conversation.template_kwargs,
            continued=conversation.continued,
        )
    except TemplateError as error:
        raise HttpError(400, f"messages: {error}") from None
    engine.check_prompt(tokens)
    return Prepared(tokens, conversation.response, False, _Plain)


class _Plain:
    """Text that is nothing but text."""

    def push(self, text: str) -> list[Event]:
        return [Text(text)]

    def finish(self) -> list[Event]:
        return []
