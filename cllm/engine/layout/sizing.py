"""How large a context fits into memory: measured, not configured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cllm.engine.config import EngineConfig
from cllm.engine.machine.memory import available_memory

_log = logging.getLogger("cllm.engine")

CELLS_STEP = 256
"""llama.cpp rounds a cache's size up to a multiple of this."""

DEFAULT_BUDGET = 2 * 1024**3
DEFAULT_CACHE_RAM = 1024**3

# Bytes per 32 values (ggml-common.h: block_q8_0 and so on).
_BYTES_PER_32 = {
    "f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18,
    "iq4_nl": 18,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContextSize:
    """ctx_size: tokens per sequence. cells: of the whole cache. kv_bytes: its size, estimated.

    too_high: whether the estimate includes layers that keep a small state instead of keys and
    values.
    """

    ctx_size: int
    cells: int
    kv_bytes: int
    too_high: bool


def kv_bytes_per_token(metadata: Mapping[str, Any], config: EngineConfig) -> int:
    """Bytes per token in the KV cache, by the model's metadata.

    An upper bound for models with windowed or latent attention, or layers without attention.
    """
    arch = metadata.get("general.architecture", "")
    layers = int(metadata.get(f"{arch}.block_count", 0))
    heads = metadata.get(f"{arch}.attention.head_count", 1)
    kv_heads = sum(_by_layer(metadata.get(f"{arch}.attention.head_count_kv", heads), layers))
    _, key, value = head_sizes(metadata)
    keys, values = kv_heads * key, kv_heads * value
    size = keys * _BYTES_PER_32[config.cache_type_k] + values * _BYTES_PER_32[config.cache_type_v]
    return size // 32


def head_sizes(metadata: Mapping[str, Any]) -> tuple[int, int, int]:
    """The most heads of a layer, and the numbers in a key and a value of each."""
    arch = metadata.get("general.architecture", "")
    width = int(metadata.get(f"{arch}.embedding_length", 0))
    heads = max(_by_layer(metadata.get(f"{arch}.attention.head_count", 1), 1), default=1)
    size = width // max(1, heads)
    return (
        heads,
        int(metadata.get(f"{arch}.attention.key_length", size)),
        int(metadata.get(f"{arch}.attention.value_length", size)),
    )


def context_size(
    metadata: Mapping[str, Any], n_ctx_train: int, config: EngineConfig, beside: int = 0
) -> ContextSize:
    """Decide tokens per sequence and cells of the cache.

    beside: bytes per token elsewhere, in a draft model's cache.
    Raises ValueError if a cache of kv_cells could not hold even one full sequence.
    """
    per_token = kv_bytes_per_token(metadata, config) + beside
    ctx_size = config.ctx_size
    if ctx_size is None:
        budget = config.memory_budget or default_budget()
        sharers = 1 if config.kv_cells else _sharers(config)
        fits = budget // max(1, per_token * sharers)
        fits = max(CELLS_STEP, fits // CELLS_STEP * CELLS_STEP)
        ctx_size = min(fits, n_ctx_train, config.kv_cells or fits)
    elif ctx_size > n_ctx_train * config.stretch:
        _log.warning(
            "ctx_size %d is more than the %d tokens that the model was trained for; "
            "quality may drop beyond that",
            ctx_size,
            n_ctx_train,
        )
    if config.kv_cells is not None:
        if config.kv_cells < ctx_size:
            raise ValueError(
                f"kv_cells={config.kv_cells} is less than one sequence of ctx_size={ctx_size}; "
                "raise kv_cells or lower ctx_size"
            )
        cells = rounded_up(config.kv_cells)
    else:
        cells = rounded_up(ctx_size) * _sharers(config)
    too_high = any(".ssm." in key or ".wkv." in key for key in metadata)
    return ContextSize(ctx_size, cells, cells * per_token, too_high)


def _sharers(config: EngineConfig) -> int:
    """Sequences with cells of their own; in a unified cache those that rest give way."""
    return config.parallel if config.kv_unified else config.sequences


def default_budget() -> int:
    """2 GiB, or half of the memory that is available now if that is less."""
    available = available_memory()
    return DEFAULT_BUDGET if available is None else min(DEFAULT_BUDGET, available // 2)


def default_cache_ram() -> int:
    """1 GiB for saved prefixes, or a quarter of the memory that is available if that is less."""
    available = available_memory()
    return DEFAULT_CACHE_RAM if available is None else min(DEFAULT_CACHE_RAM, available // 4)


def _by_layer(value: Any, layers: int) -> list[int]:
    return [int(v) for v in value] if isinstance(value, list) else [int(value)] * layers


def rounded_up(cells: int) -> int:
    """The number of cells, rounded as llama.cpp does."""
    return -(-cells // CELLS_STEP) * CELLS_STEP
