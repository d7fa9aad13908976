"""``/v1/models``: the one model that is served."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from cllm.api.envelopes import JSON, encode
from cllm.api.service import Service
from cllm.api.tenants import is_anthropic
from cllm.http import HttpError, HttpRequest, HttpResponse


class Models:
    """The two endpoints."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def listed(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/models``."""
        own = self._model()
        # llama-server's clients look at both lists.
        body: dict[str, Any] = {"object": "list", "data": [own], "models": [self._described(own)]}
        if is_anthropic(request):
            id = own["id"]
            body = {"data": [own | _anthropic(own)], "has_more": False}
            body |= {"first_id": id, "last_id": id}
        return HttpResponse.bytes(encode(body), JSON)

    def model(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/models/{id}``; raises HttpError 404."""
        own = self._model()
        asked = request.path_params["id"]
        if asked not in (own["id"], *own["aliases"]):
            raise HttpError(404, f'the model "{asked[:80]}" does not exist here; use "{own["id"]}"')
        more = _anthropic(own) if is_anthropic(request) else {}
        return HttpResponse.bytes(encode(own | more), JSON)

    def _described(self, own: dict[str, Any]) -> dict[str, Any]:
        """The model as Ollama's clients expect it."""
        info = self._service.known.info()
        return {
            "name": own["id"],
            "model": own["id"],
            "modified_at": "",
            "size": "",
            "digest": "",
            "type": "model",
            "description": "",
            "tags": own["tags"],
            "capabilities": own["capabilities"],
            "parameters": "",
            "details": {
                "parent_model": "",
                "format": "gguf",
                "family": info.architecture,
                "families": [info.architecture],
                "parameter_size": "",
                "quantization_level": info.quantization_type,
            },
        }

    def _model(self) -> dict[str, Any]:
        info = self._service.known.info()
        created = int(info.path.stat().st_mtime) if info.path.exists() else 0
        return {
            "id": self._service.model_id,
            "object": "model",
            "created": created,
            "owned_by": "cllm",
            "aliases": list(self._service.settings.alias),
            "tags": list(self._service.settings.tags),
            "capabilities": [info.capability],
            "meta": {
                "n_vocab": info.vocab_size,
                "n_ctx": info.context.ctx_size,
                "n_ctx_train": info.max_sequence_length,
                "n_embd": info.hidden_size,
                "n_params": info.parameters,
                "size": info.size_bytes,
            },
        }


def _anthropic(own: dict[str, Any]) -> dict[str, Any]:
    """The fields of Anthropic's models."""
    created = datetime.fromtimestamp(own["created"], timezone.utc)
    made = created.isoformat().replace("+00:00", "Z")
    return {"type": "model", "display_name": own["id"], "created_at": made}
