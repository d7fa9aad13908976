"""Whether attention is computed with llama.cpp's flash attention: as this CPU does it faster."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cllm.engine import llama
from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.sizing import head_sizes
from cllm.engine.machine.memory import available_memory

_log = logging.getLogger("cllm.engine")

_PROMPT = 4  # tokens of prompts for each generated one
_FASTER = 0.46  # times the time of flash attention: between the ratios of heads of 64 and of 80
_MOST_BYTES = 256 << 20  # for the scores of a pass, which flash attention does not keep
_MEMORY_SHARE = 8


def with_faster_attention(
    layout: Layout, metadata: Mapping[str, Any], ctx_size: int, config: EngineConfig
) -> Layout:
    """The layout without flash attention if that is clearly faster; otherwise as it is.

    llama.cpp computes the dot products of a single row with vector code for whole blocks of
    numbers, and the rest of a head number by number: with AVX512-FP16 a block is 128 numbers, and
    a head often 64.
    """
    types = config.cache_type_k, config.cache_type_v
    if layout.flash_attn != "auto" or types != ("f16", "f16") or llama.offloads():
        return layout
    if config.reproducible:
        return layout  # the choice may differ after a restart, and the texts with it
    if any(name.endswith(".kv_lora_rank") for name in metadata):
        return layout  # the heads that are computed are others
    heads, key, value = head_sizes(metadata)
    # In a unified cache a row attends to the cells of all sequences.
    cells = ctx_size * (config.parallel if layout.kv_unified else 1)
    scores = 4 * heads * layout.ubatch_size * cells
    available = available_memory()
    most = _MOST_BYTES if available is None else min(_MOST_BYTES, available // _MEMORY_SHARE)
    if min(heads, key, value) < 1 or scores > most:
        return layout
    try:
        times = llama.attention_times(key, value)
    except MemoryError:
        return layout
    if times is None:
        return layout
    flash_s, plain_s = (each.token_s + _PROMPT * each.prompt_s for each in times)
    if plain_s > _FASTER * flash_s:
        return layout
    _log.info(
        "attention: no flash attention, which takes %.1f times as long here with heads of %d; "
        "--flash-attn on uses it",
        flash_s / plain_s,
        key,
    )
    return replace(layout, flash_attn="off")
