"""What a key sees of the others: neither their counts nor their slots nor their prefixes."""

from __future__ import annotations

import json
import re
import time
from hashlib import sha256
from typing import Any

import pytest
import requests

from cllm.api import ApiSettings
from cllm.api.native.monitor_view import View
from cllm.api.tenants import Tenants
from cllm.engine import Engine
from cllm.http import ServerConfig
from tests.api.api_client import Live, begin_post, read_until, serving
from tests.api.keyed import GENERATING, LONG_PROMPT, RING, SHORT, ask, see
from tests.http.http2.http2_wire import DATA, END_STREAM, Http2Client, frame, request_fields

# What each sees


def test_usage_shows_a_key_its_own_and_an_admin_all(keyed: Live) -> None:
    used = ask(keyed, "alice", max_tokens=5, ignore_eos=True).json()["data"]["usage"]
    (own,) = see(keyed, "alice", "/usage").json()["data"]["tenants"]
    assert own["tenant"] == "alice" and own["requests"] == 1 and own["in_flight"] == 0
    assert own["prompt_tokens"] == used["prompt_tokens"] and own["generated_tokens"] == 5
    names = [told["tenant"] for told in see(keyed, "root", "/usage").json()["data"]["tenants"]]
    assert names == ["key 1", *(key.name for key in RING.keys)]


def test_metrics_show_a_key_its_own_and_an_admin_all(keyed: Live) -> None:
    ask(keyed, "alice")
    for _ in range(3):
        ask(keyed, "few")
    own = see(keyed, "alice", "/metrics").text
    assert 'cllm_tenant_requests_total{tenant="alice"} 1.0' in own
    assert {line.split("{")[0] for line in own.splitlines() if line[:1] not in ("#", "")} == {
        "cllm_tenant_requests_total", "cllm_tenant_tokens_total", "cllm_tenant_in_flight",
    }  # fmt: skip
    assert "few" not in own
    every = see(keyed, "root", "/metrics").text
    assert 'cllm_tenant_refused_total{limit="requests",tenant="few"} 1.0' in every
    assert "cllm_requests_submitted_total" in every and "process_" in every


def test_slots_show_a_key_its_own(keyed: Live) -> None:
    ask(keyed, "alice", prompt=LONG_PROMPT)
    bare = {"id", "n_ctx", "speculative", "is_processing"}

    def told(key: str) -> list[set[str]]:
        return [set(slot) for slot in see(keyed, key, "/slots").json()]

    assert sum(slot > bare for slot in told("root")) >= 1
    assert sum(slot > bare for slot in told("alice")) == 1
    assert all(slot == bare for slot in told("bob"))


@pytest.mark.parametrize("action", ["restore", "erase"])
def test_a_slot_that_was_restored_or_erased_is_not_its_last_request_s(
    keyed: Live, action: str
) -> None:
    def act(action: str) -> int:
        fields = {"x-api-key": "alice"}
        return keyed.post(
            f"/slots/0?action={action}", {"filename": "own"}, headers=fields
        ).status_code

    def seen(key: str) -> tuple[int | None, int | None]:
        """The tokens of slot 0, as /slots and /monitor tell them."""
        told = see(keyed, key, "/slots").json()[0].get("n_prompt_tokens")
        shown = View(keyed.service, 0).moment(key).slots[0].tokens
        return told, shown

    cached(keyed, "alice", id_slot=0)
    assert act("save") == 200
    if action == "restore":
        cached(keyed, "bob", id_slot=0, prompt="Hi")
        before = seen("bob")
        assert before[0] == before[1] and before[0] is not None
    else:
        assert seen("alice") != (None, None)
    assert act(action) == 200
    assert seen("bob") == seen("alice") == (None, None)


def test_details_of_the_health_need_an_admin_key(keyed: Live) -> None:
    assert keyed.get("/health").status_code == 200
    assert keyed.get("/health?level=full").status_code == 401
    assert see(keyed, "bob", "/health?level=full").status_code == 403
    assert see(keyed, "root", "/health?level=full").status_code == 200


# Prefixes


