"""Which waiting sequence gets a free slot, and how much of its prompt is cached there."""

from __future__ import annotations

import time
from collections.abc import Callable

from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import Served
from cllm.engine.llama import Vocab
from cllm.engine.sampling.sampler import TokenSampler
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats

_PLACING_S = 0.05  # of a step, that running streams wait while prefixes are saved and restored

GiveUp = Callable[[Sequence, Exception], None]


class Admission:
    """Fair between tenants; prefers slots that hold a prefix of the prompt. Engine thread."""

    def __init__(
        self, placer: Placer, vocab: Vocab, stats: EngineStats, shared_cells: int | None
    ) -> None:
        """shared_cells: tokens that a unified cache holds, if that may be too few for all slots."""
        self._placer = placer
        self._vocab = vocab
        self._stats = stats
        self._shared_cells = shared_cells
        self.waiting: FairQueue[Sequence] = FairQueue()

    def catch_up(self, running: list[Sequence], give_up: GiveUp) -> None:
        """Start sequences whose shared prefix another sequence has evaluated by now.

        give_up: ends the one sequence that caused an exception; the same for admit().
        """
        for sequence in list(running):
            slot = slot_of(sequence)
            try:
                if slot.leader is not None and self._placer.catch_up(slot):
                    self._note_start(sequence)
            except Exception as error:
                give_up(sequence, error)

    def admit(self, running: list[Sequence], give_up: GiveUp) -> None:
        """Give free slots to waiting sequences and add these to the running ones."""
        began = time.perf_counter()
        while (sequence := self._next(running)) is not None:
            try:
                if not self._place(sequence, running):
                    break
            except Exception as error:
                give_up(sequence, error)
            if len(running) > 1 and time.perf_counter() - began > _PLACING_S:
                break

    def _place(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Let a sequence run; False: not possible before the next decode."""
        place = self._placer.place
        slot = place(sequence.tokens, sequence.wanted_slot, sequence.fresh)
        if slot is None:
            if running:
                return False
            # A failed step left a copy pending, and no other step will perform it.
            slot = place(sequence.tokens, sequence.wanted_slot, fresh=True)
            assert slot is not None
        self.waiting.take(sequence)
        running.append(sequence)
        sequence.slot = slot
        sequence.generation.slot = slot.id
        slot.served = Served(sequence.generation, sequence.params)
        if sequence.sampler is None:
            sequence.sampler = TokenSampler(sequence.params, self._vocab)
            sequence.writer.admit()
            self._stats.prompt_tokens += sequence.n_prompt
        if slot.leader is None:
            self._note_start(sequence)
        return True

    def _next(self, running: list[Sequence]) -> Sequence | None:
        """The first that can be admitted; one that wants a busy slot is passed over."""
        cache = self._placer.cache
        if self.waiting and cache.has_idle:
            for sequence in self.waiting.candidates():
                if sequence.wanted_slot is None or not cache.slots[sequence.wanted_slot].busy:
                    return sequence if self._fits(sequence, running) else None
        return None

    def _fits(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Whether a cache that is too small for all slots fits one more at the present lengths."""
        if self._shared_cells is None or not running:
            return True
        lengths = sum(len(other.tokens) + 1 for other in running)
        return lengths + len(sequence.tokens) + 1 <= self._shared_cells

    def _note_start(self, sequence: Sequence) -> None:
        """Count the cached tokens of a sequence that is about to begin."""
        reused, stats = slot_of(sequence).length, self._stats
        if sequence.preempted:
            stats.recomputed_tokens += len(sequence.tokens) - reused
            return
        self.waiting.charge(sequence.tenant, len(sequence.tokens) - reused)
        sequence.generation.usage.cached_tokens = reused
        if sequence.params.report_progress:
            sequence.writer.report_progress(reused)
        stats.cached_tokens += reused
        stats.prefix_hits += reused > 0
