"""LoRA adapters in every API, and llama-server's endpoints for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cllm.api import ApiSettings
from cllm.engine import Engine
from tests.api.api_client import Live, eventually, idle, serving
from tests.api.keyed import RING, ask
from tests.api.test_llama_fields import HELLO, PATHS, STORY, answered, model_of, text_of
from tests.engine.lora_files import write_lora
from tests.random_model import random_path

STRONG: dict[str, Any] = {"lora": [{"id": 0, "scale": 1.0}], "temperature": 0}
OTHER = {"lora": [{"id": 1, "scale": 2.0}, {"id": 0, "scale": 0}], "temperature": 0}
PLAIN = {"lora": [{"id": 0, "scale": 0}], "temperature": 0}


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("adapters")
    made = [write_lora(random_path(), folder / f"{name}.gguf", size=0.2, seed=seed)
            for seed, name in enumerate(("first", "second"))]  # fmt: skip
    return str(made[0]), f"{made[1]}:0.5"


@pytest.fixture(scope="module")
def tuned_engine(adapters: tuple[str, str]) -> Iterator[Engine]:
    with Engine.load(
        random_path(), parallel=4, ctx_size=512, lora=adapters, lora_init_without_apply=True
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def server(tuned_engine: Engine) -> Iterator[Live]:
    with serving(tuned_engine) as live:
        yield live


@pytest.fixture
def tuned(server: Live) -> Iterator[Live]:
    """Both adapters, with scale 0 by default."""
    yield server
    server.engine.adapters.defaults = ()
    eventually(lambda: idle(server.engine), "the engine has no work left")


@pytest.mark.parametrize("path", PATHS)
def test_every_api_computes_with_the_adapters_of_the_request(tuned: Live, path: str) -> None:
    plain, strong, other = (text_of(tuned, path, fields) for fields in (PLAIN, STRONG, OTHER))
    assert len({plain, strong, other}) == 3
    assert text_of(tuned, path, {"temperature": 0}) == plain
    assert text_of(tuned, path, {"temperature": 0, "lora": []}) == plain
    tuned.engine.adapters.defaults = ((0, 1.0),)
    assert text_of(tuned, path, {"temperature": 0, "lora": []}) == strong
    assert text_of(tuned, path, PLAIN) == plain


def test_requests_of_several_sets_at_once_are_as_alone(tuned: Live) -> None:
    sets = [PLAIN, STRONG, OTHER]
    alone = [text_of(tuned, "/completion", fields) for fields in sets]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda f: text_of(tuned, "/completion", f), sets * 2))
    assert together == alone * 2


REFUSED: list[tuple[Any, str]] = [
    ([{"id": 2, "scale": 1}], "lora[0].id: 2 is not valid"),
    ([{"id": 0, "scale": 1}, {"id": -1, "scale": 1}], "lora[1].id: -1 is not valid"),
    ([{"id": 0, "scale": 1e39}], "lora[0].scale"),
    ([{"id": 0, "scale": "much"}], "scale"),
    ([{"id": 0}], "scale: missing"),
    ({"id": 0, "scale": 1}, "lora"),
]


@pytest.mark.parametrize("path", PATHS)
def test_every_api_names_the_entry_that_it_refuses(tuned: Live, path: str) -> None:
    text = "input" if path == "/v1/responses" else "prompt"
    body = {text: STORY, "messages": HELLO, "max_tokens": 1, "model": model_of(tuned)}
    for given, says in REFUSED:
        response = tuned.post(path, {**body, "lora": given})
        assert response.status_code == 400 and says in response.text, response.text
    if path != "/v1/responses":
        return
    raw = json.dumps({**body, "lora": [{"id": 0, "scale": 7}]}).replace("7", "1e999")
    response = tuned.post(path, raw.encode())
    assert response.status_code == 400 and "scale" in response.text, response.text


def test_a_streamed_request_is_refused_before_its_first_event(tuned: Live) -> None:
    body = {"prompt": STORY, "stream": True, "lora": [{"id": 9, "scale": 1}]}
    assert tuned.post("/completion", body).status_code == 400


def test_the_endpoints_are_llama_servers(tuned: Live) -> None:
    listed = tuned.get("/lora-adapters").json()
    names = ["first.gguf", "second.gguf"]
    assert [(each["id"], each["path"]) for each in listed] == list(enumerate(names))
    assert [each["scale"] for each in listed] == [0, 0]
    assert {"task_name", "prompt_prefix"} <= set(listed[0])
    response = tuned.post("/lora-adapters", [{"id": 1, "scale": 2.0}])
    assert (response.status_code, response.json()) == (200, {"success": True})
    assert [each["scale"] for each in tuned.get("/lora-adapters").json()] == [0, 2.0]
    fields = {"temperature": 0}
    assert text_of(tuned, "/completion", fields) == text_of(tuned, "/completion", OTHER)
    assert tuned.post("/lora-adapters", []).status_code == 200
    assert text_of(tuned, "/completion", fields) == text_of(tuned, "/completion", PLAIN)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"id": 0, "scale": 1}, "list"),
        ([{"id": 5, "scale": 1}], "lora[0].id"),
        ([{"id": 0, "scale": "x"}], "scale"),
        ([7], "[0]: 7 is not valid"),
        (b"", "a JSON list"),
        (b"[", "a JSON list"),
    ],
)
def test_a_wrong_list_is_refused_and_changes_nothing(tuned: Live, body: Any, says: str) -> None:
    tuned.post("/lora-adapters", [{"id": 0, "scale": 0.5}])
    response = tuned.post("/lora-adapters", body)
    assert response.status_code == 400 and says in response.text, response.text
    assert tuned.engine.adapters.scales() == [0.5, 0.0]


def test_the_adapters_are_shown_where_the_model_is(tuned: Live) -> None:
    tuned.post("/lora-adapters", [{"id": 0, "scale": 0.5}])
    listed = tuned.get("/lora-adapters").json()
    assert tuned.get("/model/info").json()["data"]["lora_adapters"] == listed
    props = tuned.get("/props").json()
    assert props["lora_adapters"] == listed
    assert props["default_generation_settings"]["params"]["lora"] == [{"id": 0, "scale": 0.5}]
    given = {"prompt": STORY, "n_predict": 1, "lora": [{"id": 1, "scale": 0.25}]}
    assert answered(tuned, "/completion", given)["generation_settings"]["lora"] == given["lora"]
    slots = tuned.get("/slots").json()
    assert given["lora"] in [slot["params"]["lora"] for slot in slots if "params" in slot]


def test_prefixes_of_another_set_are_not_reused(tuned: Live) -> None:
    body = {"prompt": [20 + i % 200 for i in range(100)], "n_predict": 1}
    read = [
        answered(tuned, "/completion", {**body, **fields})["timings"]["cache_n"]
        for fields in (PLAIN, STRONG, OTHER, STRONG, PLAIN)
    ]
    assert read == [0, 0, 0, 99, 99]


def test_with_limits_of_keys_only_an_admin_changes_the_defaults(tuned_engine: Engine) -> None:
    with serving(tuned_engine, ApiSettings(key_ring=RING)) as live:
        for key, status in (("alice", 403), ("root", 200)):
            response = live.post("/lora-adapters", [], headers={"x-api-key": key})
            assert response.status_code == status, response.text
        assert ask(live, "alice", **STRONG).status_code == 200


def test_the_full_path_is_shown_on_demand(tuned_engine: Engine, adapters: tuple[str, str]) -> None:
    with serving(tuned_engine, ApiSettings(expose_model_path=True)) as live:
        first = live.get("/lora-adapters").json()[0]["path"]
    assert Path(first) == Path(adapters[0])
