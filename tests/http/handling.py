"""Calls of a handler without a socket, for tests of what it answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cllm.http import HttpHandler, HttpRequest, HttpResponse


def call(
    handler: HttpHandler, method: str, target: str, *headers: tuple[str, str], body: bytes = b""
) -> HttpResponse:
    request = HttpRequest.build(method, target, headers=headers, body=body)
    answer = handler.handle_request(request)
    assert isinstance(answer, HttpResponse)
    answer.encode_head(keep_alive=False)  # every answer can be sent
    return answer


def header(response: HttpResponse, name: str) -> str | None:
    values = [value for key, value in response.headers if key.lower() == name.lower()]
    assert len(values) <= 1
    return values[0] if values else None


def content(response: HttpResponse) -> Any:
    assert isinstance(response.body, bytes)
    return json.loads(response.body)


def says(text: str) -> Callable[[HttpRequest], str]:
    return lambda request: text
