"""What a model's text must be: thoughts if it may think, then calls of tools or the answer."""

from __future__ import annotations

import enum
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.dialect import Dialect
from cllm.api.chat.tools import held_tools
from cllm.api.formats.grammar import Grammar, thoughts
from cllm.engine import InvalidRequest
from cllm.engine.constraints.constraint import Constraint

if TYPE_CHECKING:
    from cllm.api.constraint_fields import Asked
    from cllm.engine import Engine


class Thinking(enum.Enum):
    """Whether thoughts come before what the text says.

                 the parser looks for them   a constraint lets them pass   the prompt opened them
    NONE         no                          no                            no
    UNASKED      yes                         no                            no
    ALLOWED      yes                         yes                           no
    OPENED       yes                         yes                           yes
    """

    NONE = enum.auto()
    UNASKED = enum.auto()
    ALLOWED = enum.auto()
    OPENED = enum.auto()


def thinking_of(conversation: Conversation, dialect: Dialect, prompt: str) -> Thinking:
    """What applies to the answer. prompt: the rendered text."""
    if dialect.format.channels or is_plain(conversation.response):
        return Thinking.NONE
    begin, end = dialect.think
    if conversation.continued:
        if conversation.open_thoughts:
            return Thinking.OPENED
        said = str(conversation.messages[-1].get("content") or "")
        return Thinking.OPENED if begin in said and end not in said else Thinking.NONE
    if prompt.rstrip().endswith(begin.rstrip()):
        return Thinking.OPENED
    silent = conversation.reasoning in (False, "none")
    return Thinking.UNASKED if silent or not dialect.thinks else Thinking.ALLOWED


def is_plain(response: Asked | None) -> bool:
    """Whether the answer is text of a grammar, which has neither thoughts nor calls."""
    return response is not None and response.constraint.kind not in ("json_schema", "json_object")


def constraint_of(
    engine: Engine,
    conversation: Conversation,
    dialect: Dialect,
    tools: Sequence[Tool],
    thinking: Thinking,
) -> Constraint | None:
    """The constraint: of all that is wanted, as much as can be held. Raises InvalidRequest.

    Tools are checked one by one only if all of them together cannot be held: that is slower.
    """
    response = conversation.response
    if response is not None and is_plain(response):
        return response.constraint
    if thinking in (Thinking.ALLOWED, Thinking.OPENED):
        _budget(engine, conversation, dialect)  # refuses one that cannot be held
    try:
        return _compiled(engine, conversation, dialect, tools, thinking)
    except InvalidRequest:
        tools = held_tools(engine, conversation)
        conversation = replace(conversation, offer=None)  # these tools are not those of the offer
    try:
        return _compiled(engine, conversation, dialect, tools, thinking)
    except InvalidRequest as error:
        forced = conversation.choice == "required" or conversation.response is not None
        if forced or any(tool.strict for tool in tools):
            raise InvalidRequest("tools", f"{len(tools)} tools", error.expected) from None
        return None


def _compiled(
    engine: Engine,
    conversation: Conversation,
    dialect: Dialect,
    tools: Sequence[Tool],
    thinking: Thinking,
) -> Constraint | None:
    """All of it as one constraint; raises InvalidRequest where it cannot be held."""
    response = conversation.response.constraint if conversation.response is not None else None
    thinks = thinking in (Thinking.ALLOWED, Thinking.OPENED)
    budget = _budget(engine, conversation, dialect) if thinks else None
    free = not tools and response is None
    if budget is None and (free or (not tools and not thinks and dialect.format.answer is None)):
        return response
    make = partial(_source, engine, conversation, dialect, tools, thinking, budget)
    if response is None:
        names = tuple(tool.name for tool in tools)  # those that may be called
        about = names, conversation.choice, conversation.parallel, thinking, budget
        source = conversation.once(about, make)
    else:  # a schema may take far more memory than the tools
        source = make()
    constraint = Constraint("lark", source)
    engine.check_constraint(constraint, wait=False, tenant=conversation.tenant)
    return constraint


def _source(
    engine: Engine,
    conversation: Conversation,
    dialect: Dialect,
    tools: Sequence[Tool],
    thinking: Thinking,
    budget: int | None,
) -> str:
    """The grammar of all of it. Raises InvalidRequest."""
    response = conversation.response.constraint if conversation.response is not None else None
    format = dialect.format
    grammar = Grammar(engine.mark)
    called = conversation.choice == "required"
    expressions = ["TEXT"] if not tools and response is None else []
    if tools:
        forced = called or response is not None
        expressions.append(format.rules(grammar, tools, forced, conversation.parallel))
    if response is not None and not called:
        schema = (
            json.loads(response.source) if response.kind == "json_schema" else {"type": "object"}
        )
        answer = grammar.json(schema)
        expressions.append(answer if format.answer is None else format.answer(grammar, answer))
    start = grammar.one_of(*expressions)
    if thinking in (Thinking.ALLOWED, Thinking.OPENED):
        opened = thinking is Thinking.OPENED
        start = f"{thoughts(grammar, dialect.think, opened, budget)} {start}"
    return grammar.source(start)


def _budget(engine: Engine, conversation: Conversation, dialect: Dialect) -> int | None:
    """The most tokens of thoughts; None: any number. Raises InvalidRequest.

    They can be counted where a single token ends the thoughts.
    """
    budget = conversation.budget
    if budget is None or budget < 0:
        return None
    end = dialect.think[1]
    if engine.mark(end) is None:
        if conversation.soft_budget:
            return None
        expected = f"-1: this model has no token that ends thoughts ({end!r} is text)"
        raise InvalidRequest("thinking_budget_tokens", budget, expected)
    return budget
