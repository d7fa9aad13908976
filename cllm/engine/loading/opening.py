"""A model file's weights in memory and a context for them, or an error of one line."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cllm.engine import llama
from cllm.engine.config import EngineConfig
from cllm.engine.errors import ModelLoadError
from cllm.engine.layout.layout import Layout
from cllm.engine.loading.gguf_header import GgufHeader, NotGgufError, TruncatedError, read_header
from cllm.engine.loading.placing import gpu_layers, placement_of, rope_of
from cllm.engine.machine import preflight
from cllm.engine.machine.aside import compute_aside
from cllm.engine.overrides import KvOverride, overridden

_log = logging.getLogger("cllm.engine")


def open_model(
    path: Path, config: EngineConfig, extra_bufts: bool, progress: Callable[[float], None] | None
) -> llama.Model:
    """Load weights and vocabulary. Raises ModelLoadError, and what `progress` raises."""
    placement = placement_of(config)
    overrides = [KvOverride.parse(text) for text in config.override_kv]
    try:
        return llama.Model(
            str(path),
            n_gpu_layers=gpu_layers(config),
            mmap=config.mmap,
            mlock=config.mlock,
            direct_io=config.direct_io,
            use_extra_bufts=extra_bufts,
            placement=placement,
            overrides=overrides,
            progress=progress,
        )
    except llama.LoadError as error:
        raise ModelLoadError(
            f"llama.cpp cannot load {path.name} ({error}); check that the file is whole, that this "
            "llama.cpp supports its architecture, and that there is enough memory"
        ) from None


# general.type or general.architecture of files that are not complete models.
_PARTS = {
    "adapter": "a LoRA adapter, which --lora takes",
    "mmproj": "what lets a model see or hear (mmproj)",
    "clip": "what lets a model see or hear (mmproj)",
}


def open_context(
    model: llama.Model, cells: int, config: EngineConfig, layout: Layout, n_outputs: int
) -> llama.Context:
    """Create the context of a model that generates; n_outputs: see Context. Raises OSError."""
    return llama.Context(
        model,
        n_ctx=cells,
        n_seq=config.sequences,
        n_batch=config.batch_size,
        n_ubatch=layout.ubatch_size,
        n_threads=layout.threads,
        n_threads_batch=layout.threads_batch,
        flash_attn=layout.flash_attn,
        type_k=config.cache_type_k,
        type_v=config.cache_type_v,
        kv_unified=layout.kv_unified,
        n_outputs=n_outputs,
        rope=rope_of(config),
        kv_offload=config.kv_offload,
        swa_full=config.swa_full,
    )


def checked_header(path: Path, config: EngineConfig) -> GgufHeader:
    """Read the file's header. Raises ModelLoadError if it is not a complete model.

    Its metadata has the values that are configured in place of the file's.
    """
    header = readable_header(path)
    if header.n_tensors == 0:
        raise ModelLoadError(f"{path.name} has a vocabulary but no weights; give a complete model")
    for part, says in _PARTS.items():
        if part in (header.metadata.get("general.type"), header.metadata["general.architecture"]):
            raise ModelLoadError(f"{path.name} is {says}; give the main model file")
    return replace(header, metadata=overridden(header.metadata, config.override_kv))


def readable_header(path: Path) -> GgufHeader:
    """Read a GGUF file's header. Raises ModelLoadError with the remedy."""
    try:
        return read_header(path)
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"there is no file {error.filename}; check the path, or download the model first"
        ) from None
    except IsADirectoryError:
        raise ModelLoadError(f"{path} is a directory; give the .gguf file in it") from None
    except NotGgufError as error:
        raise ModelLoadError(f"{error}; give a model in GGUF format") from None
    except TruncatedError as error:
        raise ModelLoadError(f"the file is cut short: {error}; download it again") from None
    except OSError as error:
        raise ModelLoadError(
            f"{path} cannot be read ({error.strerror}); check its permissions"
        ) from None


def wants_extra_bufts(config: EngineConfig, header: GgufHeader) -> bool:
    """Whether to use the repacked/AMX kernels; "auto" tests them first.

    The AMX ones are wrong in products with a third dimension, the sequences of a recurrent layer:
    they read weights and write results at offsets that are out of bounds.
    """
    if config.extra_bufts != "auto" or not header.quantized:
        return config.extra_bufts != "off"
    library = llama.library()
    verdict = preflight.check(library)
    if not verdict.ok:
        _log.warning("%s", verdict.detail)
    elif header.recurrent and library.has_amx:
        _log.warning(
            "llama.cpp's AMX kernels crash or compute wrong numbers when a model with recurrent "
            "layers evaluates several sequences together, so they are off; with --parallel 1 you "
            "may pass --extra-bufts on"
        )
        return False
    return verdict.ok


def warm_up(name: str, model: llama.Model, context: llama.Context, batch: llama.Batch) -> None:
    """Decode once, so that the first request does not have to. Raises ModelLoadError."""
    token = max(0, model.vocab.bos)
    code = compute_aside("cllm-warm-up", lambda: context.warm_up(batch, token))
    if code:
        raise ModelLoadError(
            f"{name} was loaded but cannot run (llama_decode returned {code}); "
            "see llama.cpp's messages at log level debug"
        )