def cached(keyed: Live, key: str, path: str = "/completion", **fields: Any) -> int:
    """Tokens of LONG_PROMPT that were reused, however the endpoint is asked and tells it."""
    body: dict[str, Any] = {"prompt": LONG_PROMPT, "max_tokens": 1, "n_predict": 1, **fields}
    if path in ("/v1/chat/completions", "/v1/messages"):
        body["messages"] = [{"role": "user", "content": LONG_PROMPT}]
    if path == "/v1/responses":
        body = {"input": LONG_PROMPT, "max_output_tokens": 1, **fields}
    response = keyed.post(path, body, headers={"x-api-key": key})
    assert response.status_code == 200, response.text
    told = response.json()
    if path == "/completion":
        return int(told["timings"]["cache_n"])
    if path == "/generate":
        return int(told["data"]["usage"]["cached_tokens"])
    usage = told["usage"]
    if path == "/v1/messages":
        return int(usage["cache_read_input_tokens"])
    details = usage["input_tokens_details" if path == "/v1/responses" else "prompt_tokens_details"]
    return int(details["cached_tokens"])


@pytest.mark.parametrize("path", GENERATING)
def test_a_prefix_is_found_by_its_key_and_salt_only(keyed: Live, path: str) -> None:
    assert cached(keyed, "alice", path) < 100 < cached(keyed, "alice", path)
    assert cached(keyed, "bob", path) < 100
    assert cached(keyed, "alice", path, cache_salt="s") < 100
    assert cached(keyed, "alice", path, cache_salt="s") > 100
    assert cached(keyed, "bob", path, cache_salt="s") < 100
    assert cached(keyed, "alice", path, cache_salt="t") < 100


def test_a_slot_that_is_named_gives_nothing_of_another_key(keyed: Live) -> None:
    assert cached(keyed, "alice", id_slot=2) == 0
    assert cached(keyed, "bob", id_slot=2) == 0
    with keyed.post(
        "/completion",
        {"prompt": LONG_PROMPT, "n_predict": 1, "id_slot": 2, "cache_prompt": True},
        headers={"x-api-key": "plain"},
    ) as response:
        assert response.json()["timings"]["cache_n"] == 0


def test_a_saved_slot_is_restored_by_its_key_only(keyed: Live) -> None:
    def act(key: str, action: str, slot: int = 1) -> requests.Response:
        path = f"/slots/{slot}?action={action}"
        return keyed.post(path, {"filename": "talk"}, headers={"x-api-key": key})

    cached(keyed, "alice", id_slot=1)
    assert act("bob", "save").status_code == 400
    assert act("bob", "erase").json()["n_erased"] == 0
    assert act("alice", "save").status_code == 200
    assert act("bob", "restore").status_code == 400
    assert act("root", "restore").status_code == 400
    assert act("alice", "restore", slot=3).status_code == 200
    assert cached(keyed, "bob", id_slot=3) == 0
    assert act("alice", "restore", slot=3).status_code == 200
    assert cached(keyed, "alice", id_slot=3) > 100
    cached(keyed, "plain", id_slot=1)
    assert act("plain", "save").status_code == act("plain", "restore", slot=3).status_code == 200
    assert cached(keyed, "plain", id_slot=3) > 100


def test_a_key_without_a_name_owns_its_prefixes_after_a_restart_and_no_other_does(
    keyed_engine: Engine,
) -> None:
    def served(*keys: str) -> ApiSettings:
        return ApiSettings(api_keys=keys, share_prefixes="tenant")

    def act(live: Live, key: str, action: str) -> int:
        path = f"/slots/1?action={action}"
        fields = {"x-api-key": key}
        return live.post(path, {"filename": "numbered"}, headers=fields).status_code

    prompt = f"numbered {LONG_PROMPT}"
    with serving(keyed_engine, served("first", "second")) as live:
        cached(live, "first", prompt=prompt, id_slot=1)
        assert act(live, "first", "save") == 200
    with serving(keyed_engine, served("other", "first")) as live:
        assert act(live, "other", "restore") == 400
        assert cached(live, "other", prompt=prompt, id_slot=1) < 100
        assert act(live, "first", "restore") == 200
        assert cached(live, "first", prompt=prompt, id_slot=1) > 100


def test_the_name_of_a_key_in_a_file_owns_its_prefixes() -> None:
    for tenants in (Tenants(ring=RING), Tenants(["plain", "alice"], RING)):
        tenant = tenants.find(sha256(b"alice").digest())
        assert tenant is not None and tenant.owner == "alice"


@pytest.mark.parametrize("path", [*GENERATING, "/generate_stream"])
def test_an_empty_salt_is_refused(keyed: Live, path: str) -> None:
    body = {**SHORT, "cache_salt": "", "messages": [], "input": "x"}
    response = keyed.post(path, body, headers={"x-api-key": "alice"})
    assert response.status_code == 400


