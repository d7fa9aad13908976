"""llama.cpp alone, by its C interface: what the engine's logits are compared with."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface
import numpy as np

from cllm.engine import Engine
from cllm.engine.llama import init_backend
from tests.engine.engine_helpers import finished, greedy

CLOSE = 2e-4
"""By how much log-probabilities of the F32 model may differ between two ways to compute them."""


def plain_logprobs(
    path: Path,
    tokens: Sequence[int],
    *,
    model: Callable[[Any], object] = lambda params: None,
    context: Mapping[str, Any] | None = None,
    adapters: Sequence[tuple[Path, float]] = (),
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The log-probabilities of what follows a prompt, in an F32 cache without flash attention.

    model: changes the parameters of the model. context: parameters of the context by their names.
    """
    init_backend()
    model_params = C.llama_model_default_params()
    model_params.use_extra_bufts = False
    kept = model(model_params)
    loaded = C.llama_model_load_from_file(str(path).encode(), model_params)
    assert loaded is not None, kept
    handles = [C.llama_adapter_lora_init(loaded, str(file).encode()) for file, _ in adapters]
    assert all(handles)
    params = C.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512, 512, 512
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0
    params.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_DISABLED
    for name, value in (context or {}).items():
        setattr(params, name, value)
    made = C.llama_init_from_model(loaded, params)
    assert made is not None
    if handles:
        pointers = (C.llama_adapter_lora_p_ctypes * len(handles))(*handles)
        scales = (ctypes.c_float * len(handles))(*(scale for _, scale in adapters))
        assert C.llama_set_adapters_lora(made, pointers, len(handles), scales) == 0
    prompt = (C.llama_token * len(tokens))(*tokens)
    assert C.llama_decode(made, C.llama_batch_get_one(prompt, len(tokens))) == 0
    n_vocab = C.llama_vocab_n_tokens(C.llama_model_get_vocab(loaded))
    row = np.ctypeslib.as_array(C.llama_get_logits_ith(made, -1), (n_vocab,)).astype(np.float64)
    C.llama_free(made)
    C.llama_model_free(loaded)
    return np.asarray(row - (row.max() + np.log(np.exp(row - row.max()).sum())))


def engine_logprobs(engine: Engine, tokens: Sequence[int], **options: Any) -> dict[int, float]:
    """The engine's log-probabilities of the likeliest tokens that follow a prompt."""
    generation = engine.submit(list(tokens), greedy(1, logprobs=10), **options)
    finished(generation)
    (record,) = generation.take_tokens()
    return dict(record.top)


def difference(
    found: Mapping[int, float], plain: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """The greatest one of two distributions, of the tokens that the first one names."""
    assert found and not any(map(math.isnan, found.values()))
    return max(abs(value - float(plain[token])) for token, value in found.items())
