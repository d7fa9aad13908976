"""From the options of devices and positions to what llama.cpp takes; says which have no effect."""

from __future__ import annotations

import logging

from cllm.engine import llama
from cllm.engine.config import NUMA, ROPE_SCALINGS, SPLIT_MODES, EngineConfig
from cllm.engine.errors import ModelLoadError
from cllm.engine.overrides import TensorOverride, experts_on_cpu

_log = logging.getLogger("cllm.engine")


def prepare_devices(config: EngineConfig) -> None:
    """Check the options against this llama.cpp and machine, once before a model is loaded.

    Raises ModelLoadError. Options that have no effect here are logged.
    """
    placement_of(config)
    idle = [] if llama.offloads() else _for_gpus(config)
    if idle:
        _log.warning(
            "%s: no effect, because this llama.cpp has no GPU to use", ", ".join(sorted(idle))
        )
    if config.numa != "off":
        if not llama.place_on_nodes(NUMA.index(config.numa)):
            _log.warning("numa=%s: no effect, another value holds in this process", config.numa)
        elif llama.numa_nodes() < 2:
            _log.warning("numa=%s: no effect, this machine has one NUMA node", config.numa)


def _for_gpus(config: EngineConfig) -> list[str]:
    plain = EngineConfig()
    found = [
        name
        for name in ("split_mode", "tensor_split", "main_gpu", "kv_offload", "cpu_moe", "n_cpu_moe")
        if getattr(config, name) != getattr(plain, name)
    ]
    return [*found, "n_gpu_layers"] if config.n_gpu_layers else found


def gpu_layers(config: EngineConfig) -> int:
    """Layers to compute on a GPU, none without one; -1: all."""
    if not llama.offloads():
        return 0
    return -1 if config.n_gpu_layers is None else config.n_gpu_layers


def placement_of(config: EngineConfig) -> llama.Placement:
    """Where the weights lie. Raises ModelLoadError."""
    most = llama.most_devices()
    if len(config.tensor_split) > most:
        raise ModelLoadError(
            f"tensor_split has {len(config.tensor_split)} shares, and this llama.cpp divides a "
            f"model between {most} devices at most; give one share for each device"
        )
    tensors = [TensorOverride.parse(text) for text in config.override_tensor]
    tensors += experts_on_cpu(config.cpu_moe, config.n_cpu_moe)
    known = llama.buffer_types()
    for each in tensors:
        if each.buffer not in known:
            raise ModelLoadError(
                f"override_tensor: there is no buffer type {each.buffer!r}; "
                f"give one of {', '.join(sorted(known))}"
            )
    return llama.Placement(
        SPLIT_MODES.index(config.split_mode), config.main_gpu, config.tensor_split, tuple(tensors)
    )


def rope_of(config: EngineConfig) -> llama.Rope:
    """How positions are encoded."""
    scaling = config.rope_scaling
    scale = config.rope_freq_scale
    return llama.Rope(
        None if scaling == "auto" else ROPE_SCALINGS.index(scaling),
        config.rope_freq_base,
        1 / config.rope_scale if config.rope_scale else scale,
        config.yarn_orig_ctx or None,
        config.yarn_ext_factor,
        config.yarn_attn_factor,
        config.yarn_beta_slow,
        config.yarn_beta_fast,
    )
