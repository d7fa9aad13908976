"""From a path to a loaded model with its context, or an error of one line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cllm.engine import llama
from cllm.engine.adapters import Adapters
from cllm.engine.config import MAX_PARALLEL, POOLINGS, SCORED_ROWS, SPARE_ROWS, EngineConfig
from cllm.engine.embedding.pooling import EmbeddingShape, check_classifier, pooling_of, shape_of
from cllm.engine.errors import ModelLoadError
from cllm.engine.info import ModelInfo, context_info, describe
from cllm.engine.layout.attention import with_faster_attention
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.sizing import ContextSize, context_size, kv_bytes_per_token
from cllm.engine.layout.tuning import Subject, tune
from cllm.engine.loading.draft import DraftFile
from cllm.engine.loading.gguf_header import GgufHeader
from cllm.engine.loading.lora import LoraFiles
from cllm.engine.loading.opening import (
    checked_header,
    open_context,
    open_model,
    wants_extra_bufts,
    warm_up,
)
from cllm.engine.loading.placing import gpu_layers, prepare_devices, rope_of
from cllm.engine.machine.aside import compute_aside
from cllm.engine.machine.memory import available_memory
from cllm.engine.machine.openmp import tell_if_too_late
from cllm.engine.speculation.draft_model import DraftModel

_log = logging.getLogger("cllm.engine")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, its context and its batch; close() frees them in the right order.

    shape: how inputs are computed, of a model that embeds; None: it generates. draft: the draft
    model.
    """

    config: EngineConfig
    model: llama.Model
    context: llama.Context
    batch: llama.Batch
    info: ModelInfo
    shape: EmbeddingShape | None
    draft: DraftModel | None
    adapters: Adapters

    @property
    def contexts(self) -> list[llama.Context]:
        """The model's, and the draft model's if there is one."""
        return [self.context] if self.draft is None else [self.context, self.draft.context]

    def close(self) -> None:
        """Free everything."""
        if self.draft is not None:
            self.draft.close()
        self.context.close()
        self.model.close()


Report = Callable[[float], None]


def load(
    path: Path, config: EngineConfig, progress: Report | None, tuning_progress: Report | None
) -> Loaded:
    """Load a model and warm it up. Raises ModelLoadError, or ValueError for the configuration.

    On its own thread: in a callback from llama.cpp, such as that of its log, Python would lose a
    KeyboardInterrupt.
    """
    stop = threading.Event()
    loaded: list[Loaded] = []

    def report(fraction: float) -> None:
        if stop.is_set():
            raise _GivenUpError
        if progress is not None:
            progress(fraction)

    def work() -> None:
        loaded.append(_load(path, config, report, tuning_progress or (lambda _: None), stop))

    try:
        compute_aside("cllm-load", work, stop.set)
        return loaded[0]
    except BaseException:
        for each in loaded:
            each.close()
        raise


class _GivenUpError(Exception):
    """The load was abandoned."""


def _load(
    path: Path, config: EngineConfig, progress: Report, tuned: Report, stop: threading.Event
) -> Loaded:
    prepare_devices(config)
    if config.reproducible:
        config = replace(config, kv_unified=False)  # else tune might choose
    header, drafter = checked_header(path, config), DraftFile.of(config)
    lora = LoraFiles.of(config, path.name, header)
    adapt = config.threads is None and config.threads_batch is None
    own_share = 1.0 if drafter is None else header.size_bytes / (header.size_bytes + drafter.size)
    extra = wants_extra_bufts(config, header)
    with ExitStack() as undo:
        model = open_model(path, config, extra, _part_of(progress, 0.0, own_share))
        undo.callback(model.close)
        adapters = lora.load(model)
        layout, tuning = Layout.of(config), None
        shape = _embedding_shape(path, header, model, layout, config)
        if shape is not None or not model.supports_rollback:
            # Rejected drafts must be removable from the memory.
            if drafter is not None:
                why = "generates no text" if shape else "cannot roll back a draft"
                raise ModelLoadError(f"{path.name} {why}; serve it without --model-draft")
            config = replace(config, draft_max=0)
        if shape is None:
            _log_limits(path.name, model, config)
            if config.keep_sequences is None:
                config = replace(config, keep_sequences=_kept_by_default(config, model))
            beside = 0 if drafter is None else drafter.kv_bytes_per_token(config)
            size = context_size(header.metadata, model.n_ctx_train, config, beside)
            _check_memory(size, config)
            layout = with_faster_attention(layout, header.metadata, size.ctx_size, config)
            if config.tune:
                subject = Subject(path, model, size, config, layout, extra)
                layout, tuning = tune(subject, tuned, stop)
                config = replace(config, **asdict(layout))
            context = _make_context(model, size, config, layout)
            undo.callback(context.close)
            _check_shift(path, header.metadata, model, context, size, config)
        else:
            for name in ("tune", "context_shift", "reproducible"):
                if getattr(config, name):
                    _log.warning("%s has no effect on an embedding model or a reranker", name)
            kv_bytes = shape.cells * kv_bytes_per_token(header.metadata, config)
            size = ContextSize(shape.longest, shape.cells, kv_bytes, too_high=True)
            context = _make_embedding_context(model, shape, config, layout)
            undo.callback(context.close)
        capacity = config.batch_size if shape is None else shape.batch
        batch = llama.Batch(min(capacity, context.n_batch))
        warm_up(path.name, model, context, batch)
        if llama.uses_openmp():
            tell_if_too_late()
        draft = None
        if drafter is not None:
            rest = _part_of(progress, own_share, 1.0 - own_share)
            draft = drafter.load(path.name, model.vocab, size.cells, config, layout, rest)
            undo.callback(draft.close)
        live = context_info(context, size, config, layout, extra, adapt, tuning, gpu_layers(config))
        pooling = None if shape is None else shape.pooling
        info = describe(path, model, header.metadata, live, header.quantized, pooling)
        undo.pop_all()
    return Loaded(config, model, context, batch, info, shape, draft, adapters)


