"""GET ``/model/info``: the loaded model, from its GGUF and its live context."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import success
from cllm.api.lora_adapters import described
from cllm.api.service import Service
from cllm.http import HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import ModelInfo


def model_info(service: Service, request: HttpRequest) -> HttpResponse:
    """The model's shape and the context in use; raises HttpError 503."""
    info, threads = service.known.info(), service.known.stats().threads
    told = _described(info, threads, service.settings.expose_model_path)
    return success({**told, "lora_adapters": described(service)})


def _described(info: ModelInfo, threads: int, expose_path: bool) -> dict[str, Any]:
    """threads: number of compute threads now."""
    return {
        "model_path": str(info.path) if expose_path else info.path.name,
        "model_name": info.name,
        "model_family": info.family,
        "architecture": info.architecture,
        "vocab_size": info.vocab_size,
        "hidden_size": info.hidden_size,
        "num_layers": info.num_layers,
        "num_attention_heads": info.num_attention_heads,
        "num_key_value_heads": info.num_key_value_heads,
        "max_sequence_length": info.max_sequence_length,
        "intermediate_size": info.intermediate_size,
        "rope_theta": _single(info.rope_theta),
        "rms_norm_eps": _single(info.rms_norm_eps),
        "quantization": {"enabled": info.quantized, "type": info.quantization_type},
        "capability": info.capability,
        "pooling": info.pooling,
        "embedding_size": info.embedding_size,
        "parameters": info.parameters,
        "size_bytes": info.size_bytes,
        "llama_cpp": {**asdict(info.context), "threads_now": threads},
    }


def _single(value: float | None) -> float | None:
    """A GGUF float32 in its shortest form: 1e-05, not the double 9.999999747378752e-06."""
    return None if value is None else float(f"{value:.7g}")
