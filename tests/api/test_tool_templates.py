"""Promise: a call that a model's template writes is read back, however the text is cut.

For every published template (published_templates.py): the conversation goes through the same
rewriting as a request's, so templates that cannot show calls are checked too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pytest

from cllm.api.chat.chat_template import ChatTemplate
from cllm.api.chat.conversation import Conversation, Tool
from cllm.api.chat.dialect import dialect_of
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text
from cllm.api.chat.prompt import rendered
from cllm.api.formats.calls import Calls
from cllm.api.formats.reader import Reader, Script, Steps
from cllm.api.formats.reasoning import read_reasoning
from tests.api.published_templates import BOS, DIGESTS, EOS, source

NAMES = sorted(DIGESTS["templates"])
QUESTION, SAID, THOUGHT, RESULT = "How is Rome?", "I look.", "Hm, what now.", "a result"
WEATHER = Tool(
    "get-weather",
    "The weather",
    {
        "type": "object",
        "properties": {
            "user-id": {"type": "string"},
            "days": {"type": "integer"},
            "ratio": {"type": "number"},
            "sunny": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "where": {
                "type": "object",
                "properties": {"x": {"type": "integer"}, "name": {"type": "string"}},
            },
        },
        "required": ["user-id"],
    },
)
CLOCK = Tool("clock", "The time", {"type": "object", "properties": {}})
TOOLS = [WEATHER, CLOCK]
HARD: dict[str, Any] = {
    "user-id": 'Zürich "x" <b>&\n{y} \\n',
    "days": -3,
    "ratio": 0.5,
    "sunny": True,
    "tags": ["a", "it's", "3"],
    "where": {"x": 1, "name": "z"},
}
# LFM2.5's template writes a backslash as it is, which reads as the beginning of an escape.
WITHOUT_BACKSLASH = {**HARD, "user-id": HARD["user-id"].replace("\\", "")}
# Its template opens thoughts before the text of a last message and does not close them.
WITHOUT_TEXT = "NVIDIA-Nemotron-Nano-v2"
EASY: dict[str, Any] = {"user-id": "Rome"}


@lru_cache(maxsize=100)
def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(source(name), BOS, EOS)


def call(number: int, name: str, arguments: Any) -> dict[str, Any]:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    function = {"name": name, "arguments": text}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def asked(*messages: dict[str, Any], prompt: bool = True) -> Conversation:
    """A conversation with tools; prompt: the assistant's turn is opened at its end."""
    given = {} if prompt else {"add_generation_prompt": False}
    first = {"role": "user", "content": QUESTION}
    return Conversation([first, *messages], tools=TOOLS, template_kwargs=given)


def written(name: str, message: dict[str, Any]) -> tuple[str, bool]:
    """What the template writes of the assistant's message, and whether thoughts are open before."""
    template = template_of(name)
    dialect = dialect_of(template)
    begin, end = dialect.think
    opening = rendered(template, asked()).rpartition(QUESTION)[2].rstrip()
    for mark in (end, begin.rstrip()):
        opening = opening.removesuffix(mark).rstrip()
    answer = rendered(template, asked(message, prompt=False)).rpartition(QUESTION)[2]
    if answer.startswith(opening):
        answer = answer.removeprefix(opening)
    else:  # Command R+ repeats its instruction after the history
        answer = answer.partition("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>")[0]
    opened = begin.rstrip() not in answer and end in answer and not dialect.format.channels
    return answer, opened


