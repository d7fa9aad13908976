"""``/predict``: several requests to other endpoints in one body, as Vertex AI sends them.

Source: llama.cpp, tools/server/server-http.cpp, register_gcp_compat; Vertex AI, "Custom container
requirements for inference".
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

from msgspec import Meta, Struct

from cllm.api.envelopes import JSON, encode
from cllm.api.lanes import WAITING_SINCE
from cllm.api.llama_server.errors import error_body
from cllm.api.schemas import Schema
from cllm.api.tenants import TENANT
from cllm.http import DeferredResponse, HttpHandler, HttpRequest, HttpResponse
from cllm.http.body_stream import BodyStream

_MOST = 128  # requests in one body

_FORMATS = {
    "chatCompletions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "completion": "/completion",
    "infill": "/infill",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
    "applyTemplate": "/apply-template",
    "rerank": "/rerank",
}
_FORMAT = "@requestFormat"
_KEPT = (TENANT, WAITING_SINCE)  # of the context: each request is its sender's, and as old


class PredictRequest(Struct):
    """Body of ``/predict``: each instance names its endpoint in `@requestFormat`."""

    instances: Annotated[list[dict[str, Any]], Meta(max_length=_MOST)]


PREDICT = Schema(PredictRequest)


class Predict:
    """The endpoint."""

    __slots__ = ("_handler",)

    def __init__(self, handler: HttpHandler) -> None:
        self._handler = handler

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/predict``. Raises HttpError 400; a failed instance has an error in its place."""
        asked = PREDICT.decode(request.body)
        gathering = _Gathering(len(asked.instances))
        gathering.add([self._answer(request, instance) for instance in asked.instances])
        return gathering.answer

    def _answer(
        self, request: HttpRequest, instance: dict[str, Any]
    ) -> HttpResponse | DeferredResponse:
        format = instance.get(_FORMAT)
        path = _FORMATS.get(format) if isinstance(format, str) else None
        if path is None:
            known = f"{_FORMAT}: {format!r} is not valid; expected one of {', '.join(_FORMATS)}"
            return HttpResponse.bytes(*error_body(400, known), 400)
        fields = {name: value for name, value in instance.items() if name != _FORMAT}
        body = encode({**fields, "stream": False} if "stream" in fields else fields)
        kept = {name: request.context[name] for name in _KEPT if name in request.context}
        inner = replace(request, target=path, path=path, body=body, path_params={}, context=kept)
        return self._handler.handle_request(inner)


class _Gathering:
    """Resolves one answer once each of several has come, in their order."""

    def __init__(self, count: int) -> None:
        self.answer = DeferredResponse()
        self._lock = threading.Lock()
        self._bodies: list[bytes] = [b""] * count
        self._left = count

    def add(self, answers: Sequence[HttpResponse | DeferredResponse]) -> None:
        if not answers:
            self.answer.resolve(HttpResponse.bytes(b'{"predictions":[]}', JSON))
        for index, each in enumerate(answers):
            if isinstance(each, DeferredResponse):
                self.answer.on_cancel(each.cancel)
                each.on_cancel(partial(self._lost, index))
                each.then(partial(self._came, index))
            else:
                self._came(index, each)

    def _lost(self, index: int, reason: str) -> None:
        self._came(index, HttpResponse.bytes(*error_body(503, reason), 503))

    def _came(self, index: int, response: HttpResponse) -> HttpResponse:
        assert not isinstance(response.body, BodyStream)  # none of the formats streams
        with self._lock:
            self._bodies[index] = bytes(response.body)
            self._left -= 1
            left = self._left
        if left == 0:
            bodies = b",".join(self._bodies)
            self.answer.resolve(HttpResponse.bytes(b'{"predictions":[' + bodies + b"]}", JSON))
        return response
