"""Measures how long a model takes in a layout, on a smaller context like the engine's."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import perf_counter

import numpy as np

from cllm.engine import llama
from cllm.engine.config import EngineConfig
from cllm.engine.layout.layout import Layout
from cllm.engine.layout.search import PROMPT, SINGLE, CannotMeasure
from cllm.engine.layout.sizing import ContextSize, rounded_up

_MOST_SEQUENCES = 32
_PROBE = 32  # tokens whose time decides the length of the measured prompt
_LONGEST_PROMPT = 512  # tokens
_PROMPT_SECONDS = 1.0
_REPEATS = (2, 16)  # of one measurement, minimum and maximum
_REPEAT_SECONDS = 0.3  # after which the minimum is enough


def longest_prompt(size: ContextSize, config: EngineConfig) -> int:
    """Tokens that fit into each sequence together with the steps after them."""
    room = min(size.ctx_size, size.cells // config.sequences) - _REPEATS[1]
    return max(1, min(_LONGEST_PROMPT, room, config.batch_size))


class LayoutTrial:
    """Measures parts (see search.py). Prompts are as long as can be read in a second.

    All calls on one thread; close() frees the context. There is one context at a time.
    """

    def __init__(
        self,
        model: llama.Model,
        size: ContextSize,
        config: EngineConfig,
        default: Layout,
        stop: threading.Event,
    ) -> None:
        """stop: once set, measurements end early. Raises CannotMeasure."""
        self._model = model
        self._config = config
        self._stop = stop
        self._sequences = min(config.parallel, _MOST_SEQUENCES)
        self.prompt = longest_prompt(size, config)
        self._batch = llama.Batch(max(self.prompt, self._sequences))
        self._tokens = np.arange(self.prompt, dtype=np.int32) * 31 % model.vocab.n_tokens
        self._context: llama.Context | None = None
        self._made_for: Layout | None = None
        self._read: llama.Bytes | None = None
        probe = min(_PROBE, self.prompt)
        try:
            self._ready(default)
            self._read_prompt(probe)  # loads the weights into memory
            per_token = _least(lambda: self._read_prompt(probe), self._stop) / probe
        finally:
            self.close()
        self.prompt = max(probe, min(self.prompt, int(_PROMPT_SECONDS / per_token)))

    def seconds(self, layout: Layout, part: str) -> float:
        """The minimum of a few measurements. Raises CannotMeasure."""
        self._ready(layout)
        if part == PROMPT:
            return _least(lambda: self._read_prompt(self.prompt), self._stop)
        sequences = 1 if part == SINGLE else self._sequences
        self._fill(sequences)
        return _least(lambda: self._step(sequences), self._stop)

    def close(self) -> None:
        """Free the context; the caller owns the model."""
        if self._context is not None:
            self._context.close()
        self._context = self._made_for = self._read = None

    def _ready(self, layout: Layout) -> None:
        made, config = self._made_for, self._config
        if made is None or _structure(made) != _structure(layout):
            self.close()
            try:
                self._context = llama.Context(
                    self._model,
                    n_ctx=rounded_up(self.prompt + _REPEATS[1]) * self._sequences,
                    n_seq=self._sequences,
                    n_batch=self._batch.capacity,
                    n_ubatch=layout.ubatch_size,
                    n_threads=layout.threads,
                    n_threads_batch=layout.threads_batch,
                    flash_attn=layout.flash_attn,
                    type_k=config.cache_type_k,
                    type_v=config.cache_type_v,
                    kv_unified=layout.kv_unified,
                    kv_offload=config.kv_offload,
                    swa_full=config.swa_full,
                )
            except OSError as error:
                raise CannotMeasure(str(error)) from None
            self._made_for = layout
        self._live.set_threads(layout.threads, layout.threads_batch)

    @property
    def _live(self) -> llama.Context:
        assert self._context is not None
        return self._context

    def _fill(self, sequences: int) -> None:
        """Let each sequence hold exactly the prompt, in its own cells."""
        context = self._live
        if self._read is None:
            self._read_prompt(self.prompt)
            self._read = context.save(0)
        context.clear()
        if self._read is not None:  # if a memory cannot be copied, sequences start empty
            for seq in range(sequences):
                context.restore(seq, self._read)

    def _read_prompt(self, count: int) -> None:
        batch = self._batch
        self._live.clear()
        batch.token[:count] = self._tokens[:count]
        batch.pos[:count] = range(count)
        batch.seq[:count] = 0
        batch.output[:count] = 0
        batch.output[count - 1] = 1
        self._decode(count)

    def _step(self, sequences: int) -> None:
        batch, context = self._batch, self._live
        for seq in range(sequences):
            batch.token[seq] = self._tokens[seq % self.prompt]
            batch.pos[seq] = context.last_position(seq) + 1
            batch.seq[seq] = seq
            batch.output[seq] = 1
        self._decode(sequences)

    def _decode(self, count: int) -> None:
        code = self._live.decode(self._batch, count)
        if code:
            raise CannotMeasure(f"llama_decode gave {code}")


def _structure(layout: Layout) -> tuple[bool, str, int]:
    """The parameters fixed at the creation of a context."""
    return layout.kv_unified, layout.flash_attn, layout.ubatch_size


def _least(run: Callable[[], None], stop: threading.Event) -> float:
    least, spent = math.inf, 0.0
    fewest, most = _REPEATS
    for done in range(most):
        if done and (stop.is_set() or (done >= fewest and spent > _REPEAT_SECONDS)):
            break
        begun = perf_counter()
        run()
        took = perf_counter() - begun
        least, spent = min(least, took), spent + took
    return least
