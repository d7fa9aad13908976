"""The API on a real vocabulary and template: chats, schemas, stops, calls, text of many scripts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

from tests.api.api_client import Live, events

ASK: list[Any] = [{"role": "user", "content": "Name three colours."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["fröhlich", "悲しい", "🙂"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 30}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCRIPTS = ["人工智能是计算机科学的一个分支", "🙂🌍👩‍👩‍👧‍👦", "Zoë naïve ß", "مرحبا", "a\tb\n\n  c"]


def said(client: openai.OpenAI, messages: list[Any], **fields: Any) -> str:
    answer = client.chat.completions.create(
        model="any", messages=messages, temperature=0, max_tokens=24, **fields
    )
    return answer.choices[0].message.content or ""


def test_a_chat_of_several_turns_is_the_template_by_hand(client: openai.OpenAI, live: Live) -> None:
    messages: list[Any] = [{"role": "system", "content": "You answer briefly."}]
    by_hand = "<|im_start|>system\nYou answer briefly.<|im_end|>\n"
    for question in ("Name three colours.", "And three animals?", "Which was the first colour?"):
        messages.append({"role": "user", "content": question})
        by_hand += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompt = live.post("/apply-template", {"messages": messages}).json()["prompt"]
        assert prompt == by_hand
        answer = said(client, messages)
        assert answer
        assert "<|im_" not in answer
        messages.append({"role": "assistant", "content": answer})
        by_hand += f"{answer}<|im_end|>\n"


def test_a_strict_schema_is_kept(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Invent a person."}], max_tokens=200,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON, "strict": True},
        },
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), PERSON)


def test_a_forced_call_is_valid(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "How is the weather in Rome?"}],
        tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=200,
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_stop_string_that_is_cut_across_tokens_ends_the_text(
    client: openai.OpenAI, live: Live, streamed: bool
) -> None:
    whole = said(client, ASK)
    pieces = [
        live.ask("/decode", tokens=[token])["text"]
        for token in live.ask("/encode", text=whole, add_special=False)["tokens"]
    ]
    assert "".join(pieces) == whole
    for index in range(2, len(pieces) - 2):
        # The end of one token, and the beginning of the next.
        stop = pieces[index][-2:] + pieces[index + 1][:2]
        before = whole[: whole.index(stop)]
        if not streamed:
            assert said(client, ASK, stop=[stop]) == before
            continue
        chunks = client.chat.completions.create(
            model="any", messages=ASK, temperature=0, max_tokens=24, stop=[stop], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == before


@pytest.mark.parametrize("text", SCRIPTS)
def test_text_of_any_script_goes_through_the_vocabulary_unchanged(live: Live, text: str) -> None:
    tokens = live.ask("/encode", text=text, add_special=False)["tokens"]
    assert live.ask("/decode", tokens=tokens)["text"] == text


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_character_of_several_tokens_is_streamed_whole(live: Live, text: str) -> None:
    grammar = f"root ::= {json.dumps(text, ensure_ascii=False)}"
    body = {"prompt": "Say it:", "n_predict": 100, "temperature": 0, "grammar": grammar}
    with live.post("/completion", {**body, "stream": True}, stream=True) as response:
        deltas = [event["content"] for event in events(response.iter_content(None))]
    assert "".join(deltas) == text
    assert all("\ufffd" not in delta for delta in deltas)
