"""Promises of POST /generate."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from cllm.engine import Engine
from tests.api.api_client import Live, events, serving
from tests.random_model import random_path

ID = re.compile(r"[0-9a-f]{32}")


def test_the_answer_has_every_key_of_the_contract_with_its_type(live: Live) -> None:
    data = live.ask("/generate", prompt="Hello", max_tokens=5, ignore_eos=True)
    assert ID.fullmatch(data["id"])
    assert isinstance(data["text"], str)
    assert isinstance(data["response_time"], float) and data["response_time"] > 0
    assert data["tokens_per_second"] == pytest.approx(5 / data["response_time"])
    assert data["finish_reason"] == "length"
    usage = data["usage"]
    assert usage["completion_tokens"] == 5
    assert usage["prompt_tokens"] == len(live.engine.tokenize("Hello"))
    assert 0 <= usage["cached_tokens"] <= usage["prompt_tokens"]


def test_the_envelope_is_success_and_data_in_json(live: Live) -> None:
    response = live.post("/generate", {"prompt": "Hello", "max_tokens": 1})
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"success", "data"}


def test_ids_differ(live: Live) -> None:
    ids = {live.ask("/generate", prompt="Hi", max_tokens=1)["id"] for _ in range(3)}
    assert len(ids) == 3


def test_non_ascii_text_leaves_unescaped(live: Live) -> None:
    # The bias makes the model say a token whose text is not ASCII, whatever its weights.
    token = live.engine.tokenize("世界", add_special=False)
    body = {"prompt": "x", "max_tokens": 1, "logit_bias": {str(token[0]): 100}, "temperature": 0}
    response = live.post("/generate", body)
    text = response.json()["data"]["text"]
    assert not text.isascii()
    assert text.encode() in response.content


def test_greedy_is_what_the_engine_says_alone(live: Live) -> None:
    data = live.ask("/generate", prompt="Once upon", max_tokens=24, temperature=0)
    assert data["text"] == live.engine.generate("Once upon", max_tokens=24, temperature=0.0).text


def test_the_same_seed_gives_the_same_text(live: Live) -> None:
    fields = {"prompt": "Hello", "max_tokens": 16, "seed": 42, "temperature": 1.0}
    assert live.ask("/generate", **fields)["text"] == live.ask("/generate", **fields)["text"]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_ends_the_text_before_it(live: Live, as_list: bool) -> None:
    whole = live.ask("/generate", prompt="Once", max_tokens=40, temperature=0, ignore_eos=True)
    stop = whole["text"][20:24]
    before = whole["text"][: whole["text"].index(stop)]
    data = live.ask(
        "/generate", prompt="Once", max_tokens=40, temperature=0, ignore_eos=True,
        stop=[stop, "never said"] if as_list else stop,
    )  # fmt: skip
    assert data["text"] == before
    assert data["finish_reason"] == "stop"


def test_without_max_tokens_it_stops_at_256(live: Live) -> None:
    data = live.ask("/generate", prompt="Hello", ignore_eos=True)
    assert data["usage"]["completion_tokens"] == 256


def test_a_generation_that_fills_the_context_ends_with_length() -> None:
    with Engine.load(random_path(), parallel=1, ctx_size=256) as engine, serving(engine) as live:
        info = engine.info().context
        data = live.ask("/generate", prompt="Hello", max_tokens=10**9, ignore_eos=True, seed=1)
    assert data["finish_reason"] == "length"
    usage = data["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] in (info.ctx_size, info.ctx_size + 1)


def test_every_sampling_field_is_taken(live: Live) -> None:
    data = live.ask(
        "/generate", prompt="Hello", max_tokens=4, temperature=0.7, top_p=0.9, top_k=20,
        min_p=0.01, repetition_penalty=1.1, presence_penalty=0.5, frequency_penalty=-0.5, seed=7,
        stop=["\n\n"], logit_bias={"5": -100.0}, ignore_eos=False, stream=False,
    )  # fmt: skip
    assert data["usage"]["completion_tokens"] <= 4


def test_null_is_the_same_as_leaving_a_field_out(live: Live) -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "top_k", "seed", "stop", "logit_bias"))
    assert live.ask("/generate", prompt="Hello", max_tokens=2, **nothing)["text"] is not None


def test_unknown_fields_are_ignored(live: Live) -> None:
    live.ask("/generate", prompt="Hello", max_tokens=1, no_such_field={"deep": [1, None]})


def test_of_a_repeated_field_the_last_counts(live: Live) -> None:
    response = live.post(
        "/generate", b'{"prompt":"a","max_tokens":9,"max_tokens":2,"ignore_eos":true}'
    )
    assert response.json()["data"]["usage"]["completion_tokens"] == 2


def test_a_json_body_is_taken_whatever_the_content_type_says(live: Live) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # what curl -d sends
    response = live.post("/generate", b'{"prompt":"Hello","max_tokens":1}', headers=form)
    assert response.status_code == 200


def test_stream_true_gives_the_events_of_generate_stream(live: Live) -> None:
    fields = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    body = {"prompt": "Hello", "stream": True, **fields}
    with live.post("/generate", body, stream=True) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        got = list(events(response.iter_content(None)))
    expected = live.stream("Hello", **fields)
    assert [e["token"] for e in got] == [e["token"] for e in expected]
    assert got[-1]["finish_reason"] == expected[-1]["finish_reason"]


def test_generate_refuses_get_and_names_post(live: Live) -> None:
    response = live.get("/generate")
    assert response.status_code == 405
    assert "POST" in response.headers["Allow"]
    assert response.json()["success"] is False


def test_an_unknown_path_is_404_in_the_failure_envelope(live: Live) -> None:
    response = live.get("/no/such/path")
    assert response.status_code == 404
    assert response.json()["success"] is False and response.json()["error"]


def test_many_more_requests_than_slots_are_all_answered_as_if_alone(live: Live) -> None:
    prompts = [f"Story number {n}:" for n in range(32)]
    alone = {p: live.engine.generate(p, max_tokens=8, temperature=0.0).text for p in prompts}

    def ask(prompt: str) -> tuple[str, str]:
        return prompt, live.ask("/generate", prompt=prompt, max_tokens=8, temperature=0)["text"]

    with ThreadPoolExecutor(32) as pool:
        assert dict(pool.map(ask, prompts)) == alone
