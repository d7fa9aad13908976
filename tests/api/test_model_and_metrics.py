"""Promises of /, /model/info and /metrics."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cllm import __version__
from cllm.api import ApiSettings
from cllm.engine import Engine
from tests.api.api_client import Live, frozen, serving
from tests.http.http2.http2_wire import GOAWAY, PING, Http2Client, frame

ENDPOINTS = {
    ("GET", "/"),
    ("GET", "/health"),
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
    ("POST", "/encode"),
    ("POST", "/decode"),
    ("POST", "/benchmark"),
    ("GET", "/model/info"),
    ("GET", "/metrics"),
}

INFO = {
    "model_path": str,
    "model_name": str,
    "model_family": str,
    "architecture": str,
    "vocab_size": int,
    "hidden_size": int,
    "num_layers": int,
    "num_attention_heads": int,
    "num_key_value_heads": int,
    "max_sequence_length": int,
    "intermediate_size": int,
    "rope_theta": float,
    "rms_norm_eps": float,
    "quantization": dict,
    "parameters": int,
    "size_bytes": int,
    "llama_cpp": dict,
}


def test_the_index_lists_every_endpoint_with_what_it_does(live: Live) -> None:
    data = live.get("/").json()["data"]
    assert data["name"] == "cLLM" and data["version"] == __version__
    listed = {(e["method"], e["path"]) for e in data["endpoints"]}
    assert listed >= ENDPOINTS
    for method, path in listed:
        assert method in live.session.options(live.url + path).headers["Allow"]
    assert all(e["description"] for e in data["endpoints"])


def test_model_info_has_every_key_with_its_type(live: Live) -> None:
    data = live.get("/model/info").json()["data"]
    assert set(INFO) <= set(data)
    for key, kind in INFO.items():
        assert type(data[key]) is kind, (key, data[key])
    assert data["quantization"] == {"enabled": True, "type": "Q8_0"}
    assert data["llama_cpp"]["parallel"] == 8
    assert data["llama_cpp"]["ctx_size"] == live.engine.info().context.ctx_size
    assert 1 <= data["llama_cpp"]["threads_now"] <= live.engine.stats().threads_limit


def test_floats_of_the_file_are_shown_as_they_were_meant(live: Live) -> None:
    assert live.get("/model/info").json()["data"]["rms_norm_eps"] == 1e-5


@pytest.mark.parametrize("expose", [False, True])
def test_the_path_is_the_files_name_unless_allowed(engine: Engine, expose: bool) -> None:
    path = engine.info().path
    with serving(engine, ApiSettings(expose_model_path=expose)) as live:
        data = live.get("/model/info").json()["data"]
        assert data["model_path"] == (str(path) if expose else path.name)
        assert expose or str(path.parent) not in live.get("/model/info").text


def figures(live: Live) -> dict[str, float]:
    response = live.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        sample.name
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_a_generation(live: Live) -> None:
    before = figures(live)
    usage = live.ask("/generate", prompt="Hello", max_tokens=7, ignore_eos=True)["usage"]
    after = figures(live)

    def grew(name: str) -> float:
        return after[name] - before[name]

    assert grew("cllm_requests_submitted_total") == 1
    assert grew("cllm_requests_finished_total{reason=length}") == 1
    assert grew("cllm_generated_tokens_total") == 7
    assert grew("cllm_prompt_tokens_total") == usage["prompt_tokens"]
    assert grew("cllm_prefix_cached_tokens_total") == usage["cached_tokens"]
    assert grew("cllm_generation_seconds_count") == 1
    assert grew("cllm_time_to_first_token_seconds_count") == 1
    assert grew("cllm_queued_seconds_count") == 1
    assert grew("cllm_generation_tokens_sum") == 7
    assert grew("cllm_http_requests_total") >= 2
    assert grew("cllm_http_responses_total{status=200}") >= 2
    assert grew("cllm_http_sent_bytes_total") > 0
    assert grew("cllm_decode_seconds_total") > 0
    assert after["cllm_slots"] == 8
    context = live.engine.info().context
    assert after["cllm_kv_cells"] == context.kv_cells
    assert after["cllm_threads_limit"] == max(context.threads, context.threads_batch)
    assert 1 <= after["cllm_threads"] <= after["cllm_threads_limit"]
    assert 0 <= after["cllm_cores_left"] <= after["cllm_cores"]
    assert "cllm_thread_changes_total" in after


def test_metrics_count_a_stream_as_well(live: Live) -> None:
    before = figures(live)
    live.stream("Hello", max_tokens=5, ignore_eos=True)
    assert (
        figures(live)["cllm_generation_seconds_count"]
        == before["cllm_generation_seconds_count"] + 1
    )


def test_a_refusal_is_counted(narrow: Engine) -> None:
    with serving(narrow) as live, frozen(narrow):
        before = figures(live)
        live.refused("/generate", {"prompt": ""})
        assert figures(live)["cllm_http_responses_total{status=400}"] == 1
        assert (
            figures(live)["cllm_requests_submitted_total"]
            == before["cllm_requests_submitted_total"]
        )


def test_two_servers_in_a_process_keep_their_figures_apart(engine: Engine, narrow: Engine) -> None:
    with serving(engine) as one, serving(narrow) as other:
        one.ask("/generate", prompt="Hello", max_tokens=1)
        assert figures(one)["cllm_generation_seconds_count"] == 1
        assert figures(other)["cllm_generation_seconds_count"] == 0


def test_metrics_count_the_limits_of_http_2_by_name(engine: Engine) -> None:
    with serving(engine) as live:
        with Http2Client(live.server.port) as client:
            client.send(frame(PING, 0, 0, b"12345678") * 300)
            assert client.all_frames()[-1].kind == GOAWAY
        assert figures(live)["cllm_http2_limits_total{limit=control_frames}"] == 1
