"""Requests that wait for a prefix from disk, which is read while others run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from cllm.engine.cache.disk_reader import DiskReader, Load
from cllm.engine.cache.placement import Placer
from cllm.engine.sequence import Sequence


class DiskLoads:
    """Decides whether a request waits, and for how long. Engine thread."""

    def __init__(
        self, reader: DiskReader, placer: Placer, prompt_s: Callable[[int], float | None]
    ) -> None:
        """prompt_s: seconds that evaluating some prompt tokens takes; None: unknown."""
        self._reader = reader
        self._placer = placer
        self._prompt_s = prompt_s
        self._loads: dict[Sequence, Load | None] = {}  # of waiting ones; None: nothing to wait for

    def ask(self, sequences: Iterable[Sequence]) -> None:
        """Begin to read the prefixes of requests that could get a slot; the first call counts."""
        for sequence in sequences:
            if sequence not in self._loads:
                self._loads[sequence] = self._begin(sequence)

    def delays(self, sequence: Sequence) -> bool:
        """Whether a request that could get a slot waits for a prefix; it is asked for if need be.

        It is in host memory afterwards, unless it could not be read in time.
        """
        self.ask((sequence,))
        load = self._loads[sequence]
        if load is None:
            return False
        if load.done or time.monotonic() >= load.until:
            self._loads[sequence] = None
            saved, load.saved = load.saved, None  # several may have waited for it
            if saved is not None:
                self._placer.keep(saved)
            return False
        return True

    def _begin(self, sequence: Sequence) -> Load | None:
        if sequence.fresh or sequence.scores is not None:
            return None
        tokens, scope = sequence.tokens, sequence.scope
        return self._reader.load(
            tokens, scope, self._placer.cache.coming(tokens, scope), self._prompt_s
        )

    def forget(self, sequence: Sequence) -> None:
        """A request waits no longer: it runs, or it has ended."""
        self._loads.pop(sequence, None)

    def rest(self, waiting: Iterable[Sequence], delayed: Iterable[Sequence]) -> float:
        """Seconds until a prefix of the delayed requests is late, or a deadline passes.

        When one was read, the engine thread is woken.
        """
        times = [sequence.deadline for sequence in waiting]
        loads = map(self._loads.get, delayed)
        times += [load.until for load in loads if load is not None]
        return max(0.0, min(times, default=math.inf) - time.monotonic())
