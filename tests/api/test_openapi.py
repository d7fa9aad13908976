"""Promises of /openapi.json: valid, complete, and true of real requests and answers."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from cllm.api import ApiSettings, Service, create_handler
from cllm.api.openapi.examples import EXAMPLES
from tests.api.api_client import Live, serving


def described(keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """The document of a server that has no model yet."""
    with serving(None, ApiSettings(api_keys=keys)) as live:
        fields = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        response = live.session.get(live.url + "/openapi.json", headers=fields)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


DOCUMENT = described()
OPERATIONS = [
    (method, path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]


def check(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(
        value
    )


def test_it_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_every_route_is_in_it_and_nothing_else() -> None:
    served = {(route.method, route.path) for route in create_handler(Service(None)).routes()}
    assert {(method.upper(), path) for method, path, _ in OPERATIONS} == served
    assert len({operation["operationId"] for _, _, operation in OPERATIONS}) == len(served)


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[f"{m} {path}" for m, path, _ in OPERATIONS]
)
def test_the_example_is_taken_and_its_answer_is_as_described(
    stories: Live, method: str, path: str, operation: dict[str, Any]
) -> None:
    given = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if given:
        check(given["example"], given["schema"])
    content = operation["responses"]["200"]["content"]
    ids = {"slots": "0", "models": stories.service.model_id, "responses": "resp_0"}
    id = next((id for name, id in ids.items() if name in path), "")
    url = stories.url + path.replace("{id}", id)
    response = stories.session.request(method, url, json=given.get("example"), stream=True)
    if response.status_code == 200:
        kind = response.headers["Content-Type"].partition(";")[0]
        assert kind in content
        schema = content[kind]["schema"]
        if kind == "application/json":
            check(response.json(), schema)
        elif "contentSchema" in schema:
            first = next(response.iter_lines())
            check(json.loads(first.removeprefix(b"data: ")), schema["contentSchema"])
        response.close()
        return
    # What the built-in model cannot do, a missing parameter of the query, a response of no request.
    expected = ("action", "is not stored")
    assert response.status_code == 501 or any(text in response.text for text in expected)
    name = operation["responses"]["5XX"]["$ref"].rpartition("/")[2]
    error = DOCUMENT["components"]["responses"][name]["content"]["application/json"]["schema"]
    check(response.json(), error)


@pytest.mark.parametrize("kind", EXAMPLES, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_example_passes_the_check_of_its_requests(kind: type) -> None:
    msgspec.convert(EXAMPLES[kind], kind)


def test_a_stream_is_described_where_it_can_be_asked_for() -> None:
    streaming = {
        path
        for _, path, operation in OPERATIONS
        if {"text/event-stream", "application/x-ndjson"}
        & set(operation["responses"]["200"]["content"])
    }
    assert streaming == {
        "/generate", "/generate_stream", "/completion", "/completions", "/infill",
        "/v1/completions", "/v1/chat/completions", "/chat/completions", "/v1/responses",
        "/responses", "/v1/messages", "/api/chat", "/api/generate", "/api/pull", "/monitor",
    }  # fmt: skip


def test_keys_are_asked_for_where_they_are_needed() -> None:
    assert DOCUMENT["security"] == []
    keyed = described(("sk-1",))
    assert keyed["security"] == [{"bearer": []}, {"x-api-key": []}]
    assert keyed["paths"]["/health"]["get"]["security"] == []
    assert "security" not in keyed["paths"]["/generate"]["post"]
