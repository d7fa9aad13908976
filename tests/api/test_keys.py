"""API keys: without one only ``/health`` answers; pages of other origins can send one too."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator

import pytest

from cllm.api import ApiSettings
from cllm.engine import Engine
from cllm.http import ServerConfig
from tests.api.api_client import PATIENCE, Live, begin_post, read_until, serving

KEYS = ("sk-first", "sk-second")
PAGE = "https://page.example"


@pytest.fixture(scope="module")
def locked(engine: Engine) -> Iterator[Live]:
    config = ServerConfig(grace=5.0, cors_origins=(PAGE,))
    with serving(engine, ApiSettings(api_keys=KEYS), config) as live:
        yield live


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("field", ["Authorization: Bearer", "authorization: bearer", "x-api-key:"])
def test_each_key_opens_in_either_field(locked: Live, field: str, key: str) -> None:
    name, _, value = f"{field} {key}".partition(": ")
    body = {"prompt": "Hello", "max_tokens": 1}
    assert locked.post("/generate", body, headers={name: value}).status_code == 200


def test_a_dummy_in_the_other_field_does_no_harm(locked: Live) -> None:
    fields = {"Authorization": "Bearer none", "x-api-key": KEYS[0]}
    assert locked.get("/model/info", headers=fields).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health_needs_none(locked: Live, method: str) -> None:
    response = locked.session.request(method, locked.url + "/health")
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/", "/metrics", "/model/info", "/v1/models", "/no/such/path"])
def test_everything_else_needs_one(locked: Live, path: str) -> None:
    response = locked.get(path)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"  # RFC 9110 section 11.6.1


@pytest.mark.parametrize(
    "value",
    [
        "Bearer sk-wrong",
        "Bearer sk-firs",
        "Bearer sk-firstt",
        "Bearer SK-FIRST",
        "Bearer sk-first,",
    ],
)
def test_a_wrong_key_is_401_and_rfc_6750_says_how(locked: Live, value: str) -> None:
    response = locked.get("/model/info", headers={"Authorization": value})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


@pytest.mark.parametrize("value", ["Basic sk-first", "sk-first", "Bearer", "Bearer "])
def test_another_scheme_is_no_key(locked: Live, value: str) -> None:
    assert locked.get("/model/info", headers={"Authorization": value}).status_code == 401


def test_the_refusal_is_in_the_words_of_the_api_that_was_asked(locked: Live) -> None:
    native = locked.post("/generate", {"prompt": "Hello"}).json()
    assert native["success"] is False
    assert "Authorization: Bearer KEY" in native["error"]
    openai = locked.post("/v1/completions", {"prompt": "Hello"}).json()["error"]
    assert (openai["type"], openai["code"]) == ("authentication_error", "invalid_api_key")
    anthropic = locked.post("/v1/messages", {}).json()
    assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")
    llama = locked.post("/completion", {"prompt": "Hello"}).json()["error"]
    assert (llama["code"], llama["type"]) == (401, "authentication_error")


def begin_body(live: Live, path: str, fields: bytes, body: bytes, length: int) -> socket.socket:
    """A connection on which a head and `body` were sent, which announced `length` bytes."""
    peer = socket.create_connection(("127.0.0.1", live.server.port), timeout=PATIENCE)
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path.encode(), length)
    peer.sendall(head + fields + b"\r\n" + body)
    return peer


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"], ids=["", "expect"])
@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/generate", b'"success":false'),
        ("/v1/completions", b'"invalid_api_key"'),
        ("/v1/messages", b'"type":"error"'),
        ("/completion", b'"code":401'),
    ],
)
def test_without_a_key_no_body_is_read(locked: Live, path: str, word: bytes, expect: bytes) -> None:
    peer = begin_body(locked, path, b"Origin: " + PAGE.encode() + b"\r\n" + expect, b"", 1 << 20)
    answer = read_until(peer, b"}").lower()
    peer.close()
    assert answer.startswith(b"http/1.1 401 ")
    assert f"access-control-allow-origin: {PAGE}\r\n".encode() in answer
    assert b"www-authenticate: bearer\r\n" in answer
    assert word in answer
    assert locked.server.stats().body_bytes == 0


def test_with_a_key_a_body_in_parts_is_read(locked: Live) -> None:
    body = json.dumps({"prompt": "Hello", "max_tokens": 1}).encode()
    key = f"x-api-key: {KEYS[0]}\r\nExpect: 100-continue\r\n".encode()
    peer = begin_body(locked, "/generate", key, b"", len(body))
    assert read_until(peer, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    peer.sendall(body)
    assert read_until(peer, b"}").startswith(b"HTTP/1.1 200 ")
    peer.close()


def test_health_needs_none_with_a_body_either(locked: Live) -> None:
    peer = begin_body(locked, "/health", b"Expect: 100-continue\r\n", b"", 2)
    assert read_until(peer, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    peer.close()


def test_what_is_refused_reaches_no_queue(locked: Live) -> None:
    before = locked.engine.stats().requests_submitted
    assert locked.post("/generate", {"prompt": "Hello"}).status_code == 401
    assert locked.engine.stats().requests_submitted == before


def test_no_key_is_logged_right_or_wrong(locked: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        locked.get("/model/info", headers={"x-api-key": KEYS[0]})
        locked.get("/model/info", headers={"x-api-key": "sk-secret-of-another-server"})
    assert "/model/info" in caplog.text
    assert "sk-" not in caplog.text


def test_a_page_may_send_keys_and_read_the_request_id(locked: Live) -> None:
    """The bytes are Chromium's before a fetch() of the Anthropic and OpenAI clients."""
    asked = "anthropic-version,authorization,content-type,x-api-key,x-stainless-lang"
    peer = begin_post(locked, "/generate", {"prompt": "Hello"})  # refused; its connection serves on
    assert b" 401 " in read_until(peer, b"}")
    peer.sendall(
        b"OPTIONS /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nConnection: keep-alive\r\n"
        b"Accept: */*\r\nAccess-Control-Request-Method: POST\r\n"
        b"Access-Control-Request-Headers: " + asked.encode() + b"\r\n"
        b"Origin: " + PAGE.encode() + b"\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Site: cross-site\r\n"
        b"Sec-Fetch-Dest: empty\r\nReferer: https://page.example/\r\n\r\n"
    )
    head = read_until(peer, b"\r\n\r\n").decode().lower()
    peer.close()
    assert head.startswith("http/1.1 200 ")
    assert f"access-control-allow-origin: {PAGE}\r\n" in head
    assert f"access-control-allow-headers: {asked}\r\n" in head
    response = locked.get("/model/info", headers={"Origin": PAGE})
    assert response.status_code == 401
    assert response.headers["Access-Control-Allow-Origin"] == PAGE
    assert response.headers["Access-Control-Expose-Headers"] == "*"
