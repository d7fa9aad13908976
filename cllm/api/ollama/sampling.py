"""Ollama's options as the engine's sampling parameters."""

from __future__ import annotations

from typing import Any

from cllm.api.ollama.schemas import Asked, Options
from cllm.engine import SamplingParams

_NAMES = {"repeat_penalty": "repetition_penalty", "repeat_last_n": "penalty_last_n"}
_UNCHANGED = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty",
    "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "seed",
)  # fmt: skip


def sampling(asked: Asked, **more: Any) -> SamplingParams:
    """The parameters; more: further ones. Raises InvalidRequest with the engine's names."""
    options = asked.options or Options()
    given = {
        _NAMES.get(name, name): value
        for name in (*_UNCHANGED, *_NAMES)
        if (value := getattr(options, name)) is not None
    }
    if given.get("seed", 0) < 0:
        del given["seed"]  # -1: random
    most = options.num_predict
    stop = options.stop or ()
    return SamplingParams(
        **given,
        **more,
        max_tokens=most if most is not None and most > 0 else None,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
