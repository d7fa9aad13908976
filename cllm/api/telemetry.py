"""What llama-server's clients are told about an answer: times, progress, settings, the prompt."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from cllm.api.llama_fields import RANDOM_SEED
from cllm.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cllm.engine import Engine, Generation, SamplingParams
    from cllm.engine.generation import Progress
    from cllm.engine.info import ModelInfo
    from cllm.engine.sharing import AdapterSet


def fingerprint(info: ModelInfo) -> str:
    """A name of what computes the answers: it changes with the server, llama.cpp and the model."""
    parts = (__version__, info.context.version, info.path.name, info.size_bytes, info.parameters)
    return "b" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]


def timings(generation: Generation, progress: Progress | None = None) -> dict[str, Any]:
    """Counts and milliseconds; the first token belongs to the prompt's time.

    progress: how much of the prompt had been read when this was reported.
    """
    usage, took = generation.usage, generation.timings
    read, made = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    reading_ms, making_ms = took.prefill_s * 1000, took.decode_s * 1000 if made else 0.0
    if progress is not None:
        read, made, making_ms = progress.evaluated - usage.cached_tokens, 0, 0.0
        reading_ms = progress.seconds * 1000 if read else 0.0
    drafts = {"draft_n": generation.guessed, "draft_n_accepted": generation.guessed_right}
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": reading_ms,
        "prompt_per_token_ms": reading_ms / read if read else 0.0,
        "prompt_per_second": read / reading_ms * 1000 if reading_ms else 0.0,
        "predicted_n": made,
        "predicted_ms": making_ms,
        "predicted_per_token_ms": making_ms / (made - 1) if made > 1 else 0.0,
        "predicted_per_second": (made - 1) / making_ms * 1000 if making_ms else 0.0,
        **(drafts if generation.guessed else {}),
    }


def progress_of(generation: Generation, progress: Progress) -> dict[str, Any]:
    """How much of the prompt has been read."""
    return {
        "total": generation.usage.prompt_tokens,
        "cache": generation.usage.cached_tokens,
        "processed": progress.evaluated,
        "time_ms": round(progress.seconds * 1000),
    }


def verbose(engine: Engine, prompt: str, generation: Generation, params: SamplingParams) -> Any:
    """`__verbose`: the prompt as the template wrote it, and how the tokens were chosen."""
    return {
        "prompt": prompt,
        "id_slot": generation.slot,
        "tokens_predicted": generation.usage.completion_tokens,
        "tokens_evaluated": generation.usage.prompt_tokens,
        "generation_settings": settings(
            params, engine.eog_tokens(), lora=scales_of(generation.adapters)
        ),
        "timings": timings(generation),
    }


def scales_of(adapters: AdapterSet) -> list[dict[str, Any]]:
    """`lora`: a set of LoRA adapters as a request gives it."""
    return [{"id": id_, "scale": scale} for id_, scale in adapters]


def settings(params: SamplingParams, eog: Sequence[int] = (), **more: Any) -> dict[str, Any]:
    """`generation_settings`. eog: the tokens that end a text. more: what the request says."""
    most = -1 if params.max_tokens is None else params.max_tokens
    biases = [{"bias": None if b < -1e9 else b, "token": t} for t, b in params.logit_bias.items()]
    if params.ignore_eos:
        biases += [{"bias": None, "token": token} for token in eog]
    return {
        "seed": RANDOM_SEED if params.seed is None else params.seed,
        "temperature": params.temperature,
        "dynatemp_range": params.dynatemp_range,
        "dynatemp_exponent": params.dynatemp_exponent,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "min_p": params.min_p,
        "top_n_sigma": params.top_n_sigma,
        "xtc_probability": params.xtc_probability,
        "xtc_threshold": params.xtc_threshold,
        "typical_p": params.typical_p,
        "repeat_last_n": params.penalty_last_n,
        "repeat_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "dry_multiplier": params.dry_multiplier,
        "dry_base": params.dry_base,
        "dry_allowed_length": params.dry_allowed_length,
        "dry_penalty_last_n": params.dry_penalty_last_n,
        "dry_sequence_breakers": list(params.dry_sequence_breakers),
        "mirostat": params.mirostat,
        "mirostat_tau": params.mirostat_tau,
        "mirostat_eta": params.mirostat_eta,
        "adaptive_target": params.adaptive_target,
        "adaptive_decay": params.adaptive_decay,
        "stop": list(params.stop),
        "max_tokens": most,
        "n_predict": most,
        "n_keep": params.n_keep,
        "n_discard": params.n_discard,
        "ignore_eos": params.ignore_eos,
        "stream": False,
        "logit_bias": biases,
        "n_probs": params.logprobs or 0,
        "min_keep": params.min_keep,
        "grammar": "",
        "grammar_lazy": False,
        "grammar_triggers": [],
        "preserved_tokens": [],
        "chat_format": "Content-only",
        "reasoning_format": "none",
        "reasoning_in_content": False,
        "generation_prompt": "",
        "samplers": ["typ_p" if name == "typical_p" else name for name in params.samplers],
        "speculative.types": "none",
        "timings_per_token": False,
        "post_sampling_probs": params.sampled_logprobs,
        "backend_sampling": False,
        "lora": [],
        **more,
    }


# What llama-server leaves out of a slot's settings.
_LONG = (
    *("dry_sequence_breakers", "stop", "logit_bias", "grammar", "grammar_lazy"),
    *("grammar_triggers", "preserved_tokens"),
)


def short_settings(params: SamplingParams, adapters: AdapterSet) -> dict[str, Any]:
    """`params` of a slot."""
    told = settings(params, lora=scales_of(adapters))
    return {name: value for name, value in told.items() if name not in _LONG}
