"""Builds the scheduler of a loaded model from its parts, and shuts all of it down."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from cllm.engine import llama
from cllm.engine.cache.checkpoints import Checkpoints
from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.cache.idle_copies import IdleCopies
from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import copy_gain
from cllm.engine.cache.sessions import Sessions
from cllm.engine.constraints.grammars import Grammars
from cllm.engine.embedding.embedding_scheduler import EmbeddingScheduler
from cllm.engine.layout.sizing import default_cache_ram
from cllm.engine.loading.loading import Loaded
from cllm.engine.machine.fingerprint import fingerprint
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.machine.uninterrupted import Uninterrupted
from cllm.engine.scheduling.admission import Admission
from cllm.engine.scheduling.disk_loads import DiskLoads
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.planning import Planner
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.engine.scheduling.shifting import ContextShift
from cllm.engine.scheduling.threads import Threads
from cllm.engine.speculation.drafting import Drafting, DraftPolicy
from cllm.engine.speculation.speculation import Speculation
from cllm.engine.speculation.synthetic import SyntheticSpeculation
from cllm.engine.stats import EngineStats
from cllm.engine.text.tokenizer import Tokenizer

_log = logging.getLogger("cllm.engine")

# How many checkpoints are found in a moment at the start of each prompt.
_CHECKPOINTS = 32
_CHECKPOINTS_A_SLOT = 8

# Options that do not change a saved state.
_INDIFFERENT = ("parallel", "keep_sequences", "ctx_size", "memory_budget", "batch_size",
                "ubatch_size", "max_itl_ms", "cache_ram", "cache_disk", "cache_disk_size",
                "draft_max", "model_draft", "spec_synth_rates", "slot_save_path", "threads",
                "threads_batch", "mlock", "mmap", "direct_io", "numa", "max_queue", "extra_bufts",
                "kv_cells", "pooling", "tune", "context_shift", "reproducible", "lora",
                "lora_init_without_apply")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Parts:
    """What an engine runs on: the scheduler for its thread, and of a model that generates the
    saved sessions and the cache on disk.
    """

    scheduler: Scheduler | EmbeddingScheduler
    sessions: Sessions | None = None
    disk: DiskCache | None = None


def assemble(loaded: Loaded) -> Parts:
    """The parts of an engine; none of them runs yet, except the threads of the cache on disk."""
    if loaded.shape is None:
        return _generator(loaded)
    if loaded.config.cache_disk is not None:
        _log.warning("cache_disk has no effect on an embedding model or a reranker")
    width = loaded.info.embedding_size or loaded.model.n_cls_out
    scheduler = EmbeddingScheduler(
        loaded.context,
        loaded.batch,
        loaded.info.context,
        loaded.shape,
        width,
        loaded.config.max_queue,
        loaded.adapters,
    )
    return Parts(scheduler)


def _generator(loaded: Loaded) -> Parts:
    config, live = loaded.config, loaded.info.context
    ctx_size = live.ctx_size
    split_cache = not config.kv_unified
    stats = EngineStats(
        queue_limit=config.max_queue,
        slots_total=config.parallel,
        kv_cells=loaded.context.n_ctx,
    )
    placer = Placer(
        loaded.context,
        stats,
        n_slots=config.sequences,
        most_busy=config.parallel,
        copy_gain=copy_gain(split_cache, ctx_size),
        split_cache=split_cache,
        max_saved_bytes=default_cache_ram() if config.cache_ram is None else config.cache_ram,
        window=loaded.model.window,
        checkpoints=_checkpoints(loaded),
    )
    pacer = Pacer(None if config.max_itl_ms is None else config.max_itl_ms / 1000)
    planner = Planner(
        pacer,
        _speculation(loaded, stats) if live.draft_max else None,
        loaded.batch.capacity,
        split_cache,
        config.parallel,
        loaded.context.n_ubatch,
        computes_tiles(loaded),
    )
    shared_cells = loaded.context.n_ctx if config.kv_cells is not None else None
    admission = Admission(placer, stats, shared_cells)
    threads = Threads(loaded.contexts, live, stats)
    adds_bos = loaded.model.vocab.adds_bos
    shift = ContextShift(placer, stats, ctx_size, adds_bos) if config.context_shift else None
    disk = _disk_cache(loaded, placer)
    if disk is not None:
        placer.disk = disk
        placer.cache.saved.in_use = disk.writer.uses
        admission.loads = DiskLoads(disk.reader, placer, pacer.prompt_s)
    scheduler = Scheduler(
        loaded.context, loaded.batch, placer, admission, planner, threads, stats, shift, disk
    )
    if disk is not None:
        disk.start(scheduler.wake)
    sessions = Sessions(
        scheduler.command, placer, config, loaded.info.path, ctx_size, loaded.adapters
    )
    return Parts(scheduler, sessions, disk)


def computes_tiles(loaded: Loaded) -> bool:
    """Whether attention is computed in tiles: flash attention on a CPU, with F16 or F32."""
    live = loaded.info.context
    types = {live.cache_type_k, live.cache_type_v}
    return live.flash_attn != "off" and types in ({"f16"}, {"f32"}) and not live.n_gpu_layers


def _speculation(loaded: Loaded, stats: EngineStats) -> Speculation | SyntheticSpeculation:
    config, draft = loaded.config, loaded.draft
    if config.spec_synth_rates:
        _log.warning("spec_synth_rates: chance accepts drafted tokens; texts have no meaning")
        return SyntheticSpeculation(len(config.spec_synth_rates), draft)
    split_cache, drafting = not config.kv_unified, None
    if draft is not None:
        policy = DraftPolicy(draft.size_bytes / loaded.info.size_bytes)
        drafting = Drafting(draft, policy, stats, split_cache)
    return Speculation(config.draft_max, split_cache, drafting)


def _disk_cache(loaded: Loaded, placer: Placer) -> DiskCache | None:
    config = loaded.config
    if config.cache_disk is None:
        return None
    saved, model = placer.cache.saved, loaded.model
    copies = IdleCopies(
        loaded.context, placer.cache, whole=model.window > 0 or not model.supports_rollback
    )
    return DiskCache(
        Path(config.cache_disk),
        config.cache_disk_size,
        lambda: _identity(loaded),
        loaded.info.context.ctx_size,
        saved.max_bytes,
        copies,
    )


def _identity(loaded: Loaded) -> str:
    """64 hex digits for what can restore a state: model, settings that change it, and build."""
    config, live = loaded.config, loaded.info.context
    settings = {k: v for k, v in asdict(config).items() if k not in _INDIFFERENT}
    settings["sequences"] = None if config.kv_unified else config.sequences
    known = [settings, live.flash_attn, live.n_gpu_layers, llama.library().key()]
    text = fingerprint(loaded.info.path) + json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _checkpoints(loaded: Loaded) -> Checkpoints | None:
    """For the states of a memory that cannot roll back; None: it can."""
    model = loaded.model
    if model.supports_rollback:
        return None
    limit = _CHECKPOINTS + _CHECKPOINTS_A_SLOT * loaded.config.parallel
    return Checkpoints(limit, model.recurrent, model.vocab.control_tokens())


def run(runner: Scheduler | EmbeddingScheduler, running: threading.Lock) -> None:
    """What the engine thread does. running: held until it ends."""
    try:
        runner.run()
    finally:
        running.release()


def release(
    thread: threading.Thread,
    running: threading.Lock,
    process: OwnProcess,
    tokenizer: Tokenizer,
    parts: Parts,
    grammars: Grammars,
    loaded: Loaded,
) -> None:
    """Stop the runner, wait for the end of its thread and free what was loaded.

    Runs when the engine is closed or collected, and at the interpreter's exit; again after Ctrl-C.
    """
    if not process.is_current:
        return  # A fork: the process that loaded the engine frees it; this copy ends with the fork.
    runner, sessions, disk = parts.scheduler, parts.sessions, parts.disk
    runner.stop()
    if threading.current_thread() is thread or runner.in_callback:
        return  # The last reference was dropped in a callback; the process's end frees the rest.
    if thread.ident is not None:
        with running:  # an interrupted join() would consider the thread ended: see aside.py
            pass
        thread.join()
    if sessions is not None:
        sessions.close()
    if disk is not None:
        disk.close(keep=runner.failure is None)
    grammars.close()
    tokenizer.close()
    with Uninterrupted():
        loaded.close()
