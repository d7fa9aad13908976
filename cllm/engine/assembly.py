"""Builds the scheduler of a loaded model from its parts, and shuts all of it down."""

from __future__ import annotations

import threading

from cllm.engine.cache.checkpoints import Checkpoints
from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import copy_gain
from cllm.engine.cache.sessions import Sessions
from cllm.engine.constraints.grammars import Grammars
from cllm.engine.embedding.embedding_scheduler import EmbeddingScheduler
from cllm.engine.layout.sizing import default_cache_ram
from cllm.engine.loading.loading import Loaded
from cllm.engine.machine.own_process import OwnProcess
from cllm.engine.scheduling.admission import Admission
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.planning import Planner
from cllm.engine.scheduling.scheduler import Scheduler
from cllm.engine.scheduling.shifting import ContextShift
from cllm.engine.scheduling.threads import Threads
from cllm.engine.speculation.drafting import Drafting, DraftPolicy
from cllm.engine.speculation.speculation import Speculation
from cllm.engine.stats import EngineStats
from cllm.engine.text.tokenizer import Tokenizer

# How many checkpoints are found in a moment at the start of each prompt.
_CHECKPOINTS = 32
_CHECKPOINTS_A_SLOT = 8


def assemble(loaded: Loaded) -> tuple[Scheduler | EmbeddingScheduler, Sessions | None]:
    """The scheduler for the engine thread, and the saved sessions of a model that generates."""
    if loaded.shape is None:
        return _generator(loaded)
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
    return scheduler, None


def _generator(loaded: Loaded) -> tuple[Scheduler, Sessions]:
    config, live = loaded.config, loaded.info.context
    ctx_size, draft_max = live.ctx_size, live.draft_max
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
    drafting = None
    if loaded.draft is not None:
        policy = DraftPolicy(loaded.draft.size_bytes / loaded.info.size_bytes)
        drafting = Drafting(loaded.draft, policy, stats, split_cache)
    planner = Planner(
        Pacer(None if config.max_itl_ms is None else config.max_itl_ms / 1000),
        Speculation(draft_max, split_cache, drafting) if draft_max else None,
        loaded.batch.capacity,
        split_cache,
        loaded.context.n_ubatch,
    )
    shared_cells = loaded.context.n_ctx if config.kv_cells is not None else None
    admission = Admission(placer, loaded.model.vocab, stats, shared_cells)
    threads = Threads(loaded.contexts, live, stats)
    adds_bos = loaded.model.vocab.adds_bos
    shift = ContextShift(placer, stats, ctx_size, adds_bos) if config.context_shift else None
    scheduler = Scheduler(
        loaded.context, loaded.batch, placer, admission, planner, threads, stats, shift
    )
    return scheduler, Sessions(
        scheduler.command, placer, config, loaded.info.path, ctx_size, loaded.adapters
    )


def _checkpoints(loaded: Loaded) -> Checkpoints | None:
    """For the states of a memory that cannot roll back; None: it can."""
    model = loaded.model
    if model.supports_rollback:
        return None
    limit = _CHECKPOINTS + _CHECKPOINTS_A_SLOT * loaded.config.parallel
    return Checkpoints(limit, model.recurrent, model.vocab.control_tokens())


def release(
    runner: Scheduler | EmbeddingScheduler,
    thread: threading.Thread,
    process: OwnProcess,
    tokenizer: Tokenizer,
    sessions: Sessions | None,
    grammars: Grammars,
    loaded: Loaded,
) -> None:
    """Stop the runner, join its thread and free what was loaded.

    Runs when the engine is closed or collected, and at the interpreter's exit.
    """
    if not process.is_current:
        return  # A fork: the process that loaded the engine frees it; this copy ends with the fork.
    runner.stop()
    if threading.current_thread() is thread:
        return  # The last reference was dropped in a callback; the process's end frees the rest.
    if thread.ident is not None:
        thread.join()
    if sessions is not None:
        sessions.close()
    grammars.close()
    tokenizer.close()
    loaded.close()