def _kept_by_default(config: EngineConfig, model: llama.Model) -> int:
    """Resting sequences cost only cells that are not in use, in a unified cache of attention.

    In a split one the sequences that run would lie apart, and llama.cpp evaluates only neighboring
    ones together. A recurrent model has a state for each. A draft model's cache gives nothing up.
    With kv_cells, cells are scarce.
    """
    whole = model.window or not model.supports_rollback
    if not config.kv_unified or config.kv_cells is not None or whole or config.model_draft:
        return 0
    return min(config.parallel, MAX_PARALLEL - config.parallel)


def _part_of(progress: Report, begin: float, share: float) -> Report:
    """Report one of two models' progress as a part of the total."""
    return lambda fraction: progress(begin + share * fraction)


def _embedding_shape(
    path: Path, header: GgufHeader, model: llama.Model, layout: Layout, config: EngineConfig
) -> EmbeddingShape | None:
    """How the model embeds; None: it generates. Raises ModelLoadError if it can do neither."""
    if model.diffuses or (model.has_encoder and model.has_decoder):
        kind = "a diffusion model" if model.diffuses else "an encoder with a decoder"
        raise ModelLoadError(
            f"{path.name} is {kind}, which is not supported; give a decoder or an encoder"
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
        model.supports_rollback,
        layout.ubatch_size,
        config,
    )


def _log_limits(name: str, model: llama.Model, config: EngineConfig) -> None:
    """Say in one line what the engine cannot do with this model's memory."""
    off = []
    if not model.supports_rollback:
        whole = config.cache_ram == 0
        off += [
            "speculative decoding",
            "interruption of a step when a prompt is cancelled",
            f"reuse of a prefix {'in part' if whole else 'except up to a checkpoint'}",
        ]
    elif model.window:
        off.append(f"reuse of a part of a prefix in host memory (window of {model.window} tokens)")
    if off:
        _log.info("%s: off for this model: %s", name, "; ".join(off))


_LEAST_SHIFTED = 64  # tokens: a constraint forces up to 32 at once
_REMEDY = (
    "lower ctx_size, parallel or keep_sequences, or choose a smaller cache_type_k and cache_type_v"
)


def _check_memory(size: ContextSize, config: EngineConfig) -> None:
    available = available_memory()
    on_host = gpu_layers(config) == 0 or not config.kv_offload
    sure = on_host and config.swa_full and not size.too_high
    if sure and available is not None and size.kv_bytes > available:
        raise ModelLoadError(
            f"{config.sequences} sequences of {size.ctx_size} tokens need {_gib(size.kv_bytes)} of "
            f"cache and {_gib(available)} of memory are free; {_REMEDY}"
        )


def _make_context(
    model: llama.Model, size: ContextSize, config: EngineConfig, layout: Layout
) -> llama.Context:
    try:
        n_outputs = config.parallel + max(SPARE_ROWS, SCORED_ROWS)
        return open_context(model, size.cells, config, layout, n_outputs)
    except OSError as error:
        raise ModelLoadError(
            f"llama.cpp cannot make a context of {size.cells} tokens ({error}); {_REMEDY}"
        ) from None


def _check_shift(
    path: Path,
    metadata: Mapping[str, Any],
    model: llama.Model,
    context: llama.Context,
    size: ContextSize,
    config: EngineConfig,
) -> None:
    """Raise ModelLoadError, or ValueError for the size, if full contexts cannot be shifted."""
    if not config.context_shift:
        return
    arch = metadata.get("general.architecture")
    why = "" if model.supports_rollback and context.can_shift else "a memory that cannot be shifted"
    # llama.cpp would scale the keys of all sequences once more with each shift.
    scaled = metadata.get(f"{arch}.rope.scaling.attn_factor", 1.0) != 1.0
    if scaled or metadata.get(f"{arch}.rope.scaling.type") == "yarn":
        why = "positions that are scaled (YaRN), which llama.cpp cannot shift"
    if why:
        raise ModelLoadError(f"{path.name} ({arch}) has {why}; serve it without context_shift")
    if size.ctx_size < _LEAST_SHIFTED:
        raise ValueError(
            f"ctx_size={size.ctx_size} is too small for context_shift; give at least "
            f"{_LEAST_SHIFTED}"
        )


def _make_embedding_context(
    model: llama.Model, shape: EmbeddingShape, config: EngineConfig, layout: Layout
) -> llama.Context:
    try:
        return llama.Context(
            model,
            n_ctx=shape.cells,
            n_seq=shape.most_inputs,
            n_batch=shape.batch,
            n_ubatch=shape.batch,  # pooling needs the whole input in one batch
            n_threads=layout.threads,
            n_threads_batch=layout.threads_batch,
            flash_attn=layout.flash_attn,
            type_k=config.cache_type_k,
            type_v=config.cache_type_v,
            kv_unified=True,  # inputs of different lengths are computed at once
            pooling=POOLINGS.index(shape.pooling),
            rope=rope_of(config),
            kv_offload=config.kv_offload,
        )
    except OSError as error:
        raise ModelLoadError(
            f"llama.cpp cannot make a context for inputs of {shape.longest} tokens ({error}); "
            "lower ctx_size or ubatch_size"
        ) from None


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