def events_of(name: str, pieces: Sequence[str], opened: bool, cut: bool = False) -> list[Event]:
    """What is read from these pieces; neighbours of a kind as one."""
    dialect = dialect_of(template_of(name))

    def read(reader: Reader) -> Steps[None]:
        if not dialect.format.channels:
            yield from read_reasoning(reader, dialect.think, opened)
        yield from dialect.format.read(reader, Calls(TOOLS, lambda: "id"))

    script, merged = Script(read), list[Event]()
    for event in [*(e for piece in pieces for e in script.push(piece)), *script.finish(cut)]:
        last = merged[-1] if merged else None
        if isinstance(event, (Text, Reasoning)) and type(last) is type(event):
            merged[-1] = type(event)(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            merged[-1] = CallArguments(event.index, last.text + event.text)
        else:
            merged.append(event)
    return merged


def calls_in(events: Sequence[Event]) -> list[tuple[str, Any]]:
    """(name, arguments) of every complete call."""
    begun = {event.index: event.name for event in events if isinstance(event, CallBegin)}
    ended = {event.index for event in events if isinstance(event, CallEnd)}
    texts = {event.index: event.text for event in events if isinstance(event, CallArguments)}
    return [(begun[index], json.loads(texts[index])) for index in sorted(begun) if index in ended]


def said_in(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def token_cuts(text: str, seed: int) -> Iterator[str]:
    """The text in pieces of one to nine characters."""
    chance, at = random.Random(seed), 0
    while at < len(text):
        size = chance.randint(1, 9)
        yield text[at : at + size]
        at += size


@pytest.mark.parametrize("name", NAMES)
def test_a_call_is_read_back_whole_and_cut_at_every_character(name: str) -> None:
    hard = WITHOUT_BACKSLASH if name == "LFM2.5-8B-A1B" else HARD
    message = {"role": "assistant", "content": "", "tool_calls": [call(1, WEATHER.name, hard)]}
    answer, opened = written(name, message)
    whole = events_of(name, [answer], opened)
    assert calls_in(whole) == [(WEATHER.name, hard)]
    for seed in range(8):
        assert events_of(name, list(token_cuts(answer, seed)), opened) == whole, seed
    assert events_of(name, list(answer), opened) == whole


@pytest.mark.parametrize("name", NAMES)
def test_text_and_thoughts_before_a_call_are_told_apart(name: str) -> None:
    message = {
        "role": "assistant",
        "content": "" if name == WITHOUT_TEXT else SAID,
        "reasoning_content": THOUGHT,
        "tool_calls": [call(1, WEATHER.name, EASY)],
    }
    answer, opened = written(name, message)
    whole = events_of(name, [answer], opened)
    assert calls_in(whole) == [(WEATHER.name, EASY)]
    thought = "".join(event.text for event in whole if isinstance(event, Reasoning))
    if THOUGHT in answer:
        assert THOUGHT in thought and THOUGHT not in said_in(whole)
    if SAID in answer and SAID not in thought:
        assert SAID in said_in(whole)
    format = dialect_of(template_of(name)).format
    marks = {mark for mark in (getattr(format.layout, "begin", ""), *format.frames) if mark}
    assert not [mark for mark in marks if mark in said_in(whole)]
    for at in range(len(answer) + 1):
        assert events_of(name, [answer[:at], answer[at:]], opened) == whole, at


@pytest.mark.parametrize("name", NAMES)
def test_parallel_calls_are_read_where_the_template_shows_them(name: str) -> None:
    dialect = dialect_of(template_of(name))
    calls = [call(1, WEATHER.name, EASY), call(2, CLOCK.name, {})]
    results = [
        {"role": "tool", "tool_call_id": f"call0000{number}", "name": each, "content": RESULT}
        for number, each in enumerate((WEATHER.name, CLOCK.name), 1)
    ]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    prompt = rendered(template_of(name), asked(message, *results)).rpartition(QUESTION)[2]
    # Both calls and results are shown, one after another if the template shows one call at a time.
    assert WEATHER.name in prompt and CLOCK.name in prompt and prompt.count(RESULT) == 2
    if dialect.parallel:
        answer, opened = written(name, message)
        assert calls_in(events_of(name, [answer], opened)) == [
            (WEATHER.name, EASY),
            (CLOCK.name, {}),
        ]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_describes_the_tools(name: str) -> None:
    dialect, prompt = dialect_of(template_of(name)), rendered(template_of(name), asked())
    assert WEATHER.name in prompt and "user-id" in prompt and CLOCK.name in prompt
    if not dialect.tools:  # then in the format that is read
        example = dialect.format.layout.write([("<name>", {"<argument>": "<value>"})])
        assert example in prompt


@pytest.mark.parametrize("arguments", ['{"user-id": "Ro', "", " ", "null", "[1]", "5", "true"])
@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments_in_the_history_do_not_end_a_conversation(name: str, arguments: str) -> None:
    message = {
        "role": "assistant",
        "content": "",
        "tool_calls": [call(1, WEATHER.name, arguments)],
    }
    result = {
        "role": "tool",
        "tool_call_id": "call00001",
        "name": WEATHER.name,
        "content": "the arguments are not an object",
    }
    prompt = rendered(template_of(name), asked(message, result)).rpartition(QUESTION)[2]
    assert WEATHER.name in prompt and result["content"] in prompt
    answer, opened = written(name, message)
    ((called, read),) = calls_in(events_of(name, [answer], opened))
    assert called == WEATHER.name
    empty = arguments.strip() in ("", "null")
    assert read == {} if empty else list(read) == ["arguments"]


@pytest.mark.parametrize("name", NAMES)
def test_a_system_message_and_repeated_roles_are_shown(name: str) -> None:
    rules = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": QUESTION}
    for tools in ((), TOOLS):
        prompt = rendered(template_of(name), Conversation([rules, user, user], tools=tools))
        assert "Be brief." in prompt and prompt.count(QUESTION) == 2


@pytest.mark.parametrize("name", NAMES)
def test_no_markup_of_a_cut_call_is_shown(name: str) -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [call(1, WEATHER.name, EASY)]}
    answer, opened = written(name, message)
    last = answer.rindex("Rome")
    whole = said_in(events_of(name, [answer], opened))
    for at in range(last):
        said = said_in(events_of(name, [answer[:at]], opened, cut=True))
        assert whole.startswith(said.strip()) or not said.strip(), (answer[:at], said)


PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %};{% endfor %}"
)


