"""``/props`` and ``/slots``: settings and state of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import JSON, encode
from cllm.api.llama_server.template_caps import capabilities
from cllm.api.lora_adapters import described
from cllm.api.service import Service
from cllm.api.telemetry import short_settings
from cllm.api.tenants import tenant_of
from cllm.engine import SamplingParams
from cllm.http import HttpError, HttpRequest, HttpResponse
from cllm.version import __version__

if TYPE_CHECKING:
    from cllm.engine.cache.slot_info import SlotInfo
    from cllm.engine.info import ContextInfo, ModelInfo


class Server:
    """The endpoints; each raises HttpError 503 without a model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: tuple[ModelInfo, dict[str, Any]] | None = None

    def props(self, request: HttpRequest) -> HttpResponse:
        """GET ``/props``."""
        service = self._service
        params = short_settings(
            SamplingParams(**service.settings.sampling), service.known.adapters.defaults
        )
        told = {
            "default_generation_settings": {
                "params": params,
                "n_ctx": service.known.info().context.ctx_size,
            },
            **self._lasting(),
            "is_sleeping": service.resting is not None,
            "lora_adapters": described(service),
        }
        return HttpResponse.bytes(encode(told), JSON)

    def change_props(self, request: HttpRequest) -> HttpResponse:
        """POST ``/props``: nothing can be changed."""
        raise HttpError(501, "this server does not support changing global properties")

    def slots(self, request: HttpRequest) -> HttpResponse:
        """GET ``/slots``; with ``?fail_on_no_slot=1`` 503 if none is idle.

        With a file of keys, only an admin key sees what others' slots serve. Raises HttpError 501
        where they are switched off.
        """
        if not self._service.settings.slots:
            raise HttpError(501, "this server does not show its slots; start it with --slots")
        engine = self._service.known
        slots, context = engine.slots(), engine.info().context
        busy = sum(slot.busy for slot in slots)
        if request.query.get("fail_on_no_slot") and busy >= context.parallel:
            raise HttpError(503, "no slot available")
        all_, own = self._service.tenants.sees_all(request), tenant_of(request)
        told = [_slot(slot, context, all_ or slot.tenant == own) for slot in slots]
        return HttpResponse.bytes(encode(told), JSON)

    def _lasting(self) -> dict[str, Any]:
        """What changes only if the model is loaded again; kept, as its making takes long."""
        info = self._service.known.info()
        kept = self._kept
        if kept is None or kept[0] is not info:
            self._kept = kept = info, self._described(info)
        return kept[1]

    def _described(self, info: ModelInfo) -> dict[str, Any]:
        service = self._service
        template = service.chat_template
        return {
            "total_slots": info.context.parallel,
            "model_alias": service.model_id,
            "model_ftype": info.quantization_type,
            "model_path": str(info.path) if service.settings.expose_model_path else info.path.name,
            "modalities": {"vision": False, "video": False, "audio": False},
            "media_marker": "",
            "endpoint_slots": service.settings.slots,
            "endpoint_props": False,
            "endpoint_metrics": service.settings.metrics,
            "ui": service.settings.page,
            "ui_settings": {},
            "chat_template": template.source,
            "chat_template_caps": capabilities(template),
            "bos_token": info.bos_text,
            "eos_token": info.eos_text,
            "build_info": f"cllm {__version__}, llama.cpp {info.context.version}",
            "cors_proxy_enabled": False,
        }


def _slot(slot: SlotInfo, context: ContextInfo, whole: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "id": slot.id,
        "n_ctx": context.ctx_size,
        "speculative": context.draft_max > 0,
        "is_processing": slot.busy,
    }
    generation, params = slot.generation, slot.params
    if not whole or generation is None or params is None:
        return told
    usage = generation.usage
    made = usage.completion_tokens if slot.busy else 0
    left = params.max_tokens - made if slot.busy and params.max_tokens is not None else -1
    return {
        **told,
        "id_task": int(generation.id[:7], 16),  # a number in llama-server
        "n_prompt_tokens": slot.tokens,
        "n_prompt_tokens_processed": max(
            0, min(slot.tokens, usage.prompt_tokens) - usage.cached_tokens
        ),
        "n_prompt_tokens_cache": usage.cached_tokens,
        "draft_n": generation.guessed,
        "draft_n_accepted": generation.guessed_right,
        "params": short_settings(params, generation.adapters),
        "next_token": [
            {
                "has_next_token": slot.busy,
                "has_new_line": generation.has_newline,
                "n_remain": left,
                "n_decoded": made,
            }
        ],
    }
