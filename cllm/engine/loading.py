"""From a path to a model in memory with a context around it, or one line that says why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cllm.engine import llama
from cllm.engine.aside import compute_aside
from cllm.engine.config import POOLINGS, SPARE_ROWS, EngineConfig
from cllm.engine.errors import ModelLoadError
from cllm.engine.gguf_header import GgufHeader, NotGgufError, TruncatedError, read_header
from cllm.engine.info import ModelInfo, context_info, describe
from cllm.engine.layout import Layout
from cllm.engine.pooling import EmbeddingShape, check_classifier, pooling_of, shape_of
from cllm.engine.sizing import (
    ContextSize,
    available_memory,
    context_size,
    kv_bytes_per_token,
)
from cllm.engine.tuning import Subject, tune

_log = logging.getLogger("cllm.engine")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, its context and its batch; close() frees them in the right order.

    shape: how inputs are computed, of a model that embeds; None: it generates.
    """

    config: EngineConfig
    model: llama.Model
    context: llama.Context
    batch: llama.Batch
    info: ModelInfo
    shape: EmbeddingShape | None

    def close(self) -> None:
        """Free everything."""
        self.context.close()
        self.model.close()


Report = Callable[[float], None]


def load(
    path: Path, config: EngineConfig, progress: Report | None, tuning_progress: Report | None
) -> Loaded:
    """Load a model and warm it up. Raises ModelLoadError, or ValueError for the configuration."""
    header = _checked_header(path)
    extra = _wants_extra_bufts(config, header)
    try:
        model = llama.Model(
            str(path),
            n_gpu_layers=config.n_gpu_layers,
            mmap=config.mmap,
            mlock=config.mlock,
            use_extra_bufts=extra,
            progress=progress,
        )
    except OSError as error:
        raise ModelLoadError(
            f"llama.cpp cannot load {path.name} ({error}); check that the file is whole, that this "
            "llama.cpp knows the architecture, and that there is enough memory"
        ) from None
    try:
        layout, tuning = Layout.of(config), None
        shape = _embedding_shape(path, header, model, layout, config)
        if shape is not None or model.window or not model.goes_back:
            # Guesses that do not come true must be removable from the memory.
            config = replace(config, draft_max=0)
        if shape is None:
            size = context_size(header.metadata, model.n_ctx_train, config)
            _check_memory(size, config)
            if config.tune:
                subject = Subject(path, model, size, config, extra)
                layout, tuning = tune(subject, tuning_progress or (lambda _: None))
                config = replace(config, **asdict(layout))
            context = _make_context(model, size, config, layout)
        else:
            if config.tune:
                _log.warning("tune has no effect on a model that embeds or ranks")
            kv_bytes = shape.cells * kv_bytes_per_token(header.metadata, config)
            size = ContextSize(shape.longest, shape.cells, kv_bytes, too_high=True)
            context = _make_embedding_context(model, shape, config, layout)
        try:
            capacity = config.batch_size if shape is None else shape.batch
            batch = llama.Batch(min(capacity, context.n_batch))
            token = max(0, model.vocab.bos)
            # So that the first request does not pay for it.
            code = compute_aside("cllm-warm-up", lambda: context.warm_up(batch, token))
            if code:
                raise ModelLoadError(
                    f"{path.name} loads but cannot be run (llama_decode gave {code}); "
                    "look for llama.cpp's own words with log level debug"
                )
        except BaseException:
            context.close()
            raise
    except BaseException:
        model.close()
        raise
    live = context_info(context, size, config, layout, extra, tuning)
    pooling = None if shape is None else shape.pooling
    info = describe(path, model, header.metadata, live, header.quantized, pooling)
    return Loaded(config, model, context, batch, info, shape)


def _embedding_shape(
    path: Path, header: GgufHeader, model: llama.Model, layout: Layout, config: EngineConfig
) -> EmbeddingShape | None:
    """How the model embeds; None: it generates. Raises ModelLoadError where it can do neither."""
    if model.diffuses or (model.has_encoder and model.has_decoder):
        kind = "a diffusion model" if model.diffuses else "an encoder with a decoder"
        raise ModelLoadError(
            f"{path.name} is {kind}, which is not served here; give a decoder or an encoder"
        )
    pooling = pooling_of(header.metadata, config)
    if pooling is None:
        return None
    check_classifier(path.name, pooling, header.classifies)
    return shape_of(
        pooling,
        header.metadata,
        model.n_ctx_train,
        model.vocab.n_tokens,
        model.goes_back,
        layout.ubatch_size,
        config,
    )


def _checked_header(path: Path) -> GgufHeader:
    try:
        header = read_header(path)
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
    if header.n_tensors == 0:
        raise ModelLoadError(f"{path.name} is a vocabulary without weights; give a whole model")
    return header


def _wants_extra_bufts(config: EngineConfig, header: GgufHeader) -> bool:
    """Whether the repacked/AMX kernels are to be used; tries them out first if "auto"."""
    if config.extra_bufts != "auto" or not header.quantized:
        return config.extra_bufts != "off"
    from cllm.engine import preflight

    verdict = preflight.check()
    if not verdict.ok:
        _log.warning("%s", verdict.detail)
    return verdict.ok


_REMEDY = "lower ctx_size or parallel, or choose a smaller cache_type_k and cache_type_v"


def _check_memory(size: ContextSize, config: EngineConfig) -> None:
    available = available_memory()
    sure = config.n_gpu_layers == 0 and not size.too_high
    if sure and available is not None and size.kv_bytes > available:
        raise ModelLoadError(
            f"{config.parallel} sequences of {size.ctx_size} tokens need {_gib(size.kv_bytes)} of "
            f"cache and {_gib(available)} of memory are free; {_REMEDY}"
        )


def _make_context(
    model: llama.Model, size: ContextSize, config: EngineConfig, layout: Layout
) -> llama.Context:
    try:
        return llama.Context(
            model,
            n_ctx=size.cells,
            n_seq=config.parallel,
            n_batch=config.batch_size,
            n_ubatch=layout.ubatch_size,
            n_threads=layout.threads,
            n_threads_batch=layout.threads_batch,
            flash_attn=layout.flash_attn,
            type_k=config.cache_type_k,
            type_v=config.cache_type_v,
            kv_unified=layout.kv_unified,
            n_outputs=config.parallel + (SPARE_ROWS if config.draft_max else 0),
        )
    except OSError as error:
        raise ModelLoadError(
            f"llama.cpp cannot make a context of {size.cells} tokens ({error}); {_REMEDY}"
        ) from None


def _make_embedding_context(
    model: llama.Model, shape: EmbeddingShape, config: EngineConfig, layout: Layout
) -> llama.Context:
    try:
        return llama.Context(
            model,
            n_ctx=shape.cells,
            n_seq=shape.most_inputs,
            n_batch=shape.batch,
            n_ubatch=shape.batch,  # what is pooled must be computed at once
            n_threads=layout.threads,
            n_threads_batch=layout.threads_batch,
            flash_attn=layout.flash_attn,
            type_k=config.cache_type_k,
            type_v=config.cache_type_v,
            kv_unified=True,  # inputs of different lengths are computed at once
            pooling=POOLINGS.index(shape.pooling),
        )
    except OSError as error:
        raise ModelLoadError(
            f"llama.cpp cannot make a context for inputs of {shape.longest} tokens ({error}); "
            "lower ctx_size or ubatch_size"
        ) from None


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
