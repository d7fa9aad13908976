"""Promises of the formats; over 400 lines, since all families pass one list of checks.

A model's text is parsed in any pieces, and nothing is lost.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from cllm.api.chat.chat_template import ChatTemplate
from cllm.api.chat.conversation import Tool
from cllm.api.chat.dialect import THINK, dialect_of
from cllm.api.chat.events import CallArguments, CallBegin, CallEnd, Event, Reasoning, Text
from cllm.api.formats import FORMATS, Format
from cllm.api.formats.calls import Calls
from cllm.api.formats.grammar import Grammar, thoughts
from cllm.api.formats.reader import Reader, Script, Steps
from cllm.api.formats.reasoning import read_reasoning
from tests.api.published_templates import source

NAMED = {format.name: format for format in FORMATS}
WEATHER = Tool(
    "get_weather",
    "The weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "sunny": {"type": "boolean"},
        },
        "required": ["city"],
    },
)
CLOCK = Tool("clock")
REMEMBER = Tool("remember", "", {"properties": {"what": True}})

# What a call of each tool with these arguments looks like once it is read.
ROME: tuple[str, object] = ("get_weather", {"city": "Rome"})
NOW: tuple[str, object] = ("clock", {})

# Format, what the model writes, what it thinks, says, and calls.
UNDERSTOOD: list[tuple[str, str, str, str, list[tuple[str, object]]]] = [
    (
        "hermes",
        '<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "<b>\\"}]Ü"}}\n</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n'
        "</tool_call>",
        "Hm.",
        "I look.",
        [("get_weather", {"city": '<b>"}]Ü'}), NOW],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"city": "Rome"}, "name": "get_weather"}</tool_call> Done.',
        "",
        "Done.",
        [ROME],
    ),
    ("hermes", '<tool_call>{"name": "clock", "arguments": "{}"}</tool_call>', "", "", [NOW]),
    ("hermes", '<tool_call>{"name": "clock", "arguments": {}}', "", "", [NOW]),
    (
        "qwen3-coder",
        'I look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nA\n <b> "c"\n\n'
        "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=sunny>\nTrue\n</parameter>\n"
        "</function>\n</tool_call>",
        "",
        "I look.",
        [("get_weather", {"city": 'A\n <b> "c"\n', "days": 3, "sunny": True})],
    ),
    ("qwen3-coder", "<function=clock>\n</function>", "", "", [NOW]),
    (
        "qwen3-coder",
        "<function=remember>\n<parameter=what>\n[1, {}]\n</parameter>\n</function>",
        "",
        "",
        [("remember", {"what": [1, {}]})],
    ),
    (
        "qwen3-coder",
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "",
        "",
        [NOW],
    ),
    (
        "llama3",
        '{"name": "get_weather", "parameters": {"city": "Rome"}}; '
        '{"type": "function", "name": "clock", "parameters": {}}',
        "",
        "",
        [ROME, NOW],
    ),
    ("llama3", '<|python_tag|>{"name": "clock", "parameters": {}}', "", "", [NOW]),
    (
        "llama3",
        '{"name": "get_weather", "parameters": {"city": "Rome"}}\n'
        '{"name": "clock", "parameters": {}}',
        "",
        "",
        [ROME, NOW],
    ),
    (
        "pythonic",
        '[get_weather(city="a]b\\n", days=2, sunny=true), clock()]',
        "",
        "",
        [("get_weather", {"city": "a]b\n", "days": 2, "sunny": True}), NOW],
    ),
    ("pythonic", "<|python_start|>[clock()]<|python_end|>", "", "", [NOW]),
    (
        "mistral",
        'Well.[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Rome"}, "id": '
        '"abcdefghi"}, {"name": "clock", "arguments": {}}]',
        "",
        "Well.",
        [ROME, NOW],
    ),
    (
        "mistral-args",
        '[THINK]Hm.[/THINK][TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}[TOOL_CALLS]clock[CALL_ID]'
        "123456789[ARGS]{}",
        "Hm.",
        "",
        [ROME, NOW],
    ),
    (
        "deepseek",
        "Well.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
        '{"city": "Rome"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        "Well.",
        [ROME, NOW],
    ),
    (
        "deepseek-fenced",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Rome"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>'
        "clock\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        "",
        [ROME, NOW],
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Rome"}<|call|>',
        "Hm.",
        "",
        [ROME],
    ),
    (
        "gpt-oss",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.clock<|channel|>"
        "commentary json<|message|>{}",
        "Hm.",
        "",
        [NOW],
    ),
    (
        "gpt-oss",
        "<|channel|>commentary<|message|>I look. <|end|><|start|>assistant<|channel|>final"
        "<|message|>It rains.<|return|>",
        "",
        "I look.It rains.",
        [],
    ),
    (
        "gemma-4",
        '<|channel>thought\nHm.<channel|>I look.<|tool_call>call:get_weather{city:<|"|>a,b:{"<|"|>,'
        "days:3,sunny:true}<tool_call|>",
        "Hm.",
        "I look.",
        [("get_weather", {"city": 'a,b:{"', "days": 3, "sunny": True})],
    ),
    (
        "functiongemma",
        "<start_function_call>call:get_weather{city:<escape>Rome<escape>}<end_function_call>",
        "",
        "",
        [ROME],
    ),
    ("generic", '{"name": "clock", "arguments": {}}', "", "", [NOW]),
    (
        "generic",
        'I look. <tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "",
        "I look.",
        [NOW],
    ),
]

# What is no call, whatever it begins like, stays as it is.
TEXT = [
    ("hermes", "  1 < 2 and <tool_call> is a mark\n "),
    ("hermes", 'a\n\n<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call> b'),
    ("hermes", '<tool_call>\n{"name": "clock", "arg'),
    ("hermes", '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "clock" "arguments": {}}</tool_call>'),
    ("hermes", "<think"),
    ("qwen3-coder", "a\n<tool_call>\n<function=nobody>\n</function>\n</tool_call>"),
    ("qwen3-coder", "<function=clock"),
    ("llama3", '{"answer": 42}'),
    ("llama3", 'It is {"name": "clock", "parameters": {}}'),
    ("llama3", "a <|python_tag|> b"),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[clock(1)]"),
    ("pythonic", "[clock("),
    ("pythonic", " <|python_start|> no"),
    ("mistral", "a [TOOL_CALLS] [1]"),
    ("mistral-args", "[TOOL_CALLS]nobody[ARGS]{}"),
    ("deepseek", "a <｜tool▁calls▁begin｜> b"),
    ("deepseek", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>nobody<｜tool▁sep｜>{}"),
    ("gpt-oss", "no channel at all"),
    ("gemma-4", "a <|tool_call>call:nobody{}<tool_call|> b"),
    ("gemma-4", "<|tool_call>call:clock{a:}<tool_call|>"),
    ("generic", '{"name": "nobody", "arguments": {}}'),
]


THREE = (WEATHER, CLOCK, REMEMBER)
MARKS = {"mistral": ("[THINK]", "[/THINK]"), "mistral-args": ("[THINK]", "[/THINK]"),
         "gemma-4": ("<|channel>thought", "<channel|>")}  # fmt: skip


def script_of(format: Format, opened: bool = False, tools: Sequence[Tool] = THREE) -> Script:
    """A parser, where these tools may be called."""

    def write(reader: Reader) -> Steps[None]:
        if not format.channels:
            yield from read_reasoning(reader, MARKS.get(format.name, THINK), opened)
        yield from format.read(reader, Calls(tools, lambda: "id"))

    return Script(write)


def read(
    format: Format, pieces: Sequence[str], opened: bool = False, tools: Sequence[Tool] = THREE
) -> list[Event]:
    """Every event of a text that comes in these pieces; neighbours of a kind as one."""
    script, events = script_of(format, opened, tools), []
    for piece in pieces:
        events += script.push(piece)
    merged: list[Event] = []
    for event in [*events, *script.finish()]:
        last = merged[-1] if merged else None
        if isinstance(event, Text) and isinstance(last, Text):
            merged[-1] = Text(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            merged[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, CallArguments) and isinstance(last, CallArguments):
            merged[-1] = CallArguments(event.index, last.text + event.text)
        else:
            merged.append(event)
    return merged


def calls_of(events: Sequence[Event]) -> list[tuple[str, object]]:
    """(name, arguments) of each call; each must begin, be whole and end, in this order."""
    calls = [event for event in events if not isinstance(event, (Text, Reasoning))]
    found = []
    for number, (begin, arguments, end) in enumerate(
        zip(calls[::3], calls[1::3], calls[2::3], strict=True)
    ):
        assert isinstance(begin, CallBegin) and begin.index == number
        assert isinstance(arguments, CallArguments) and arguments.index == number
        assert end == CallEnd(number)
        found.append((begin.name, json.loads(arguments.text)))
    return found


@pytest.mark.parametrize(("name", "text", "thought", "said", "called"), UNDERSTOOD)
def test_what_models_write_is_understood(
    name: str, text: str, thought: str, said: str, called: list[tuple[str, object]]
) -> None:
    events = read(NAMED[name], [text])
    assert "".join(e.text for e in events if isinstance(e, Reasoning)) == thought
    assert "".join(e.text for e in events if isinstance(e, Text)).strip() == said
    assert calls_of(events) == called


@pytest.mark.parametrize(("name", "text"), TEXT)
def test_what_is_no_call_is_text_to_the_last_character(name: str, text: str) -> None:
    assert read(NAMED[name], [text]) == [Text(text)]


@pytest.mark.parametrize(
    ("name", "text"), [*((name, text) for name, text, *_ in UNDERSTOOD), *TEXT]
)
def test_how_a_text_is_cut_makes_no_difference(name: str, text: str) -> None:
    whole = read(NAMED[name], [text])
    assert read(NAMED[name], list(text)) == whole
    for at in range(len(text) + 1):
        assert read(NAMED[name], [text[:at], text[at:]]) == whole


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, text, *_ in UNDERSTOOD])
def test_no_part_of_a_mark_is_said_while_it_comes(name: str, text: str) -> None:
    script, said = script_of(NAMED[name]), ""
    for character in text:
        said += "".join(event.text for event in script.push(character) if isinstance(event, Text))
        assert not set("<[{") & set(said)  # every mark begins with one of these


_PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<think>", "</think>", '{"name": "clock", "arguments": {}}',
     "[TOOL_CALLS]", "[ARGS]", "clock", "[", "]", "{", "}", '"', "\\", ",", ":", " ", "\n", "a",
     "<function=clock>", "<parameter=city>", "</parameter>", "</function>", "<|channel|>",
     "<|message|>", "<|end|>", "<|start|>", "analysis", " to=functions.clock", "<|tool_call>",
     "call:clock", "<tool_call|>", '<|"|>', "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>",
     "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "clock()", "<|python_tag|>", "<|python_start|>",
     "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "<tool_calls>", "</tool_calls>",
     '<invoke name="clock">', "</invoke>", "<minimax:tool_call>", "<|tool_call_start|>",
     "<|START_ACTION|>", ">>>", "<response>", "<|begin|>assistant", "]<]minimax[>[", "<|open|>",
     "tools<|sep|>", 'call tool="clock"', "<|tools_prefix|>", '{"clock": {', "functools"]
)  # fmt: skip


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@settings(max_examples=40, deadline=None)
@given(parts=st.lists(_PARTS, max_size=12), opened=st.booleans())
def test_nonsense_is_survived_and_cut_anywhere(
    format: Format, parts: list[str], opened: bool
) -> None:
    text = "".join(parts)
    whole = read(format, [text], opened)
    assert read(format, parts, opened) == whole
    assert read(format, list(text), opened) == whole


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", '<tool_call>{"arguments": {"days": 1e999}, "name": "get_weather"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"days": NaN}, "name": "get_weather"}</tool_call>'),
        (
            "qwen3-coder",
            "<function=get_weather>\n<parameter=days>\n1e999\n</parameter>\n"
            "<parameter=sunny>\nNaN\n</parameter>\n</function>",
        ),
        ("pythonic", "[get_weather(days=1e999)]"),
        ("gemma-4", "<|tool_call>call:get_weather{days:1e999}<tool_call|>"),
    ],
)
def test_arguments_are_json_whatever_numbers_stand_in_them(name: str, text: str) -> None:
    for event in read(NAMED[name], [text]):
        if isinstance(event, CallArguments):
            json.loads(event.text, parse_constant=pytest.fail)


def test_a_choice_of_texts_stands_without_quotes_in_an_element() -> None:
    city = {"type": "string", "enum": ["Rome", "true", "3"], "description": "Where"}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    tool, qwen = Tool("get_weather", "", parameters), NAMED["qwen3-coder"]
    for option in ("Rome", "true", "3"):
        call = f"<function=get_weather>\n<parameter=city>\n{option}\n</parameter>\n</function>"
        text = f"<tool_call>\n{call}\n</tool_call>"
        grammar = Grammar(lambda marker: None)
        assert fits(grammar.source(qwen.rules(grammar, [tool], True, False)), text)
        script = Script(lambda reader: qwen.read(reader, Calls([tool], lambda: "id")))
        events = [*script.push(text), *script.finish()]
        written = "".join(event.text for event in events if isinstance(event, CallArguments))
        assert json.loads(written) == {"city": option}


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_every_format_can_hold_what_may_be_null(format: Format) -> None:
    city = {"type": ["string", "null"]}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    grammar = Grammar(lambda marker: None)
    start = format.rules(grammar, [Tool("get_weather", "", parameters)], True, False)
    assert LLMatcher.validate_grammar(grammar.source(start)) == ""


def test_thoughts_that_the_template_opened_begin_at_once() -> None:
    hermes = NAMED["hermes"]
    assert read(hermes, ["Hm.\n", "</think>\n", "\nYes."], opened=True) == [
        Reasoning("Hm."),
        Text("Yes."),
    ]
    assert read(hermes, ["<think>\nHm.</think>Yes."], opened=True)[0] == Reasoning("Hm.")
    assert read(hermes, ["Hm"], opened=True) == [Reasoning("Hm")]


def test_a_call_is_given_out_while_it_comes() -> None:
    script = script_of(NAMED["hermes"])
    begun = script.push('<tool_call>\n{"name": "get_weather", "arguments": {"ci')
    assert begun == [CallBegin(0, "id", "get_weather"), CallArguments(0, '{"ci')]
    assert script.push('ty": "') == [CallArguments(0, 'ty": "')]


@pytest.mark.parametrize(
    ("template", "format"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "hermes"),
        ("Qwen-Qwen3-0.6B", "hermes"),
        ("Qwen3-Coder", "qwen3-coder"),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral"),
        ("Mistral-Small-3.2-24B-Instruct-2506", "mistral-args"),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek-fenced"),
        ("deepseek-ai-DeepSeek-V3.1", "deepseek"),
        ("openai-gpt-oss-120b", "gpt-oss"),
        ("microsoft-Phi-3.5-mini-instruct", "generic"),
    ],
)
def test_the_template_tells_the_format(template: str, format: str) -> None:
    assert dialect_of(ChatTemplate(source(template))).format.name == format


def fits(source: str, text: str) -> bool:
    """Whether the text, whole, is of the grammar."""
    tokenizer = LLTokenizer("byte")
    matcher, tokens = LLMatcher(tokenizer, source), tokenizer.tokenize_str(text)
    return matcher.consume_tokens(tokens) and matcher.is_accepting()


TYPED = Tool(
    "get-weather",
    "The weather",
    {
        "type": "object",
        "properties": {
            "user-id": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"type": "string", "enum": ["C", "F"]},
            "zip": {"type": ["string", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["user-id", "days"],
    },
)
# What marks around single arguments cannot hold.
INTRICATE = Tool(
    "either",
    "",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
)
CALLED: list[tuple[Tool, dict[str, Any]]] = [
    (TYPED, {"user-id": "Zürich, 1", "days": 3}),
    (TYPED, {"user-id": "", "days": -1, "unit": "C", "tags": ["a", "b"]}),
    (CLOCK, {}),
]


def grammar_of(format: Format, tools: list[Tool], forced: bool, many: bool) -> str:
    grammar = Grammar(lambda marker: None)
    start = format.rules(grammar, tools, forced, many)
    if not format.channels:
        start = f"{thoughts(grammar, THINK, False)} {start}"
    source = grammar.source(start)
    assert LLMatcher.validate_grammar(source) == ""
    return source


def spelled(format: Format, called: Sequence[tuple[str, Any]]) -> str:
    """The calls as the model writes them after the prompt."""
    return format.layout.write(called).removeprefix(format.given)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_the_grammar_lets_through_what_the_format_writes_and_reads(format: Format) -> None:
    tools = [WEATHER, TYPED, CLOCK]
    grammars = {
        (forced, many): grammar_of(format, tools, forced, many)
        for forced in (True, False)
        for many in (True, False)
    }
    for tool, arguments in CALLED:
        text = spelled(format, [(tool.name, arguments)])
        for key, grammar in grammars.items():
            assert fits(grammar, text), (key, text)
        assert calls_of(read(format, [text], tools=tools)) == [(tool.name, arguments)]
    several = [(tool.name, arguments) for tool, arguments in CALLED]
    text = spelled(format, several)
    if format.name != "gpt-oss":  # its message ends with a call
        assert fits(grammars[True, True], text) and not fits(grammars[True, False], text)
        assert calls_of(read(format, [text], tools=tools)) == several
    heads = {
        "gpt-oss": "<|channel|>final<|message|>",
        "muse": " to=user<|message|>",
        "functionary-recipients": "all\n",
    }
    said = f"{heads.get(format.name, '')}It rains."
    for (forced, _), grammar in grammars.items():
        assert fits(grammar, said) is not forced
    assert read(format, [said], tools=tools) == [Text("It rains.")]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_whatever_a_forced_call_becomes_is_read(format: Format) -> None:
    """Random texts of the grammar, of schemas that arguments alone can hold and others."""
    for tools in ([TYPED], [INTRICATE]):
        source = grammar_of(format, tools, True, False)
        for seed in range(6):
            text = random_text(source, seed)
            if text is not None:
                ((name, arguments),) = calls_of(read(format, [text], tools=tools))
                assert name == tools[0].name, text
                jsonschema.validate(arguments, dict(tools[0].schema))
                assert read(format, list(text), tools=tools) == read(format, [text], tools=tools)


def random_text(source: str, seed: int) -> str | None:
    """A text of the grammar, by random bytes that it allows; None if it does not end."""
    tokenizer = LLTokenizer("byte")
    matcher, chance, written = LLMatcher(tokenizer, source), random.Random(seed), bytearray()
    for _ in range(600):
        allowed = [token for token in allowed_tokens(matcher, tokenizer) if token < 256]
        if matcher.is_accepting() and (not allowed or chance.random() < 0.5):
            return written.decode("utf-8", "replace")
        plain = [token for token in allowed if 32 <= token < 127]
        # Closing marks are likelier, so that texts end.
        ends = [token for token in plain if chr(token) in '"}]<>/']
        token = chance.choice(ends if ends and chance.random() < 0.3 else plain or allowed)
        assert matcher.consume_token(token)
        written.append(token)
    return None


def allowed_tokens(matcher: LLMatcher, tokenizer: LLTokenizer) -> list[int]:
    mask = matcher.compute_logit_bias()
    return [token for token, bias in enumerate(mask) if bias]
