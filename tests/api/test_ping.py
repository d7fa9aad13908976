"""Streams are pinged while the prompt waits or is read, and the official clients ignore it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest

from cllm.api.stream import GenerationStream
from cllm.http import ServerConfig
from cllm.http.sse import PING
from tests.api.api_client import PATIENCE, Live, begin_post, events, frozen, read_until, serving

MODEL = "cllm-stories-q8_0"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
OFTEN = 0.05  # s between two pings
ANTHROPIC_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def chat(live: Live) -> str:
    client = openai.OpenAI(base_url=live.url + "/v1", api_key="-")
    chunks = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, max_tokens=8, temperature=0
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def completions(live: Live) -> str:
    client = openai.OpenAI(base_url=live.url + "/v1", api_key="-")
    chunks = client.completions.create(
        model=MODEL, prompt="Once", stream=True, max_tokens=8, temperature=0
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


def responses(live: Live) -> str:
    client = openai.OpenAI(base_url=live.url + "/v1", api_key="-")
    with client.responses.stream(
        model=MODEL, input="Hello!", max_output_tokens=16, temperature=0
    ) as stream:
        return stream.get_final_response().output_text


def messages(live: Live) -> str:
    client = anthropic.Anthropic(base_url=live.url, api_key="-")
    with client.messages.stream(
        model=MODEL, messages=HELLO, max_tokens=8, extra_body={"temperature": 0}
    ) as stream:
        return stream.get_final_text()


@pytest.mark.parametrize(
    ("ask", "ping"),
    [(chat, PING), (completions, PING), (responses, PING), (messages, ANTHROPIC_PING)],
)
def test_an_official_client_takes_pings(
    stories: Live, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Live], str], ping: bytes
) -> None:
    undisturbed = ask(stories)
    assert undisturbed
    take_ping, sent, pinged = GenerationStream.take_ping, [], threading.Event()

    def watched(stream: GenerationStream) -> bytes:
        sent.append(take_ping(stream))
        if len(sent) == 4:  # the one before has left
            pinged.set()
        return sent[-1]

    monkeypatch.setattr(GenerationStream, "take_ping", watched)
    said: list[str] = []
    with serving(stories.engine, config=ServerConfig(sse_ping=OFTEN, grace=5.0)) as live:
        thread = threading.Thread(target=lambda: said.append(ask(live)))
        with frozen(stories.engine):  # the prompt waits to be read
            thread.start()
            assert pinged.wait(PATIENCE)
        thread.join(PATIENCE)
    assert said == [undisturbed]
    assert set(sent) == {ping}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/generate_stream", {"prompt": "Hello"}),
        ("/generate", {"prompt": "Hello", "stream": True}),
        ("/completion", {"prompt": "Hello", "stream": True, "n_predict": 4}),
    ],
)
def test_a_stream_is_answered_and_pinged_before_its_prompt_is_read(
    live: Live, path: str, fields: dict[str, Any]
) -> None:
    with serving(live.engine, config=ServerConfig(sse_ping=OFTEN, grace=5.0)) as own:
        with frozen(live.engine):
            peer = begin_post(own, path, {**fields, "max_tokens": 4})
            received = read_until(peer, b"4\r\n: \n\n\r\n4\r\n: \n\n\r\n")
            assert received.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"data" not in received
        with peer:
            assert b"data: " in read_until(peer, b"0\r\n\r\n")


def test_without_pings_nothing_is_sent_while_the_prompt_waits(live: Live) -> None:
    with serving(live.engine, config=ServerConfig(sse_ping=0, grace=5.0)) as own:
        with frozen(live.engine):
            peer = begin_post(own, "/generate_stream", {"prompt": "Hello", "max_tokens": 4})
            assert read_until(peer, b"\r\n\r\n").endswith(b"\r\n\r\n")
            connection = max(own.server._connections.values(), key=lambda c: c.fd)
            assert connection.deadline == float("inf")
        with peer:
            body = read_until(peer, b"0\r\n\r\n")
            assert PING not in body


def test_the_parser_of_these_tests_ignores_comments() -> None:
    assert list(events(iter([b": \n\ndata: {}\n", b"\n: x\n\n"]))) == [{}]
