"""Requests for several choices: more than can ever be let in are refused for good, by name."""

from __future__ import annotations

from typing import Any

import pytest

from cllm.api.tenants import Terms
from cllm.engine import Engine
from tests.api.api_client import Live, eventually, idle, serving
from tests.api.keyed import ask, ring

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
ASKED = [
    ("/v1/completions", {"prompt": "x"}, "n"),
    ("/v1/completions", {"prompt": "x"}, "best_of"),
    ("/v1/chat/completions", CHAT, "n"),
    ("/completion", {"prompt": "x"}, "n_cmpl"),
    ("/completion", {"prompt": "x"}, "n"),
]
PATHS = [f"{path} {name}" for path, _, name in ASKED]


@pytest.fixture
def pair(keyed: Live) -> Live:
    """A server with a key that may have two generations, both running."""
    keyed.service.tenants.renew(ring(pair=Terms(concurrent=2, queued=0)))
    return keyed


def error_of(response: Any) -> str:
    """The text of a refusal for good."""
    assert response.status_code == 400, response.text
    assert "Retry-After" not in response.headers
    error = response.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("path", "body", "name"), ASKED, ids=PATHS)
def test_more_choices_than_a_key_may_have_are_refused_for_good(
    pair: Live, path: str, body: dict[str, Any], name: str, stream: bool
) -> None:
    more = {**body, "max_tokens": 2, "stream": stream and name != "best_of"}
    assert ask(pair, "pair", path, **more, **{name: 2}).status_code == 200
    error = error_of(ask(pair, "pair", path, **more, **{name: 3}))
    assert error == (
        f"{name}: 3 is not valid; expected at most 2 choices that may run and wait with this key"
    )
    assert ask(pair, "pair", path, **more).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_several_prompts_count_too(pair: Live, path: str) -> None:
    error = error_of(ask(pair, "pair", path, prompt=["a", "b", "c"], max_tokens=1))
    assert error.startswith("prompt: 3 prompts is not valid; expected at most 2 choices")
    error = error_of(ask(pair, "pair", path, prompt=["a", "b"], n=2, max_tokens=1))
    assert error.startswith("n: 2 is not valid") and error.endswith("key, prompts times n")
    assert ask(pair, "pair", path, prompt=["a", "b"], max_tokens=1).status_code == 200


@pytest.mark.parametrize(("path", "body", "name"), ASKED, ids=PATHS)
def test_more_choices_than_the_queue_ever_holds_are_refused_for_good(
    narrow: Engine, path: str, body: dict[str, Any], name: str
) -> None:
    with serving(narrow) as live:
        more = {**body, "max_tokens": 2}
        error = error_of(live.post(path, {**more, name: 3}))
        assert error.startswith(f"{name}: 3 ") and error.endswith("wait on this server")
        assert live.post(path, {**more, name: 2}).status_code == 200
        eventually(lambda: idle(narrow), "nothing is left")
