"""The served model as Ollama describes models; its store of models is not there."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from cllm.api.chat.dialect import dialect_of
from cllm.api.envelopes import JSON, encode
from cllm.api.ollama.lines import LINES
from cllm.api.ollama.schemas import MODEL
from cllm.api.service import Service
from cllm.http import HttpError, HttpRequest, HttpResponse
from cllm.version import __version__

if TYPE_CHECKING:
    from cllm.engine import ModelInfo

API_VERSION = "0.12.11"
"""The version of Ollama whose API this is; clients require a minimum."""

_TAG = ":latest"
_NEVER = "2318-01-01T00:00:00Z"  # when the model is unloaded
_LONG = 100  # items of a list of the metadata that are shown only on request


def check_model(service: Service, name: str) -> None:
    """Raise HttpError 404 unless this is a name of the served model, with or without a tag."""
    served = service.model_id
    names = {each.removesuffix(_TAG) for each in (served, *service.settings.alias)}
    if name.removesuffix(_TAG) not in names:
        raise HttpError(404, f"model '{name[:80]}' not found; this server serves '{served}'")


class Models:
    """The endpoints."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def version(self, request: HttpRequest) -> HttpResponse:
        """GET ``/api/version``."""
        return _json({"version": API_VERSION, "cllm": __version__})

    def tags(self, request: HttpRequest) -> HttpResponse:
        """GET ``/api/tags``."""
        return _json({"models": [self._entry()]})

    def running(self, request: HttpRequest) -> HttpResponse:
        """GET ``/api/ps``."""
        info = self._service.known.info()
        layers, on_gpu = info.num_layers, info.context.n_gpu_layers
        on_gpu = layers if on_gpu < 0 else min(on_gpu, layers)
        entry = self._entry()
        del entry["modified_at"]
        entry["expires_at"] = _NEVER
        entry["size_vram"] = info.size_bytes * on_gpu // max(layers, 1)
        entry["context_length"] = info.context.ctx_size
        return _json({"models": [entry]})

    def show(self, request: HttpRequest) -> HttpResponse:
        """POST ``/api/show``. Raises HttpError 400, 404 and 503."""
        asked = MODEL.decode(request.body)
        check_model(self._service, asked.named)
        info = self._service.known.info()
        return _json(
            {
                "license": str(info.metadata.get("general.license", "")),
                "modelfile": f"FROM {self._service.model_id}\n",
                "parameters": "",
                "template": self._template(),
                "details": _details(info),
                "model_info": {
                    key: value
                    for key, value in info.metadata.items()
                    if asked.verbose or not _is_long(value)
                },
                "capabilities": self._capabilities(info),
                "modified_at": _modified(info),
            }
        )

    def pull(self, request: HttpRequest) -> HttpResponse:
        """POST ``/api/pull``: the served model is there. Raises HttpError 400, 501 and 503."""
        asked = MODEL.decode(request.body)
        try:
            check_model(self._service, asked.named)
        except HttpError:
            raise HttpError(
                501,
                f"model '{asked.named[:80]}' cannot be pulled: this server serves one model, "
                f"'{self._service.model_id}'; download the GGUF file and start cLLM with "
                "--model FILE.gguf",
            ) from None
        done = encode({"status": "success"})
        if asked.stream is False:
            return HttpResponse.bytes(done, JSON)
        return HttpResponse.bytes(
            encode({"status": "pulling manifest"}) + b"\n" + done + b"\n", LINES
        )

    def unsupported(self, request: HttpRequest) -> HttpResponse:
        """What changes Ollama's store of models. Raises HttpError 501."""
        raise HttpError(
            501,
            f"{request.path} is not supported: this server has no store of models; start cLLM "
            "with --model FILE.gguf",
        )

    def _entry(self) -> dict[str, Any]:
        info, name = self._service.known.info(), self._service.model_id
        return {
            "name": name,
            "model": name,
            "modified_at": _modified(info),
            "size": info.size_bytes,
            "digest": _digest(info),
            "details": _details(info),
        }

    def _template(self) -> str:
        try:
            return self._service.chat_template.source
        except HttpError:
            return ""

    def _capabilities(self, info: ModelInfo) -> list[str]:
        if info.pooling is not None:
            return ["embedding"] if info.capability == "embedding" else []
        capabilities = ["completion"]
        with suppress(HttpError):
            dialect = dialect_of(self._service.chat_template)
            capabilities.append("tools")
            if dialect.thinks:
                capabilities.append("thinking")
        if None not in (info.fim.prefix, info.fim.suffix, info.fim.middle):
            capabilities.append("insert")
        return capabilities


def _details(info: ModelInfo) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": info.architecture,
        "families": [info.architecture],
        "parameter_size": _parameters(info.parameters),
        "quantization_level": info.quantization_type,
    }


def _parameters(count: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)


def _modified(info: ModelInfo) -> str:
    seconds = info.path.stat().st_mtime if info.path.exists() else 0
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")


def _digest(info: ModelInfo) -> str:
    """A name of the file's state; reading gigabytes for a checksum would take too long."""
    return hashlib.sha256(f"{info.path}\0{info.size_bytes}\0{_modified(info)}".encode()).hexdigest()


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > _LONG


def _json(body: dict[str, Any]) -> HttpResponse:
    return HttpResponse.bytes(encode(body), JSON)
