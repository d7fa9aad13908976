"""``/lora-adapters``: which adapters there are, and the scales that apply by default."""

from __future__ import annotations

from typing import Any

from cllm.api.envelopes import JSON, encode
from cllm.api.llama_fields import LoraScale
from cllm.api.schemas import Schema
from cllm.api.service import Service
from cllm.http import HttpError, HttpRequest, HttpResponse

LORA_SCALES = Schema(list[LoraScale])


class LoraAdapters:
    """The endpoints; each raises HttpError 503 without a model."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def listed(self, request: HttpRequest) -> HttpResponse:
        """GET ``/lora-adapters``."""
        return HttpResponse.bytes(encode(described(self._service)), JSON)

    def change(self, request: HttpRequest) -> HttpResponse:
        """POST ``/lora-adapters``: the scales for later requests; 0 for what is not listed.

        Raises InvalidRequest. With a file of keys it needs an admin key: HttpError 403.
        """
        if not self._service.tenants.sees_all(request):
            raise HttpError(403, "changing the LoRA adapters of all requests needs an admin key")
        given = LORA_SCALES.decode(request.body)
        adapters = self._service.engine.adapters
        adapters.defaults = adapters.set_of([(each.id, each.scale) for each in given])
        return HttpResponse.bytes(encode({"success": True}), JSON)


def described(service: Service) -> list[dict[str, Any]]:
    """The adapters with the scales that apply by default."""
    adapters, whole = service.known.adapters, service.settings.expose_model_path
    return [
        {
            "id": id_,
            "path": str(adapter.path) if whole else adapter.path.name,
            "scale": scale,
            "task_name": adapter.metadata.get("adapter.lora.task_name", ""),
            "prompt_prefix": adapter.metadata.get("adapter.lora.prompt_prefix", ""),
        }
        for id_, (adapter, scale) in enumerate(zip(adapters.loaded, adapters.scales(), strict=True))
    ]
