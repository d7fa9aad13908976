"""``/openapi.json``: the endpoints, described by the types that check their requests.

Source: OpenAPI Specification 3.1, whose schemas are JSON Schema 2020-12, as msgspec generates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import msgspec

from cllm.api.envelopes import JSON, encode
from cllm.api.keys import OPEN
from cllm.api.openapi.examples import EXAMPLES
from cllm.api.route import Family, Route
from cllm.http import HttpRequest, HttpResponse
from cllm.version import __version__

_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
_REQUEST_ID = {
    "description": "The request's id: the client's own, or a new one; the log has it too",
    "schema": {"type": "string"},
}
_PARAMETER = re.compile(r"\{(\w+)\}")


class OpenApi:
    """The endpoint; the document is generated on the first request."""

    def __init__(self, family_of: Callable[[str], Family], keyed: bool) -> None:
        """keyed: whether requests need a key."""
        self._family_of = family_of
        self._keyed = keyed
        self.routes: Sequence[Route] = ()

    def endpoint(self, request: HttpRequest) -> HttpResponse:
        """GET ``/openapi.json``."""
        return HttpResponse.bytes(self._encoded, JSON)

    @cached_property
    def _encoded(self) -> bytes:
        return encode(self._document())

    def _document(self) -> dict[str, Any]:
        served = [self._family_of(route.path) for route in self.routes]
        families = {family.name: family for family in served}
        types = [f.error for f in families.values()]
        for route in self.routes:
            types += [route.body.type] if route.body is not None else []
            types += [each for each in (route.answer, route.event) if each is not None]
        refs, schemas = msgspec.json.schema_components(
            types, ref_template="#/components/schemas/{name}"
        )
        ref_of = dict(zip(types, refs, strict=True))
        paths: dict[str, Any] = {}
        for route in self.routes:
            operation = self._operation(route, ref_of)
            paths.setdefault(route.path, {})[route.method.lower()] = operation
        errors = {
            name: {
                "description": f"An error in the shape of the {name} API",
                "headers": {"X-Request-Id": _REQUEST_ID},
                "content": {JSON: {"schema": ref_of[family.error]}},
            }
            for name, family in families.items()
        }
        return {
            "openapi": "3.1.0",
            "info": {"title": "cLLM", "version": __version__, "license": {"name": "MIT"}},
            "servers": [{"url": "/"}],
            "tags": [{"name": name} for name in families],
            "security": [{name: []} for name in _SCHEMES] if self._keyed else [],
            "paths": paths,
            "components": {
                "schemas": schemas,
                "responses": errors,
                "securitySchemes": _SCHEMES,
            },
        }

    def _operation(self, route: Route, ref_of: dict[Any, Any]) -> dict[str, Any]:
        family = self._family_of(route.path)
        error = {"$ref": f"#/components/responses/{family.name}"}
        name = re.sub(r"\W+", "_", route.path).strip("_") or "index"
        operation: dict[str, Any] = {
            "operationId": f"{route.method.lower()}_{name}",
            "summary": route.description,
            "tags": [family.name],
            "parameters": _parameters(route),
            "responses": {
                "200": {
                    "description": "Done",
                    "headers": {"X-Request-Id": _REQUEST_ID},
                    "content": _content(route, ref_of),
                },
                "4XX": error,
                "5XX": error,
            },
        }
        if route.path in OPEN:
            operation["security"] = []
        if route.body is not None:
            kind = route.body.type
            content = {JSON: {"schema": ref_of[kind], "example": EXAMPLES[kind]}}
            operation["requestBody"] = {"required": True, "content": content}
        return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(route.path)
    ]
    in_query = [
        {"name": name, "in": "query", "schema": {"type": "string", "enum": list(values)}}
        for name, values in route.query.items()
    ]
    return [*in_path, *in_query]


def _content(route: Route, ref_of: dict[Any, Any]) -> dict[str, Any]:
    """The possible content: a whole answer, events, or both if `stream` decides."""
    content: dict[str, Any] = {}
    if route.answer is not None:
        content[JSON] = {"schema": ref_of[route.answer]}
    if route.events:
        schema: dict[str, Any] = {"type": "string"}
        if route.event is not None:
            schema |= {"contentMediaType": JSON, "contentSchema": ref_of[route.event]}
        content[route.event_type] = {"schema": schema}
    return content or {route.content_type: {"schema": {"type": "string"}}}