@pytest.mark.parametrize("share", ["all", "tenant"])
def test_the_operator_decides_whether_prefixes_are_shared(keyed_engine: Engine, share: str) -> None:
    for slot in range(4):
        keyed_engine.sessions.erase(slot, "").result(60)
    prompt = f"{share} {LONG_PROMPT}"
    with serving(keyed_engine, ApiSettings(key_ring=RING, share_prefixes=share)) as keyed:
        assert cached(keyed, "alice", prompt=prompt) < 100
        assert (cached(keyed, "bob", prompt=prompt) > 100) == (share == "all")
        assert cached(keyed, "bob", prompt=prompt, cache_salt="x") < 100


def test_without_keys_addresses_share_unless_the_operator_says_otherwise(
    keyed_engine: Engine,
) -> None:
    for share, found in (("all", True), ("tenant", False)):
        with serving(keyed_engine, ApiSettings(share_prefixes=share)) as keyed:
            fields = {"prompt": f"{share} {time.time_ns()} {LONG_PROMPT}", "n_predict": 1}
            assert keyed.post("/completion", fields).json()["timings"]["cache_n"] < 100
            with begin_post(keyed, "/completion", fields, source="127.0.0.2") as peer:
                text = read_until(peer, b'"predicted_n"').decode()
            (count,) = re.findall(r'"cache_n":(\d+)', text)
            assert (int(count) > 100) == found


# Behind a proxy


def forwarded(live: Live, client: str, **more: str) -> requests.Response:
    fields = {"X-Forwarded-For": client, **more}
    return live.post("/generate", {**SHORT, "max_tokens": 1}, headers=fields)


def test_clients_behind_a_trusted_proxy_are_told_apart(keyed_engine: Engine) -> None:
    trusting = ServerConfig(grace=5.0, trusted_proxies=("127.0.0.1",))
    with serving(keyed_engine, ApiSettings(api_keys=("right",)), trusting) as live:
        wrong = [forwarded(live, "203.0.113.7", authorization=f"Bearer {n}") for n in range(11)]
        assert [answer.status_code for answer in wrong[-2:]] == [401, 429]
        assert forwarded(live, "203.0.113.7", authorization="Bearer right").status_code == 429
        # A client cannot be another by what it sends in front.
        forged = "198.51.100.1, 203.0.113.7"
        assert forwarded(live, forged, authorization="Bearer right").status_code == 429
        assert forwarded(live, "203.0.113.8", authorization="Bearer right").status_code == 200


def test_http2_tells_clients_behind_a_proxy_apart_before_their_bodies(
    keyed_engine: Engine,
) -> None:
    trusting = ServerConfig(grace=5.0, trusted_proxies=("127.0.0.1",))
    with (
        serving(keyed_engine, ApiSettings(api_keys=("right",)), trusting) as live,
        Http2Client(live.server.port) as proxy,
    ):

        def ask(client: str, key: str) -> int:
            """Send the head alone: a wrong key is refused before the body."""
            fields = [("x-forwarded-for", client), ("authorization", f"Bearer {key}")]
            stream = proxy.take_stream()
            head = request_fields("POST", "/generate", *fields)
            proxy.send(proxy.headers(stream, head, ended=False))
            if key == "right":
                proxy.settled()
                if stream not in proxy.ended:
                    body = json.dumps({**SHORT, "max_tokens": 1}).encode()
                    proxy.send(frame(DATA, END_STREAM, stream, body))
            return proxy.reply(stream).status

        wrong = [ask("203.0.113.7", f"wrong {number}") for number in range(11)]
        assert wrong == [401] * 10 + [429]
        assert ask("203.0.113.7", "right") == 429
        assert ask("203.0.113.8", "right") == 200


def test_a_forged_address_is_ignored_without_trusted_proxies(keyed_engine: Engine) -> None:
    with serving(keyed_engine, ApiSettings(api_keys=("right",))) as live:
        for number in range(11):
            last = forwarded(live, f"203.0.113.{number}", authorization=f"Bearer {number}")
        assert last.status_code == 429
    with serving(keyed_engine, ApiSettings(share_prefixes="tenant")) as live:
        assert forwarded(live, "203.0.113.7").status_code == 200
        assert {slot.tenant for slot in keyed_engine.slots()} & {"127.0.0.1"}
        assert not any((slot.tenant or "").startswith("203.") for slot in keyed_engine.slots())
