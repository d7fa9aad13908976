"""GET ``/health``: one fixed response while the server is healthy, and two levels of detail."""

from __future__ import annotations

import platform
from dataclasses import asdict
from functools import lru_cache
from importlib import metadata
from typing import Any

from cllm.api.envelopes import JSON, encode, failure
from cllm.api.service import Service, State
from cllm.http import HttpError, HttpRequest, HttpResponse

LEVELS = ("basic", "detailed", "full")

_HEALTHY = {"status": State.READY.value, "model_loaded": True}
_ASLEEP = {"status": State.READY.value, "model_loaded": False}
_OK = {"success": True, "status": "ok"}  # "status" is for clients of llama-server
_HEALTHY_BODY = encode({**_OK, "data": _HEALTHY})
_ASLEEP_BODY = encode({**_OK, "data": _ASLEEP})
_JSON_FIELD = (("Content-Type", JSON),)
_DEPENDENCIES = ("llama-cpp-python", "numpy", "msgspec", "prometheus-client", "gguf")


def health(service: Service, request: HttpRequest) -> HttpResponse:
    """The state; 503 unless healthy. Raises HttpError 400 for an unknown level."""
    level = "basic"
    if request.query_string:
        level = request.query.get("level", level)
        if level not in LEVELS:
            raise HttpError(
                400, f'level: "{level[:40]}" is not valid; expected one of {", ".join(LEVELS)}'
            )
        if level != "basic" and not service.tenants.sees_all(request):
            raise HttpError(403, f'level: "{level}" needs an admin key; "basic" needs none')
    if service.state is not State.READY:
        return unavailable(service)
    if level == "basic":
        asleep = service.resting is not None
        return HttpResponse(200, _JSON_FIELD, _ASLEEP_BODY if asleep else _HEALTHY_BODY)
    state = _HEALTHY if service.resting is None else _ASLEEP
    data: dict[str, Any] = {**state, "components": _components(service)}
    if level == "full":
        data["metrics"] = _metrics(service)
        data["dependencies"] = _dependencies()
    return HttpResponse.bytes(encode({**_OK, "data": data}), JSON)


def unavailable(service: Service) -> HttpResponse:
    """503 with "loading" (and the fraction of the model read) or "unhealthy"."""
    state = service.state
    data: dict[str, Any] = {"status": state.value, "model_loaded": state is State.READY}
    if state is State.LOADING:
        data["progress"] = round(service.progress, 4)
    return failure(503, service.reason, headers=service.retry_fields(), data=data)


def _components(service: Service) -> dict[str, Any]:
    stats = service.known.stats()
    components: dict[str, Any] = {
        "model": {"status": "healthy", "name": service.known.info().name},
        "engine": {
            "status": "healthy",
            "slots_busy": stats.slots_busy,
            "slots_total": stats.slots_total,
            "queue_depth": stats.queue_depth,
            "queue_limit": stats.queue_limit,
        },
        "kv_cache": {
            "status": "healthy",
            "tokens": stats.kv_tokens,
            "cells": stats.kv_cells,
        },
    }
    if service.server_stats is not None:
        server = service.server_stats()
        components["http_server"] = {
            "status": "healthy",
            "connections": server.connections_open,
            "queue_depth": server.queue_depth,
            "workers_busy": server.workers_busy,
        }
    return components


def _metrics(service: Service) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "uptime_seconds": service.uptime,
        "engine": asdict(service.known.stats()),
    }
    if service.server_stats is not None:
        metrics["http_server"] = asdict(service.server_stats())
    return metrics


@lru_cache(maxsize=1)
def _dependencies() -> dict[str, str]:
    """Version by name; constant while the process runs."""
    versions = {"python": platform.python_version()}
    for name in _DEPENDENCIES:
        versions[name] = metadata.version(name)
    return versions
