"""Refused requests: the status, and a text that names field, value and expectation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.api.api_client import Live, frozen

PROMPT: dict[str, Any] = {"prompt": "Hello"}

BAD_GENERATE = [
    ({}, "prompt", "missing", "a non-empty string"),
    ({"prompt": ""}, "prompt", '""', "a non-empty string"),
    ({"prompt": None}, "prompt", "null", "a non-empty string"),
    ({"prompt": 5}, "prompt", "5", "a non-empty string"),
    ({"prompt": ["a"]}, "prompt", '["a"]', "a non-empty string"),
    (PROMPT | {"max_tokens": 0}, "max_tokens", "0", "an integer from 1 to"),
    (PROMPT | {"max_tokens": -1}, "max_tokens", "-1", "an integer from 1 to"),
    (PROMPT | {"max_tokens": "5"}, "max_tokens", '"5"', "an integer from 1 to"),
    (PROMPT | {"max_tokens": 1.5}, "max_tokens", "1.5", "an integer from 1 to"),
    (PROMPT | {"max_tokens": True}, "max_tokens", "true", "an integer from 1 to"),
    (PROMPT | {"max_tokens": 10**30}, "max_tokens", str(10**30), "an integer from 1 to"),
    (PROMPT | {"temperature": -0.1}, "temperature", "-0.1", "a number from 0 to 2"),
    (PROMPT | {"temperature": 2.5}, "temperature", "2.5", "a number from 0 to 2"),
    (PROMPT | {"temperature": "hot"}, "temperature", '"hot"', "a number from 0 to 2"),
    (PROMPT | {"top_p": 1.5}, "top_p", "1.5", "a number from 0 to 1"),
    (PROMPT | {"top_p": -1}, "top_p", "-1", "a number from 0 to 1"),
    (PROMPT | {"min_p": 2}, "min_p", "2", "a number from 0 to 1"),
    (PROMPT | {"top_k": -2}, "top_k", "-2", "an integer from -1 to"),
    (PROMPT | {"top_k": 1.5}, "top_k", "1.5", "an integer from -1 to"),
    (PROMPT | {"repetition_penalty": 0}, "repetition_penalty", "0", "a number above 0"),
    (PROMPT | {"presence_penalty": 3}, "presence_penalty", "3", "a number from -2 to 2"),
    (PROMPT | {"frequency_penalty": -3}, "frequency_penalty", "-3", "a number from -2 to 2"),
    (PROMPT | {"seed": "x"}, "seed", '"x"', "an integer"),
    (PROMPT | {"seed": 2**70}, "seed", str(2**70), "integer"),
    (PROMPT | {"stop": 5}, "stop", "5", "a string or a list"),
    (PROMPT | {"stop": ["ok", 7]}, "stop[1]", "7", "a string"),
    (PROMPT | {"stop": ["x"] * 33}, "stop", "", "at most 32"),
    (PROMPT | {"logit_bias": {"5": "x"}}, "logit_bias", '{"5":"x"}', "a number or true or false"),
    (PROMPT | {"logit_bias": {"5": 1000}}, "logit_bias", "1000", "from -100 to 100"),
    (PROMPT | {"logit_bias": {"999999999": 1}}, "logit_bias", "999999999", "tokens from 0 to"),
    (PROMPT | {"ignore_eos": 1}, "ignore_eos", "1", "true or false"),
    (PROMPT | {"stream": "yes"}, "stream", '"yes"', "true or false"),
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(("body", "field", "value", "expected"), BAD_GENERATE)
def test_a_bad_field_is_400_and_named(
    live: Live, path: str, body: dict[str, Any], field: str, value: str, expected: str
) -> None:
    before = live.engine.stats().requests_submitted
    error = live.refused(path, body)
    assert error.startswith(field), error
    assert value in error and expected in error, error
    assert live.engine.stats().requests_submitted == before, "refused before it is queued"


NOT_JSON = [
    b"",
    b"   ",
    b"{",
    b'{"prompt":"Hello"',
    b'{"prompt":"Hello"} trailing',
    b"prompt=Hello",
    b'{"prompt":"Hello","temperature":NaN}',
    b'{"prompt":"Hello","temperature":Infinity}',
    b'{"prompt":"Hello","temperature":-Infinity}',
    b'{"prompt":"Hello","temperature":1e999}',
    b"{'prompt':'Hello'}",
    b'{"prompt":"\\ud800"}',
    b'{"prompt":"a\\ud83d b"}',
    b'{"prompt":"\xff"}',
    b'{"prompt":"Hello","unknown":"\xff"}',
    b'{"prompt":"\xed\xa0\x80"}',
    b"[]",
    b'"Hello"',
    b"5",
    b"null",
    b"[" * 100_000,
    b'{"prompt":"Hello","unknown":' + b"[" * 100_000,
]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/encode", "/decode"])
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: repr(body[:40]))
def test_a_body_that_is_no_json_object_is_400(live: Live, path: str, body: bytes) -> None:
    assert live.refused(path, body)


def test_what_is_wrong_with_the_encoding_is_told(live: Live) -> None:
    error = live.refused("/generate", b'{"prompt":"\xff"}')
    assert "UTF-8" in error and "0xff" in error and "offset 11" in error


def test_a_long_offending_value_is_shortened(live: Live) -> None:
    error = live.refused("/generate", PROMPT | {"temperature": "h" * 10_000})
    assert len(error) < 300


def test_a_prompt_longer_than_the_context_is_400_with_both_lengths(live: Live) -> None:
    context = live.engine.info().context.ctx_size
    prompt = "word " * (2 * context)
    length = len(live.engine.tokenize(prompt))
    for path in ("/generate", "/generate_stream", "/benchmark"):
        error = live.refused(path, {"prompt": prompt})
        assert error.startswith("prompt") and str(length) in error and str(context) in error


BAD_ENCODE = [
    ({}, "text", "missing", "a string"),
    ({"text": None}, "text", "null", "a string"),
    ({"text": 5}, "text", "5", "a string"),
    ({"text": "a", "add_special": "yes"}, "add_special", '"yes"', "true or false"),
    ({"text": "a", "parse_special": 1}, "parse_special", "1", "true or false"),
]
BAD_DECODE = [
    ({}, "tokens", "missing", "a list"),
    ({"tokens": "1"}, "tokens", '"1"', "a list"),
    ({"tokens": [1, "2"]}, "tokens[1]", '"2"', "an integer"),
    ({"tokens": [1, 2.5]}, "tokens[1]", "2.5", "an integer"),
    ({"tokens": [1, None]}, "tokens[1]", "null", "an integer"),
    ({"tokens": [1, 2, -1]}, "tokens[2]", "-1", "from 0 to"),
    ({"tokens": [1, 10**8]}, "tokens[1]", str(10**8), "from 0 to"),
    ({"tokens": [10**30]}, "tokens[0]", str(10**30), "from 0 to"),
    ({"tokens": [1], "special": 0}, "special", "0", "true or false"),
]
BAD_BENCHMARK = [
    ({"requests": 0}, "requests", "0", "an integer from 1 to 10000"),
    ({"requests": 10_001}, "requests", "10001", "an integer from 1 to 10000"),
    ({"concurrency": 0}, "concurrency", "0", "an integer from 1 to 256"),
    ({"concurrency": 257}, "concurrency", "257", "an integer from 1 to 256"),
    ({"max_tokens": 0}, "max_tokens", "0", "an integer from 1 to"),
    ({"prompt": ""}, "prompt", '""', "a non-empty string"),
    ({"temperature": 9}, "temperature", "9", "a number from 0 to 2"),
    ({"requests": "ten"}, "requests", '"ten"', "an integer from 1 to 10000"),
]
BAD_REST = [
    *(("/encode", *case) for case in BAD_ENCODE),
    *(("/decode", *case) for case in BAD_DECODE),
    *(("/benchmark", *case) for case in BAD_BENCHMARK),
]


@pytest.mark.parametrize(("path", "body", "field", "value", "expected"), BAD_REST)
def test_the_other_endpoints_name_a_bad_field_too(
    live: Live, path: str, body: dict[str, Any], field: str, value: str, expected: str
) -> None:
    error = live.refused(path, body)
    assert error.startswith(field), error
    assert value in error and expected in error, error


def test_an_unknown_health_level_is_400_and_names_the_known_ones(live: Live) -> None:
    response = live.get("/health?level=everything")
    assert response.status_code == 400
    for word in ("everything", "basic", "detailed", "full"):
        assert word in response.json()["error"]


def test_refusing_needs_no_engine_thread(live: Live) -> None:
    with frozen(live.engine):
        live.refused("/generate", {"prompt": ""})
        assert live.get("/health").status_code == 200
        assert live.ask("/encode", text="Hello")["length"] > 0


def test_errors_keep_non_ascii_unescaped(live: Live) -> None:
    response = live.post("/generate", PROMPT | {"temperature": "жар"})
    assert "жар".encode() in response.content
    assert json.loads(response.content)["success"] is False
