"""Ollama's options as the engine's sampling parameters."""

from __future__ import annotations

from typing import Any

from cllm.api.llama_fields import llama_logprobs, llama_sampling, most_tokens
from cllm.api.ollama.schemas import Asked, Options
from cllm.api.service import Service
from cllm.engine import SamplingParams

_NAMES = {"repeat_penalty": "repetition_penalty", "repeat_last_n": "penalty_last_n"}
_UNCHANGED = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty",
    "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "seed",
)  # fmt: skip


def sampling(service: Service, asked: Asked, **more: Any) -> SamplingParams:
    """The parameters, over the server's defaults; more: further ones.

    Raises InvalidRequest with the engine's names.
    """
    options = asked.options or Options()
    defaults = service.settings.sampling
    given = {**defaults, **llama_sampling(asked)}
    given |= {
        _NAMES.get(name, name): value
        for name in (*_UNCHANGED, *_NAMES)
        if (value := getattr(options, name)) is not None
    }
    if options.seed is not None and options.seed < 0:
        given["seed"] = None  # random
    most = options.num_predict
    given["max_tokens"] = most_tokens(
        defaults,
        asked.n_predict,
        -1 if most == 0 else most,  # 0, too, is no bound
    )
    given["logprobs"] = (asked.top_logprobs or 0) if asked.logprobs else None
    stop = options.stop or ()
    return SamplingParams(
        **{**given, **llama_logprobs(asked)},
        **more,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
