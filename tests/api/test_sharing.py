"""Keys with limits on one server: who is refused, and what each is told."""

from __future__ import annotations

import re
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import anthropic
import openai
import pytest

from cllm.api.tenants import Terms
from cllm.engine import Engine
from cllm.http import HttpError
from tests.api.api_client import Live, begin_post, eventually, frozen, read_until, serving
from tests.api.keyed import GENERATING, LONG_PROMPT, SHORT, ask, ring, see


def noted_priorities(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those of all requests that are submitted to an engine from now on."""
    submit, priorities = Engine.submit, []

    def noting(*args: Any, **fields: Any) -> Any:
        priorities.append(fields["priority"])
        return submit(*args, **fields)

    monkeypatch.setattr(Engine, "submit", noting)
    return priorities


# Limits


def test_requests_over_the_limit_are_429_and_all_answers_tell(keyed: Live) -> None:
    answers = [ask(keyed, "few") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert remaining == ["1", "0", "0"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"2"}
    assert answers[2].headers["Retry-After"] == "30"
    assert answers[2].headers["retry-after-ms"] == "30000"
    assert "2 requests per minute" in answers[2].json()["error"]
    assert see(keyed, "few", "/model/info").status_code == 200  # what costs nothing is not counted
    assert not any("tokens" in name for name in answers[0].headers if "ratelimit" in name.lower())


def test_several_requests_in_one_body_count_one_by_one(keyed: Live) -> None:
    one = {"@requestFormat": "completion", **SHORT}
    answer = ask(keyed, "few", "/predict", instances=[one, one])
    first, second = answer.json()["predictions"]
    assert first["tokens_predicted"] == 2  # the body counts too
    assert second["error"]["code"] == 429 and "2 requests per minute" in second["error"]["message"]
    (known,) = see(keyed, "few", "/usage").json()["data"]["tenants"]
    assert (known["requests"], known["generated_tokens"]) == (2, 2)


def test_a_key_without_limits_is_told_of_none(keyed: Live) -> None:
    told = [*ask(keyed, "alice").headers, *see(keyed, "alice", "/").headers]
    assert not [name for name in told if "ratelimit" in name.lower() or "retry" in name.lower()]


def test_tokens_may_be_overdrawn_once_and_then_the_next_request_waits(keyed: Live) -> None:
    first = ask(keyed, "spent", max_tokens=60, ignore_eos=True)
    assert first.json()["data"]["usage"]["completion_tokens"] == 60  # nothing is cut
    refused = ask(keyed, "spent")
    assert refused.status_code == 429 and "30 tokens per minute" in refused.json()["error"]
    assert refused.headers["x-ratelimit-remaining-tokens"] == "0"
    assert int(refused.headers["Retry-After"]) > 30  # more than 15 tokens below zero


def test_tokens_of_a_stream_count_while_it_runs(keyed: Live) -> None:
    fields = {**SHORT, "max_tokens": 100_000, "ignore_eos": True}
    with begin_post(keyed, "/generate_stream", fields, key="spent") as peer:
        tenant = keyed.service.tenants.find(sha256(b"spent").digest())
        assert tenant is not None
        eventually(lambda: tenant.described()["generated_tokens"] > 60, "it generates")
        assert ask(keyed, "spent").status_code == 429
        read_until(peer, b"\r\n\r\n")


def test_what_waited_for_its_turn_is_checked_again(keyed: Live) -> None:
    """All have passed the check at the head before the first one's tokens count."""
    with ExitStack() as stack, frozen(keyed.engine):
        held = [stack.enter_context(begin_post(keyed, "/generate", SHORT, key="alice"))]
        eventually(lambda: keyed.engine.stats().queue_depth >= 1, "the engine is held")
        fields = {**SHORT, "prompt": LONG_PROMPT}
        keyed.service.tenants.renew(ring(alice=Terms(tokens_per_minute=50)))
        tenant = keyed.service.tenants.find(sha256(b"alice").digest())
        assert tenant is not None
        tenant.check_tokens()
        held.append(stack.enter_context(begin_post(keyed, "/generate", fields, key="alice")))
        eventually(lambda: tenant.described()["in_flight"] == 2, "it is submitted")
        with pytest.raises(HttpError) as over:
            tenant.check_tokens()
        assert [name for name, _ in over.value.headers] == ["Retry-After", "retry-after-ms"]
        answer = ask(keyed, "alice")
        assert answer.status_code == 429
        assert answer.headers["x-ratelimit-limit-tokens"] == "50"  # once


def test_cached_tokens_count_a_tenth(keyed: Live) -> None:
    """30 tokens a minute are used up by the first prompt, and hardly touched by the same again."""
    tenants = keyed.service.tenants
    tenants.renew(ring(alice=Terms(tokens_per_minute=1000)))
    left = []
    for _ in range(2):
        told = ask(keyed, "alice", prompt=LONG_PROMPT, max_tokens=1)
        used = told.json()["data"]["usage"]
        left.append(see(keyed, "alice", "/").headers["x-ratelimit-remaining-tokens"])
    assert used["cached_tokens"] == used["prompt_tokens"] - 1 > 100
    first, second = 1000 - int(left[0]), int(left[0]) - int(left[1])
    assert first > 100 and second < 0.15 * first


def test_what_never_began_costs_no_tokens(keyed: Live) -> None:
    tenants = keyed.service.tenants
    tenants.renew(ring(alice=Terms(tokens_per_minute=1000)))
    with frozen(keyed.engine):
        peer = begin_post(keyed, "/generate", {**SHORT, "prompt": LONG_PROMPT}, key="alice")
        tenant = tenants.find(sha256(b"alice").digest())
        assert tenant is not None
        eventually(lambda: tenant.described()["in_flight"] == 1, "it waits")
        assert int(dict(tenant.fields(False))["x-ratelimit-remaining-tokens"]) < 900
        peer.close()
    eventually(lambda: tenant.described()["in_flight"] == 0, "it has left")
    assert dict(tenant.fields(False))["x-ratelimit-remaining-tokens"] == "1000"
    assert tenant.described()["prompt_tokens"] == 0


def test_over_its_concurrency_a_key_waits_and_then_gets_429(keyed: Live) -> None:
    slow = {**SHORT, "max_tokens": 100_000, "ignore_eos": True}
    with ExitStack() as stack:
        running = stack.enter_context(begin_post(keyed, "/generate_stream", slow, key="single"))
        read_until(running, b"data: ")
        waiting = stack.enter_context(begin_post(keyed, "/generate", SHORT, key="single"))
        eventually(lambda: keyed.engine.stats().queue_depth == 1, "the second waits")
        refused = ask(keyed, "single")
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["retry_after"] == int(refused.headers["Retry-After"])
        (told,) = see(keyed, "single", "/usage").json()["data"]["tenants"]
        assert told["refused"] == {"queue": 1} and told["in_flight"] == 2
        assert ask(keyed, "alice").status_code == 200  # slots are free
        assert keyed.engine.stats().queue_depth == 1
        running.close()
        assert read_until(waiting, b"}").startswith(b"HTTP/1.1 200 ")


def test_a_refusal_has_the_shape_that_each_client_expects(keyed: Live) -> None:
    for _ in range(2):
        ask(keyed, "few")
    told = {"max_retries": 0, "api_key": "few"}
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", **told) as client,  # type: ignore[arg-type]
        pytest.raises(openai.RateLimitError) as limited,
    ):
        client.completions.create(model="any", prompt="x")
    assert limited.value.code == "rate_limit_exceeded"
    assert "x-ratelimit-reset-requests" in limited.value.response.headers
    with (
        anthropic.Anthropic(base_url=keyed.url, **told) as other,  # type: ignore[arg-type]
        pytest.raises(anthropic.RateLimitError) as limited_too,
    ):
        other.messages.create(
            model="any", max_tokens=1, messages=[{"role": "user", "content": "x"}]
        )
    headers = limited_too.value.response.headers
    assert re.fullmatch(r"20\d\d-.*Z", headers["anthropic-ratelimit-requests-reset"])
    assert "x-ratelimit-reset-requests" not in headers and "retry-after-ms" in headers
    llama = ask(keyed, "few", "/completion").json()["error"]
    assert llama["code"] == 429