def test_a_template_that_reads_lists_of_parts_gets_the_text() -> None:
    template = ChatTemplate(PARTS)
    user = {"role": "user", "content": "SECRET WORD"}
    assert rendered(template, Conversation([user])) == "user: SECRET WORD;"
    begun = {"role": "assistant", "content": "It is"}
    prompt = rendered(template, Conversation([user, begun], continued=True))
    assert prompt == "user: SECRET WORD;assistant: It is"


def test_a_template_whose_calls_no_format_reads_is_reported() -> None:
    shown = (
        "{% for c in m.tool_calls %}~{{ c.function.name }}~{{ c.function.arguments }}{% endfor %}"
    )
    template = ChatTemplate(
        "{% for m in messages %}{{ m.content }}" + shown + "{% endfor %}{{ tools }}"
    )
    dialect = dialect_of(template)
    assert not dialect.readable
    (warning,) = dialect.warnings()
    assert "form that is not read" in warning
    assert not [n for n in NAMES if dialect_of(template_of(n)).warnings()]


def test_the_format_of_a_template_without_tools_is_instruction_and_history() -> None:
    template = template_of("deepseek-ai-DeepSeek-V3.1")
    message = {"role": "assistant", "content": "", "tool_calls": [call(1, WEATHER.name, EASY)]}
    prompt = rendered(template, asked(message))
    assert prompt.count("<｜tool▁call▁begin｜>") == 2 and "<tool_call>" not in prompt


def test_a_template_thinks_unless_it_is_told_not_to() -> None:
    template = template_of("Qwen-QwQ-32B")
    user = {"role": "user", "content": QUESTION}
    assert rendered(template, Conversation([user])).endswith("<think>\n")
    silent = rendered(template, Conversation([user], reasoning=False))
    assert silent.endswith("</think>")


def test_the_date_of_today_is_given_to_templates_that_ask_for_it() -> None:
    template = ChatTemplate("{{ date_string }}")
    user = {"role": "user", "content": QUESTION}
    assert len(rendered(template, Conversation([user])).split()) == 3
    given = Conversation([user], template_kwargs={"date_string": "1 May 2020"})
    assert rendered(template, given) == "1 May 2020"
