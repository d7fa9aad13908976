"""Promises of log-probabilities, of infilling, and of the fields of every OpenAI response."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.api.api_client import Live, eventually, idle
from tests.api.test_openai import FOX, HELLO, MODEL, refused


@pytest.fixture
def client(stories: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=stories.url + "/v1", api_key="none", max_retries=0) as client:
        yield client
    eventually(lambda: idle(stories.engine), "the engine has no work left")


def test_each_token_of_a_chat_has_its_log_probability(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=FOX, temperature=0, max_tokens=6, logprobs=True, top_logprobs=3
    )
    (choice,) = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None
    tokens = choice.logprobs.content
    assert b"".join(bytes(t.bytes or ()) for t in tokens).decode() == choice.message.content
    assert len(tokens) == 6
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy takes the likeliest
        assert token.top_logprobs[0].logprob == token.logprob
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_a_stream_tells_the_same(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, logprobs=True, top_logprobs=1, **more
        )

    whole = ask().choices[0].logprobs.content
    streamed = [
        token
        for chunk in ask(stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in whole]
    # How a prompt is cut into batches shows in the last digits.
    expected = pytest.approx([token.logprob for token in whole], abs=1e-2)
    assert [token.logprob for token in streamed] == expected


def test_logprobs_without_alternatives_and_none_at_all(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=2, logprobs=True
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert all(token.top_logprobs == [] for token in logprobs.content)
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2)
    assert answer.choices[0].logprobs is None


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_may_be_shown_by_number(client: openai.OpenAI, stories: Live, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "temperature": 0, "max_tokens": 3, "stream": stream,
        "extra_body": {"return_tokens_as_token_ids": True},
    }  # fmt: skip
    engine = stories.engine

    def choices(answer: Any) -> list[Any]:
        return [choice for part in (answer if stream else [answer]) for choice in part.choices]

    prompt = "Once upon a time"
    found = choices(client.completions.create(prompt=prompt, logprobs=2, echo=True, **asked))
    logprobs = [choice.logprobs for choice in found if choice.logprobs is not None]
    tokens = [token for part in logprobs for token in part.tokens]
    numbers = [int(token.removeprefix("token_id:")) for token in tokens]
    assert len(numbers) == len(engine.tokenize(prompt)) + 3
    assert numbers[:-3] == engine.tokenize(prompt)
    assert "".join(choice.text for choice in found).endswith(engine.detokenize(numbers[-3:]))
    tops = [top for part in logprobs for top in part.top_logprobs]
    assert tops[0] is None
    assert all(token in top for token, top in zip(tokens[1:], tops[1:], strict=True))
    found = choices(
        client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **asked)
    )
    shown = [each for choice in found if choice.logprobs for each in choice.logprobs.content]
    assert len(shown) == 3
    for each in shown:
        assert engine.piece(int(each.token.removeprefix("token_id:"))) == bytes(each.bytes)
        assert len(each.top_logprobs) == 2


def test_text_completions_have_the_older_shape(client: openai.OpenAI) -> None:
    def ask(**more: Any) -> Any:
        return client.completions.create(
            model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=5, logprobs=2, **more
        )

    (choice,) = ask().choices
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == 5
    assert logprobs.text_offset[0] == 0
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset:].startswith(token)
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert top[token] == value and len(top) == 2
    pieces = [c.choices[0].logprobs for c in ask(stream=True)]
    assert [t for piece in pieces if piece for t in piece.tokens] == logprobs.tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": " the end."}, "suffix"),
        ({"best_of": 2, "n": 3}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"best_of": 129}, "best_of"),
        ({"best_of": 65, "prompt": ["a", "b"]}, "best_of"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"logprob_token_ids": [-1]}, "logprob_token_ids[0]"),
        ({"logprob_token_ids": [2**30]}, "logprob_token_ids"),
        (
            {"logprob_token_ids": [1], "n_probs": 1, "post_sampling_probs": True},
            "logprob_token_ids",
        ),
        ({"suffix": "x", "echo": True, "logprobs": 0}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
    ],
)
def test_what_this_model_or_server_cannot_is_refused_by_name(
    stories: Live, fields: dict[str, Any], param: str
) -> None:
    before = stories.engine.stats().requests_submitted
    error = refused(stories, "/v1/completions", {"prompt": "Once", **fields})
    assert error["param"] == param
    assert stories.engine.stats().requests_submitted == before


def test_fields_that_mean_nothing_here_are_ignored(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="whatever", messages=HELLO, max_tokens=1, user="ann", store=True,
        metadata={"a": "b"}, service_tier="auto", verbosity="low", safety_identifier="x",
        prompt_cache_key="y", modalities=["text"],
    )  # fmt: skip
    assert answer.model == MODEL


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 1, "stream": True}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/completions", {"prompt": "Once", "max_tokens": 1}),
    ],
)
def test_every_response_has_an_id_and_its_time(stories: Live, path: str, body: Any) -> None:
    response = stories.post(path, body)
    assert response.headers["x-request-id"]
    assert int(response.headers["openai-processing-ms"]) >= 0


def test_a_prompt_that_is_too_long_has_openais_code(stories: Live) -> None:
    body = {"messages": [{"role": "user", "content": "word " * 3000}]}
    assert refused(stories, "/v1/chat/completions", body)["code"] == "context_length_exceeded"
