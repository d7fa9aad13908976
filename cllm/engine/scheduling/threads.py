"""The number of compute threads of each step: fixed, or by thread_policy.py. Engine thread only."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from cllm.engine.info import ContextInfo
from cllm.engine.llama import Context
from cllm.engine.machine.processors import ProcessorWatch
from cllm.engine.scheduling.thread_policy import Shape, ThreadPolicy
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_LOOK_S = 1.0  # between two readings of other programs' use
_IDLE_S = 0.1  # without steps, after which what others used before says nothing
_SILENCE_S = 60.0  # between two log lines


class Threads:
    """Sets the threads of contexts before each step, and learns the cost of steps."""

    def __init__(
        self,
        contexts: Sequence[Context],
        live: ContextInfo,
        stats: EngineStats,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """live: the parameters of the contexts. clock: in seconds."""
        self._clock = clock
        self._contexts = contexts
        self._single, self._batch = live.threads, live.threads_batch
        self._most = max(self._single, self._batch)
        self._policy = ThreadPolicy(self._most) if live.threads_adapt else None
        self._stats = stats
        self._watch = ProcessorWatch()
        self._in_use = self._most
        self._looked = clock()
        self._idle_since: float | None = self._looked
        self._rested = False  # since the last look
        if self._policy is not None and self._watch.works:
            self._policy.note_spare(self._watch.cpus)  # until it is measured
        self._told, self._told_at = self._most, -math.inf
        stats.threads = stats.threads_limit = self._most
        stats.cores_left = stats.cores = self._watch.cpus

    def prepare(self, shape: Shape, fixed: bool = False) -> None:
        """Set the number of threads for a step. fixed: always the same, as sums depend on it."""
        if self._idle_since is not None:
            self._rested |= self._clock() - self._idle_since >= _IDLE_S
            self._idle_since = None
        if self._policy is not None:
            self._use(self._most if fixed else self._policy.choose(shape))

    def learn(self, shape: Shape, seconds: float) -> bool:
        """Learn a step's time; False: it was computed with a number of threads on trial."""
        policy = self._policy
        if policy is None:
            return True
        usual = self._in_use == policy.threads
        policy.learn(shape, self._in_use, seconds)
        if policy.threads != self._stats.threads:
            self._stats.threads = policy.threads
            self._stats.thread_changes += 1
        return usual

    def _use(self, count: int) -> None:
        if count != self._in_use:
            self._in_use = count
            for context in self._contexts:
                context.set_threads(min(count, self._single), min(count, self._batch))

    @property
    def is_due(self) -> bool:
        """Whether to call look() again."""
        return self._rested or self._clock() - self._looked >= _LOOK_S

    def rest(self) -> None:
        """No step follows until a request arrives."""
        if self._idle_since is None:
            self._idle_since = self._clock()

    def look(self) -> None:
        """Find out which cores other programs leave. It reads a file: best during a step.

        Only what they use while this engine computes counts. So the first look after a rest only
        begins the measurement.
        """
        now = self._looked = self._clock()
        spare = self._watch.spare()
        if self._rested:
            self._rested = False
            return
        self._stats.cores_left = math.nan if spare is None else spare
        if self._policy is not None:
            self._policy.note_spare(spare)
            self._tell(now)

    def _tell(self, now: float) -> None:
        """Log a change, at most once a minute."""
        count = self._stats.threads
        if count == self._told or now - self._told_at < _SILENCE_S:
            return
        left = f"other programs leave {self._stats.cores_left:.1f} of {self._watch.cpus} cores"
        if count < self._told:
            _log.info("using %d of %d threads: %s", count, self._most, left)
        else:
            _log.info("using %d of %d threads again: %s", count, self._most, left)
        self._told, self._told_at = count, now
