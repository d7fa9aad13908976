"""Promises of /health: while the model loads, and after the engine has failed."""

from __future__ import annotations

import threading

import pytest

from cllm.api import ApiSettings, Service, State
from cllm.engine import Engine
from tests.api.api_client import PATIENCE, Live, serving
from tests.random_model import random_path

EVERYTHING_ELSE = [
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/model/info"),
    ("POST", "/generate"),
    ("POST", "/generate_stream"),
    ("POST", "/encode"),
    ("POST", "/decode"),
    ("POST", "/benchmark"),
]


@pytest.mark.parametrize("path", ["/health", "/health?level=basic", "/health?other=1"])
def test_basic_health_is_exactly_this(live: Live, path: str) -> None:
    response = live.get(path)
    assert response.status_code == 200
    assert response.json() == {
        "success": True,
        "status": "ok",
        "data": {"status": "healthy", "model_loaded": True},
    }
    assert response.headers["Content-Type"] == "application/json"


def test_detailed_adds_components(live: Live) -> None:
    data = live.get("/health?level=detailed").json()["data"]
    assert data["status"] == "healthy" and data["model_loaded"] is True
    assert set(data["components"]) == {"model", "engine", "kv_cache", "http_server"}
    assert all(c["status"] == "healthy" for c in data["components"].values())
    assert data["components"]["engine"]["slots_total"] == 8
    assert data["components"]["http_server"]["connections"] >= 1
    assert "metrics" not in data and "dependencies" not in data


def test_full_adds_metrics_and_dependencies(live: Live) -> None:
    data = live.get("/health?level=full").json()["data"]
    assert {"components", "metrics", "dependencies"} <= set(data)
    assert data["metrics"]["uptime_seconds"] > 0
    assert data["metrics"]["engine"]["slots_total"] == 8
    assert data["metrics"]["http_server"]["requests_total"] >= 1
    assert {"python", "llama-cpp-python"} <= set(data["dependencies"])


def test_head_of_health_has_no_body(live: Live) -> None:
    response = live.session.head(live.url + "/health", timeout=PATIENCE)
    assert response.status_code == 200 and response.content == b""


def test_health_while_loading_is_503_and_tells_the_progress() -> None:
    with serving(None) as live:
        live.service.loading_progress(0.25)
        response = live.get("/health")
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) > 0
        answer = response.json()
        assert answer["success"] is False and "loading" in answer["error"]
        assert answer["data"] == {"status": "loading", "model_loaded": False, "progress": 0.25}


@pytest.mark.parametrize(("method", "path"), EVERYTHING_ELSE)
def test_everything_else_while_loading_is_503(method: str, path: str) -> None:
    with serving(None) as live:
        response = live.get(path) if method == "GET" else live.post(path, {"prompt": "Hello"})
        assert response.status_code == 503
        assert response.json()["data"]["status"] == "loading"
        assert response.json()["success"] is False


def test_once_the_engine_is_there_it_is_served(engine: Engine) -> None:
    with serving(None) as live:
        assert live.get("/health").status_code == 503
        live.service.ready(engine)
        assert live.get("/health").status_code == 200
        assert live.ask("/generate", prompt="Hello", max_tokens=1)["id"]


def test_a_model_that_could_not_be_loaded_is_unhealthy() -> None:
    with serving(None) as live:
        live.service.failed("the file is truncated")
        answer = live.get("/health")
        assert answer.status_code == 503
        assert answer.json()["error"] == "the file is truncated"
        assert answer.json()["data"] == {"status": "unhealthy", "model_loaded": False}
        assert live.post("/generate", {"prompt": "Hello"}).status_code == 503


def test_a_closed_engine_is_unhealthy_and_requests_get_503() -> None:
    engine = Engine.load(random_path(), parallel=1)
    with serving(engine) as live:
        engine.close()
        answer = live.get("/health")
        assert answer.status_code == 503 and answer.json()["data"]["status"] == "unhealthy"
        live.refused("/generate", {"prompt": "Hello"}, 503)
        live.refused("/encode", {"text": "Hello"}, 503)


def test_closing_the_engine_ends_a_request_in_flight_with_503() -> None:
    engine = Engine.load(random_path(), parallel=1, context_shift=True)
    answers: list[int] = []
    with serving(engine) as live:
        fields = {"prompt": "Hi", "max_tokens": 100_000, "ignore_eos": True}
        asking = threading.Thread(
            target=lambda: answers.append(live.post("/generate", fields).status_code)
        )
        asking.start()
        while engine.stats().slots_busy == 0:
            assert asking.is_alive()
        engine.close()
        asking.join(PATIENCE)
    assert answers == [503]


def test_the_service_says_its_state() -> None:
    service = Service()
    states = [service.state]
    service.failed("no")
    states.append(service.state)
    assert states == [State.LOADING, State.UNHEALTHY]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="request_timeout is 0"):
        ApiSettings(request_timeout=0)


def test_a_model_that_loads_says_when_to_come_back() -> None:
    with serving(None) as live:
        assert live.get("/health").headers["Retry-After"] == "5", "nothing is known yet"
        live.service.loading_progress(0.25)
        live.service.started -= 10
        for path in ("/health", "/v1/models"):
            seconds = int(live.get(path).headers["Retry-After"])
            assert 30 <= seconds <= 60, "three quarters at the pace of the first"
