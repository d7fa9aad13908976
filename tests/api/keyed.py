"""What the tests of keys with limits share: their file, and requests with a key."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import requests

from cllm.api.tenants import Key, KeyRing, Terms
from tests.api.api_client import Live

SHORT: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 2, "temperature": 0}
LONG_PROMPT = "There was a little fox who lived in a quiet forest. " * 12


def ring(**terms: Terms) -> KeyRing:
    """Keys whose secret is their name."""
    keys = (Key(name, sha256(name.encode()).digest(), terms[name]) for name in terms)
    return KeyRing(tuple(keys), Terms(requests_per_minute=7))


RING = ring(
    alice=Terms(),
    bob=Terms(),
    root=Terms(admin=True, priority=-10),
    late=Terms(priority=5),
    few=Terms(requests_per_minute=2),
    spent=Terms(tokens_per_minute=30),
    single=Terms(concurrent=1, queued=1),
)


GENERATING = (
    "/generate", "/completion", "/v1/completions", "/v1/chat/completions", "/v1/responses",
    "/v1/messages",
)  # fmt: skip


def ask(live: Live, key: str, path: str = "/generate", **fields: Any) -> requests.Response:
    body = fields if path not in ("/generate", "/completion") else {**SHORT, **fields}
    return live.post(path, body, headers={"x-api-key": key})


def see(live: Live, key: str, path: str) -> requests.Response:
    return live.get(path, headers={"x-api-key": key})
