"""Promises of Ollama's API, asked with Ollama's own Python client."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import ollama
import pytest

from cllm.api.ollama import chat
from cllm.engine import Engine
from tests.api.api_client import Live, serving
from tests.embedding_models import WIDTH, bert

MODEL = "cllm-stories-q8_0"
FOX = "Tell me a story about a fox and a lantern."
TALK = [{"role": "user", "content": FOX}]
GREEDY = {"temperature": 0, "num_predict": 40}
BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "hero": {"type": "string", "enum": ["fox", "owl"]},
        "pages": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["hero", "pages"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "print_book", "parameters": BOOK}}


@pytest.fixture(scope="module")
def embedding() -> Iterator[Live]:
    with Engine.load(bert("mean"), flash_attn="off") as engine, serving(engine) as live:
        yield live


@pytest.fixture
def client(stories: Live) -> ollama.Client:
    return ollama.Client(stories.url)


def post(live: Live, path: str, body: dict[str, Any]) -> Any:
    return live.session.post(live.url + path, json=body)


def test_a_chat_is_answered_whole_and_in_lines(client: ollama.Client) -> None:
    whole = client.chat(MODEL, TALK, options=GREEDY)
    assert "fox" in (whole.message.content or "")
    assert whole.done and whole.done_reason == "length" and whole.eval_count == 40
    assert whole.prompt_eval_count and whole.eval_duration and whole.total_duration
    lines = list(client.chat(MODEL, TALK, options=GREEDY, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


def test_it_streams_unless_told_otherwise(stories: Live) -> None:
    body = {"model": MODEL, "messages": TALK, "options": GREEDY}
    response = post(stories, "/api/chat", body)
    assert response.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert len(lines) > 10 and lines[-1]["done"]


def test_a_prompt_is_answered_and_the_next_one_goes_on_from_its_context(
    client: ollama.Client,
) -> None:
    first = client.generate(MODEL, FOX, options=GREEDY, system="You tell stories.")
    assert "fox" in (first.response or "") and first.context
    second = client.generate(MODEL, "And then?", context=first.context, options=GREEDY)
    assert second.prompt_eval_count and second.prompt_eval_count > len(first.context)


def test_a_raw_prompt_is_continued(client: ollama.Client) -> None:
    whole = client.generate(MODEL, "Once upon a time", raw=True, options=GREEDY)
    assert whole.response and whole.context is None
    lines = client.generate(MODEL, "Once upon a time", raw=True, options=GREEDY, stream=True)
    assert "".join(line.response or "" for line in lines) == whole.response


@pytest.mark.parametrize("tag", ["", ":latest"])
def test_the_model_has_its_name_with_or_without_a_tag(client: ollama.Client, tag: str) -> None:
    assert client.generate(MODEL + tag, "Hi", options={"num_predict": 1}).model == MODEL + tag


@pytest.mark.parametrize("call", ["chat", "generate", "embed", "embeddings", "show"])
def test_another_model_is_not_found(client: ollama.Client, call: str) -> None:
    fields: dict[str, dict[str, Any]] = {
        "chat": {"messages": TALK},
        "generate": {"prompt": "x"},
        "embed": {"input": "x"},
        "embeddings": {"prompt": "x"},
    }
    with pytest.raises(ollama.ResponseError, match=f"'other' not found.*{MODEL}") as caught:
        getattr(client, call)(model="other", **fields.get(call, {}))
    assert caught.value.status_code == 404


def test_a_format_holds(client: ollama.Client) -> None:
    free = client.chat(MODEL, TALK, format="json", options={"num_predict": 60, "seed": 1})
    assert (free.message.content or "").startswith("{")
    for seed in range(3):
        options = {"num_predict": 60, "seed": seed}
        for said in (
            client.chat(MODEL, TALK, format=BOOK, options=options).message.content,
            client.generate(MODEL, FOX, format=BOOK, options=options).response,
            client.generate(MODEL, FOX, format=BOOK, options=options, raw=True).response,
        ):
            book = json.loads(said or "")
            assert book["hero"] in ("fox", "owl") and 1 <= book["pages"] <= 9


def test_a_bad_format_is_refused_by_its_name(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"^format") as caught:
        client.chat(MODEL, TALK, format={"type": "no such type"})
    assert caught.value.status_code == 400


def test_the_history_of_a_tool_call_needs_no_ids(client: ollama.Client) -> None:
    call = {"function": {"name": "print_book", "arguments": {"hero": "fox", "pages": 3}}}
    talk: list[dict[str, Any]] = [
        *TALK,
        {"role": "assistant", "content": "", "tool_calls": [call, call]},
        {"role": "tool", "content": "printed", "tool_name": "print_book"},
        {"role": "tool", "content": "printed again"},
    ]
    answer = client.chat(MODEL, talk, tools=[TOOL], options=GREEDY)
    assert answer.done


def test_a_call_is_one_line_with_an_object_as_arguments(
    stories: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = chat.conversation_of

    def forced(asked: Any) -> Any:
        return dataclasses.replace(plain(asked), choice="required")

    # No field of Ollama's API forces a call, and the built-in model makes none by itself.
    monkeypatch.setattr(chat, "conversation_of", forced)
    # Not with the client, which drops keywords of the schema such as maximum.
    body: dict[str, Any] = {"model": MODEL, "messages": TALK, "tools": [TOOL]}
    body["options"] = {"num_predict": 200, "temperature": 0}
    whole = ollama.ChatResponse(**post(stories, "/api/chat", {**body, "stream": False}).json())
    calls = list(whole.message.tool_calls or ())
    assert calls and calls[0].function.name == "print_book"
    assert calls[0].function.arguments["hero"] in ("fox", "owl")
    streamed = [
        call
        for line in post(stories, "/api/chat", body).text.splitlines()
        for call in ollama.ChatResponse(**json.loads(line)).message.tool_calls or ()
    ]
    assert streamed == calls


def test_logprobs_are_those_of_the_text(client: ollama.Client) -> None:
    whole = client.chat(MODEL, TALK, options=GREEDY, logprobs=True, top_logprobs=2)
    assert whole.logprobs is not None
    assert "".join(each.token for each in whole.logprobs) == whole.message.content
    assert all(len(each.top_logprobs or ()) == 2 for each in whole.logprobs)


def test_stop_strings_and_options_apply(client: ollama.Client) -> None:
    text = client.generate(MODEL, FOX, options=GREEDY).response or ""
    word = text.split()[5]
    cut = client.generate(MODEL, FOX, options={**GREEDY, "stop": [word]})
    assert cut.response == text[: text.index(word)] and cut.done_reason == "stop"
    seeds = {
        client.generate(MODEL, FOX, options={"seed": 7, "num_predict": 20}).response
        for _ in range(3)
    }
    assert len(seeds) == 1


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/api/generate", "images", ["aGk="]),
        ("/api/generate", "template", "{{ .Prompt }}"),
        ("/api/generate", "suffix", "end"),
        ("/api/chat", "options", {"tfs_z": 0.5}),
        ("/api/chat", "options", {"penalize_newline": False}),
        ("/api/chat", "options", {"temperature": -1}),
        ("/api/chat", "options", {"repeat_penalty": -1}),
        ("/api/chat", "options", {"mirostat": 3}),
        ("/api/chat", "think", "deeply"),
        ("/api/chat", "format", "xml"),
        ("/api/chat", "messages", [{"role": "user", "content": "x", "images": ["aGk="]}]),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    stories: Live, path: str, field: str, value: Any
) -> None:
    body = {"model": MODEL, "prompt": "x", "messages": TALK, field: value}
    response = post(stories, path, body)
    name = next(iter(value)) if isinstance(value, dict) else field
    if field == "messages":
        name = "images"
    assert response.status_code == 400 and name in response.json()["error"]


def test_a_request_without_a_prompt_loads_the_model(client: ollama.Client) -> None:
    assert client.generate(MODEL).done_reason == "load"
    assert client.generate(MODEL, keep_alive=0).done_reason == "unload"
    assert client.chat(MODEL).done_reason == "load"


def test_the_served_model_is_listed_shown_and_pulled(client: ollama.Client) -> None:
    (listed,) = client.list().models
    (running,) = client.ps().models
    assert listed.model == running.model == MODEL and listed.size == running.size
    assert running.context_length == 2048
    shown = client.show(MODEL)
    assert {"completion", "tools"} <= set(shown.capabilities or ())
    assert (shown.modelinfo or {})["general.architecture"] == "qwen3"
    assert client.pull(MODEL).status == "success"
    assert [step.status for step in client.pull(MODEL, stream=True)][-1] == "success"


def test_the_store_of_models_is_refused_with_a_remedy(client: ollama.Client) -> None:
    calls: tuple[Callable[[], Any], ...] = (
        lambda: client.pull("other"),
        lambda: client.delete(MODEL),
        lambda: client.copy(MODEL, "copy"),
        lambda: client.create("copy", from_=MODEL),
        lambda: client.push(MODEL),
    )
    for call in calls:
        with pytest.raises(ollama.ResponseError, match=r"--model FILE\.gguf") as caught:
            call()
        assert caught.value.status_code == 501


def test_its_version_satisfies_clients(stories: Live) -> None:
    version = stories.session.get(stories.url + "/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


def test_texts_become_vectors(embedding: Live) -> None:
    client, name = ollama.Client(embedding.url), embedding.service.model_id
    many = client.embed(name, ["the cat", "a dog"])
    assert [len(vector) for vector in many.embeddings] == [WIDTH, WIDTH]
    one = client.embeddings(name, "the cat").embedding
    assert one == pytest.approx(many.embeddings[0], abs=2e-4)
    assert len(client.embed(name, "the cat", dimensions=8).embeddings[0]) == 8
    assert client.show(name).capabilities == ["embedding"]


def test_a_long_text_is_cut_unless_that_is_refused(embedding: Live) -> None:
    client, name = ollama.Client(embedding.url), embedding.service.model_id
    long = "the cat " * 5000
    assert len(client.embed(name, long).embeddings[0]) == WIDTH
    with pytest.raises(ollama.ResponseError) as caught:
        client.embed(name, long, truncate=False)
    assert caught.value.status_code == 400


def test_errors_have_its_shape(stories: Live) -> None:
    response = post(stories, "/api/nothing", {})
    assert response.status_code == 404 and set(response.json()) == {"error"}
