"""What attention costs on this CPU with and without llama.cpp's flash attention, measured."""

from __future__ import annotations

import ctypes
import math
import mmap
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from cllm.engine.llama.backend import init_backend, library

_HEADS, _KV_HEADS = 8, 4
_BEHIND = 512  # cached tokens
_ROWS = 64  # of a prompt, that flash attention computes together
_TIMES = 5
_F32, _F16 = 0, 1  # enum ggml_type
_MEMORY = 16 << 20  # bytes for llama.cpp's graph and what one thread needs, next to the tensors


@dataclass(frozen=True, slots=True)
class AttentionTimes:
    """Seconds of one thread for 8 heads and 512 cached tokens of F16.

    token_s: a token of a running sequence. prompt_s: each of 64 tokens of a prompt.
    """

    token_s: float
    prompt_s: float


class _InitParams(ctypes.Structure):
    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


@cache
def attention_times(key: int, value: int) -> tuple[AttentionTimes, AttentionTimes] | None:
    """With flash attention and without it, for heads of these sizes; measured once.

    It takes 20 ms of processor time for heads of 64, and 65 ms for heads of 256.
    None: this llama.cpp does not export the operations.
    """
    init_backend()
    ggml = _ggml()
    if ggml is None:
        return None
    kinds = [(flash, rows) for rows in (1, _ROWS) for flash in (True, False)]
    least = dict.fromkeys(kinds, math.inf)
    tensors = 4 * _HEADS * (_BEHIND * (key + value) + _ROWS * (key + value + 3 * _BEHIND))
    # Not from malloc: once it has freed a large block, it keeps blocks up to that size for good.
    # The same for all, so that no page is new to the process after the first time.
    memory = mmap.mmap(-1, _MEMORY + tensors)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    place = _InitParams(len(memory), begin, False)
    for _ in range(_TIMES):  # in turns, so that all meet the same load
        for flash, rows in kinds:
            seconds = _compute(ggml, place, flash, rows, key, value)
            least[flash, rows] = min(least[flash, rows], seconds)
    memory.close()
    with_flash, without = (
        AttentionTimes(least[flash, 1], least[flash, _ROWS] / _ROWS) for flash in (True, False)
    )
    return with_flash, without


def _compute(ggml: Any, place: _InitParams, flash: bool, rows: int, key: int, value: int) -> float:
    """Seconds of one thread."""
    memory = ggml.ggml_init(place)
    if not memory:
        raise MemoryError
    try:

        def zeros(kind: int, *shape: int) -> Any:
            return ggml.ggml_set_zero(ggml.ggml_new_tensor_4d(memory, kind, *shape, 1))

        query = zeros(_F32, key, rows, _HEADS)
        keys = zeros(_F16, key, _BEHIND, _KV_HEADS)
        if flash:
            values = zeros(_F16, value, _BEHIND, _KV_HEADS)
            result = ggml.ggml_flash_attn_ext(memory, query, keys, values, None, 1.0, 0.0, 0.0)
        else:
            values = zeros(_F16, _BEHIND, value, _KV_HEADS)
            scores = ggml.ggml_mul_mat(memory, keys, query)
            weights = ggml.ggml_soft_max_ext(memory, scores, None, 1.0, 0.0)
            result = ggml.ggml_mul_mat(memory, values, weights)
        graph = ggml.ggml_new_graph(memory)
        ggml.ggml_build_forward_expand(graph, result)
        began = time.thread_time()
        ggml.ggml_graph_compute_with_ctx(memory, graph, 1)
        return time.thread_time() - began
    finally:
        ggml.ggml_free(memory)


def _ggml() -> Any:
    """The functions of the library that llama.cpp has loaded; None: some are not exported."""
    path = next(iter(sorted(library().directory.glob("*ggml-cpu.*"))), None)
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
    try:
        ggml = ctypes.CDLL(None if path is None else str(path))
        for name, takes, gives in (
            ("ggml_init", [_InitParams], pointer),
            ("ggml_free", [pointer], None),
            ("ggml_new_tensor_4d", [pointer, ctypes.c_int, size, size, size, size], pointer),
            ("ggml_set_zero", [pointer], pointer),
            ("ggml_flash_attn_ext", [*[pointer] * 5, number, number, number], pointer),
            ("ggml_mul_mat", [pointer] * 3, pointer),
            ("ggml_soft_max_ext", [*[pointer] * 3, number, number], pointer),
            ("ggml_new_graph", [pointer], pointer),
            ("ggml_build_forward_expand", [pointer, pointer], None),
            ("ggml_graph_compute_with_ctx", [pointer, pointer, ctypes.c_int], ctypes.c_int),
        ):
            function = getattr(ggml, name)
            function.argtypes, function.restype = takes, gives
    except (AttributeError, OSError, TypeError):
        return None
    return ggml