def test_a_body_over_the_limit_is_refused_unread(keyed: Live) -> None:
    for _ in range(2):
        ask(keyed, "few")
    with begin_post(keyed, "/generate", {"prompt": "x" * 300_000}, key="few") as peer:
        assert read_until(peer, b"}").startswith(b"HTTP/1.1 429 ")


def test_keys_of_the_other_options_have_the_default_terms(keyed: Live) -> None:
    assert ask(keyed, "plain").headers["x-ratelimit-limit-requests"] == "7"
    (told,) = see(keyed, "plain", "/usage").json()["data"]["tenants"]
    assert (told["tenant"], told["limits"]["admin"]) == ("key 1", False)


def test_a_benchmark_counts_for_its_key(keyed: Live) -> None:
    asked = {"requests": 3, "max_tokens": 4}
    assert ask(keyed, "bob", "/benchmark", **asked).status_code == 200
    (told,) = see(keyed, "bob", "/usage").json()["data"]["tenants"]
    assert told["generated_tokens"] > 3 and told["prompt_tokens"] > 3


def test_a_benchmark_is_no_more_urgent_than_its_key_allows(
    keyed: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities = noted_priorities(monkeypatch)
    for key in ("late", "root"):
        assert ask(keyed, key, "/benchmark", requests=1, max_tokens=1).status_code == 200
    assert priorities == [5, 0]


# Other terms while requests run


def test_another_file_applies_at_once_and_streams_go_on(keyed: Live) -> None:
    for _ in range(3):
        ask(keyed, "few")
    fields = {**SHORT, "max_tokens": 300, "ignore_eos": True}
    with begin_post(keyed, "/generate_stream", fields, key="alice") as peer:
        received = read_until(peer, b"data: ")
        keyed.service.tenants.renew(ring(few=Terms(requests_per_minute=4), new=Terms()))
        assert ask(keyed, "alice").status_code == 401
        assert ask(keyed, "new").status_code == 200
        # What it used stays used: two of four.
        assert [ask(keyed, "few").status_code for _ in range(3)] == [200, 200, 429]
        while b'"done":true' not in received:
            received += peer.recv(65536)
    assert b'"finish_reason":"length"' in received


# Priority


@pytest.mark.parametrize(
    ("key", "priority", "status"),
    [("alice", 0, 200), ("alice", 5, 200), ("alice", -1, 400), ("root", -10, 200),
     ("root", -11, 400), ("alice", 2**40, 400), ("alice", 0.5, 400), ("alice", None, 200)],
)  # fmt: skip
def test_a_priority_is_bounded_by_the_key(
    keyed: Live, key: str, priority: Any, status: int
) -> None:
    response = ask(keyed, key, priority=priority)
    assert response.status_code == status
    assert status == 200 or response.json()["error"].startswith(f"priority: {priority}"[:14])


@pytest.mark.parametrize("path", GENERATING)
def test_every_generating_endpoint_takes_a_priority(keyed: Live, path: str) -> None:
    fields: dict[str, Any] = {"prompt": "x", "max_tokens": 1, "input": "x", "priority": -1}
    if path in ("/v1/chat/completions", "/v1/messages"):
        fields["messages"] = [{"role": "user", "content": "x"}]
    if path == "/v1/responses":
        del fields["prompt"]
    refused = keyed.post(path, fields, headers={"x-api-key": "alice"})
    assert refused.status_code == 400 and "priority" in refused.text
    accepted = keyed.post(path, fields, headers={"x-api-key": "root"})
    assert accepted.status_code == 200


@pytest.mark.parametrize("path", [*GENERATING, "/generate_stream", "/api/generate", "/api/chat"])
def test_without_the_field_the_priority_is_0_or_the_most_urgent_allowed(
    keyed: Live, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    priorities = noted_priorities(monkeypatch)
    fields: dict[str, Any] = {"prompt": "x", "max_tokens": 1, "input": "x", "stream": False}
    fields["messages"] = [{"role": "user", "content": "x"}]
    if path.startswith("/api/"):
        fields |= {"model": keyed.service.model_id, "options": {"num_predict": 1}}
    if path == "/v1/responses":
        del fields["prompt"], fields["messages"]
    if path == "/generate_stream":
        del fields["stream"]
    for key in ("late", "root"):
        response = keyed.post(path, fields, headers={"x-api-key": key})
        assert response.status_code == 200, response.text
    assert priorities == [5, 0]
    refused = keyed.post(path, {**fields, "priority": 4}, headers={"x-api-key": "late"})
    assert refused.status_code == 400 and "5 or more" in refused.text


def test_without_keys_none_may_be_more_urgent(keyed_engine: Engine) -> None:
    with serving(keyed_engine) as keyed:
        assert keyed.post("/generate", {**SHORT, "priority": -1}).status_code == 400
        assert keyed.post("/generate", {**SHORT, "priority": 1}).status_code == 200


# Wrong keys


def test_wrong_keys_are_bounded_by_address(keyed: Live) -> None:
    assert ask(keyed, "alice").status_code == 200  # known from this address
    answers = [ask(keyed, f"wrong {n}") for n in range(12)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 2
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 6
    assert see(keyed, "bob", "/model/info").status_code == 429, "a guess gets no answer"
    assert ask(keyed, "alice").status_code == 200, "known clients are not locked out"
    assert keyed.get("/health").status_code == 200
    with begin_post(keyed, "/generate", SHORT, source="127.0.0.2", key="bob") as peer:
        assert read_until(peer, b"}").startswith(b"HTTP/1.1 200 ")


def status_with(live: Live, authorization: str, x_api_key: str, api_key: str = "") -> int:
    """Of a request with a key in each field; "": the field is not sent."""
    fields = {
        "Authorization": authorization and f"Bearer {authorization}",
        "x-api-key": x_api_key,
        "api-key": api_key,
    }
    sent = {name: value for name, value in fields.items() if value}
    return live.get("/usage", headers=sent).status_code


def test_each_wrong_key_of_a_request_counts(keyed: Live) -> None:
    answers = [status_with(keyed, f"a {n}", f"b {n}", f"c {n}") for n in range(4)]
    assert answers == [401, 401, 401, 429]
    assert status_with(keyed, "d", "d", "d") == 401, "one key in three fields is the tenth"
    assert status_with(keyed, "e", "") == 429


def test_wrong_keys_next_to_a_right_one_that_is_new_count(keyed: Live) -> None:
    assert status_with(keyed, "wrong a", "alice", "wrong b") == 200
    answers = [status_with(keyed, f"wrong {n}", "") for n in range(9)]
    assert answers == [401] * 8 + [429]


def test_a_guess_next_to_a_key_that_is_known_is_not_compared(keyed: Live) -> None:
    assert status_with(keyed, "", "alice") == 200
    fields = {"Authorization": "Bearer bob", "x-api-key": "alice"}
    (told,) = keyed.get("/usage", headers=fields).json()["data"]["tenants"]
    assert told["tenant"] == "alice"
    for n in range(12):  # none was counted
        assert status_with(keyed, f"wrong {n}", "") == (401 if n < 10 else 429)
    assert status_with(keyed, "another wrong one", "alice") == 200


def test_a_client_with_a_dummy_in_one_field_locks_nobody_out(keyed: Live) -> None:
    assert [status_with(keyed, "none", "alice") for _ in range(12)] == [200] * 12
    assert [status_with(keyed, "none", key) for key in ("bob", "root", "late")] == [200] * 3
    assert status_with(keyed, "none", "") == 401
    answers = [status_with(keyed, f"wrong {n}", "") for n in range(10)]
    assert answers == [401] * 9 + [429], "the dummy counts once"


def test_a_dummy_opens_once_the_file_has_it(keyed: Live) -> None:
    assert status_with(keyed, "new", "alice") == 200
    keyed.service.tenants.renew(ring(new=Terms()))
    assert status_with(keyed, "new", "alice") == 200
