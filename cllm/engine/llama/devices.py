"""The devices of this build of llama.cpp: GPUs, buffer types, NUMA nodes."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface

from cllm.engine.llama.backend import init_backend, library

_numa_lock = threading.Lock()
_numa = 0


def offloads() -> bool:
    """Whether this llama.cpp was built for a GPU and has one."""
    init_backend()
    return bool(C.llama_supports_gpu_offload())


def most_devices() -> int:
    """The most devices that a model can be divided between."""
    return int(C.llama_max_devices())


@cache
def buffer_types() -> dict[str, int]:
    """Where weights can lie, by llama.cpp's names: the address of each buffer type."""
    init_backend()
    ggml = _ggml()
    found: dict[str, int] = {}
    for index in range(ggml.ggml_backend_dev_count()):
        kind = ggml.ggml_backend_dev_buffer_type(ggml.ggml_backend_dev_get(index))
        if kind:
            found[ggml.ggml_backend_buft_name(kind).decode()] = kind
    return found


def numa_nodes() -> int:
    """The NUMA nodes of this machine."""
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1


def place_on_nodes(strategy: int) -> bool:
    """Apply a strategy (enum ggml_numa_strategy) to this process; False: another one holds."""
    global _numa
    init_backend()
    with _numa_lock:
        if not _numa and strategy:
            _numa = strategy
            C.llama_numa_init(strategy)
        return _numa == strategy


@cache
def _ggml() -> Any:
    """The library that llama.cpp has loaded: opened by the same path, it is the same one."""
    directory = library().directory
    path = next(iter(sorted(directory.glob("libggml.*"))), None)
    ggml = ctypes.CDLL(None if path is None else str(path))
    pointer = ctypes.c_void_p
    for name, takes, gives in (
        ("ggml_backend_dev_count", [], ctypes.c_size_t),
        ("ggml_backend_dev_get", [ctypes.c_size_t], pointer),
        ("ggml_backend_dev_buffer_type", [pointer], pointer),
        ("ggml_backend_buft_name", [pointer], ctypes.c_char_p),
    ):
        function = getattr(ggml, name)
        function.argtypes, function.restype = takes, gives
    return ggml
