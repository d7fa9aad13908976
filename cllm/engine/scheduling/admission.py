"""Which waiting sequence gets a slot, and how much of its prompt is cached there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import islice

from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import Served
from cllm.engine.scheduling.disk_loads import DiskLoads
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats

_PLACING_S = 0.05  # of a step, that running streams wait while prefixes are saved and restored

# The same while fewer have been admitted than there are streams that wait: the larger one of a time
# and a share of the last step. Each sequence that is left out would wait for a whole step.
_GAP_S = 0.0004
_GAP_SHARE = 0.05

_SAVE_REST = 10  # times as long as placing a prompt that another prefix was saved for took
_CLAIM_REST = 10  # times as long as a claim, its pause and its saves took, until the next claim

GiveUp = Callable[[Sequence, Exception], None]


class Admission:
    """Fair between tenants; prefers slots that hold a prefix of the prompt. Engine thread.

    A tenant with less than its share of the slots gets one at once. If all are busy, it is one of a
    tenant with more: the youngest sequence of that one pauses. Its cached tokens are kept in host
    memory.
    """

    def __init__(self, placer: Placer, stats: EngineStats, shared_cells: int | None) -> None:
        """shared_cells: tokens that a unified cache holds, if that may be too few for all slots."""
        self._placer = placer
        self._stats = stats
        self._shared_cells = shared_cells
        self._next_claim = 0.0  # time.perf_counter()
        self._next_save = 0.0
        self._left = -math.inf  # when admit() returned last: a step ago, if one ran
        self.loads: DiskLoads | None = None
        self._delayed: list[Sequence] = []  # could be admitted, but wait for a prefix
        self.waiting: FairQueue[Sequence] = FairQueue()

    def catch_up(self, running: list[Sequence], give_up: GiveUp) -> None:
        """Start sequences whose shared prefix another sequence has evaluated by now.

        give_up: ends the one sequence that caused an exception; the same for admit().
        """
        for sequence in [s for s in running if slot_of(s).leader is not None]:
            try:
                if self._placer.catch_up(slot_of(sequence)):
                    self._note_start(sequence)
            except Exception as error:
                give_up(sequence, error)

    def admit(self, running: list[Sequence], give_up: GiveUp) -> list[Sequence]:
        """Give slots to waiting sequences and add these to the running ones; return them."""
        admitted: list[Sequence] = []
        if self.waiting:
            self._fill(running, give_up, admitted)
        else:
            self._delayed = []
        self._left = time.perf_counter()
        return admitted

    def _fill(self, running: list[Sequence], give_up: GiveUp, admitted: list[Sequence]) -> None:
        began = time.perf_counter()
        gap = min(_PLACING_S, max(_GAP_S, _GAP_SHARE * (began - self._left)))
        streams = sum(sequence.decoding for sequence in running)
        while (sequence := self._next(running)) is not None:
            if not self._admit(sequence, running, give_up, admitted):
                break
            most = gap if len(admitted) < streams else _PLACING_S
            if len(running) > 1 and time.perf_counter() - began > most:
                break
        if self.loads is not None:
            self._ask_ahead(self.loads)
        if self.waiting and began >= self._next_claim:
            claimant = self._claim(running)
            if claimant is not None:
                self._next_save = 0.0  # claims have a share of the time of their own
                self._admit(claimant, running, give_up, admitted, claimed=True)
                now = time.perf_counter()
                self._next_claim = now + (now - began) * _CLAIM_REST

    def _admit(
        self,
        sequence: Sequence,
        running: list[Sequence],
        give_up: GiveUp,
        admitted: list[Sequence],
        claimed: bool = False,
    ) -> bool:
        """Place a sequence; False: not possible before the next decode."""
        try:
            if not self._place(sequence, running, claimed):
                return False
            admitted.append(sequence)
        except Exception as error:
            give_up(sequence, error)
        return True

    def _claim(self, running: list[Sequence]) -> Sequence | None:
        """A waiting sequence of a tenant with less than its share, for which a slot is idle now.

        If all are busy, a sequence of a tenant with too many slots pauses. If one is idle, the
        sequence waited only for its turn or for the rest after a save.
        """
        loads = self.loads
        has_idle = self._placer.cache.has_idle
        for claimant, tenants in self.waiting.claims(self._placer.cache.most_busy):
            # One that waits for a certain slot or for a file leaves the claim to others.
            if claimant.wanted_slot is not None or (loads is not None and loads.delays(claimant)):
                continue
            if has_idle:
                first = next(self.waiting.candidates())
                if self._delayed or first.priority < claimant.priority:
                    return None  # the slot stays free for another one
                if self._fits(claimant, running):
                    return claimant
            if any(self._pause_one(tenant, claimant, running) for tenant in tenants):
                return claimant
        return None

    def _pause_one(self, tenant: str, claimant: Sequence, running: list[Sequence]) -> bool:
        """Pause the youngest sequence of a tenant for the claimant, if there is one that can."""
        others = [s for s in running if s.tenant == tenant and s.priority >= claimant.priority]
        # A prompt that is being scored would begin again; another's sums would change if it did.
        others = [s for s in others if s.scores is None and not s.reproducible]
        others.sort(key=lambda sequence: sequence.generation.submitted, reverse=True)
        for youngest in others:
            slot = slot_of(youngest)
            remaining = [sequence for sequence in running if sequence is not youngest]
            if self._placer.can_pause(slot) and self._fits(claimant, remaining):
                running.remove(youngest)
                youngest.slot = None
                youngest.preempted = True
                self._placer.cache.release(slot)
                self.waiting.pause(youngest)
                self._stats.pauses += 1
                return True
        return False

    def _place(self, sequence: Sequence, running: list[Sequence], claimed: bool) -> bool:
        """Let a sequence run; False: not possible before the next decode.

        claimed: it has claimed a slot, so it may not be passed.
        """
        place = self._placer.place
        scope = sequence.scope
        # The logits of cached tokens are not known.
        fresh = sequence.fresh or sequence.scores is not None
        began, saved = time.perf_counter(), self._stats.saved_prefixes
        # While streams wait for their next step, prefixes are saved during that step; if that is
        # not possible, saving has a small share of the time.
        streams = any(other.decoding for other in running)
        may_save = began >= self._next_save or not streams
        aside = len(self.waiting) if streams and not claimed else 0
        slot = place(sequence.tokens, sequence.wanted_slot, fresh, scope, may_save, aside)
        if self._stats.saved_prefixes > saved:
            now = time.perf_counter()
            self._next_save = now + (now - began) * _SAVE_REST
        if slot is None:
            if running:
                return False
            # A failed step left a copy pending, and no other step will perform it.
            slot = place(sequence.tokens, sequence.wanted_slot, fresh=True, scope=scope)
            assert slot is not None
        self.waiting.take(sequence)
        self.forget(sequence)
        running.append(sequence)
        sequence.slot = slot
        slot.fixed = sequence.reproducible
        sequence.generation.slot = slot.id
        slot.served = Served(sequence.generation, sequence.params, sequence.tenant)
        if not sequence.writer.admitted:
            sequence.writer.admit()
            self._stats.prompt_tokens += sequence.n_prompt
        if slot.leader is None:
            self._note_start(sequence)
        return True

    def _next(self, running: list[Sequence]) -> Sequence | None:
        """The first that can be admitted.

        One that wants a busy slot is passed over, and so is one whose prefix is being read from
        disk; for that a slot stays free.
        """
        cache = self._placer.cache
        self._delayed = []
        if self.waiting and cache.has_idle:
            free = cache.most_busy - cache.busy
            for sequence in self.waiting.candidates():
                if sequence.wanted_slot is not None and cache.slots[sequence.wanted_slot].busy:
                    continue
                if self.loads is not None and self.loads.delays(sequence):
                    self._delayed.append(sequence)
                    free -= 1
                    if not free:
                        return None
                    continue
                return sequence if self._fits(sequence, running) else None
        return None

    def _ask_ahead(self, loads: DiskLoads) -> None:
        """Have files read during the next decode, for requests that could get a slot after it."""
        cache = self._placer.cache
        could = (
            sequence
            for sequence in self.waiting.candidates()
            if sequence.wanted_slot is None or not cache.slots[sequence.wanted_slot].busy
        )
        loads.ask(islice(could, cache.most_busy - cache.busy))

    def rest(self) -> float:
        """Seconds for which nothing can be done for the waiting requests while none runs."""
        if self.loads is None or not self._delayed:
            return 0.0
        return self.loads.rest(self.waiting, self._delayed)

    def forget(self, sequence: Sequence) -> None:
        """A request has ended."""
        if self.loads is not None:
            self.loads.forget(sequence)

    def _fits(self, sequence: Sequence, running: list[Sequence]) -> bool:
        """Whether a cache that is too small for all slots fits one more at the present lengths."""
        if self._shared_cells is None or not running:
            return True
        lengths = sum(len(other.tokens) + 1 for other in running)
        return lengths + len(sequence.tokens) + 1 <= self._shared_cells

    def _note_start(self, sequence: Sequence) -> None:
        """Count the cached tokens of a sequence that is about to begin."""
        slot, stats = slot_of(sequence), self._stats
        reused = slot.length
        if sequence.preempted:
            stats.recomputed_tokens += len(sequence.tokens) - reused
            return
        self.waiting.charge(sequence.tenant, len(sequence.tokens) - reused)
        sequence.generation.usage.cached_tokens = reused
        if sequence.params.report_progress:
            sequence.writer.report_progress(reused)
        sequence.generation.prefix = slot.source if reused else ""
        stats.cached_tokens += reused
        stats.prefix_hits += reused > 0
