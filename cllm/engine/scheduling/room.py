"""What gives way when the cache has no room: idle prefixes, drafts, prompts, then sequences."""

from __future__ import annotations

from cllm.engine.cache.placement import Placer
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.scheduling.passes import Plan
from cllm.engine.scheduling.planning import Planner
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats


class RoomMaker:
    """Makes room in the cache for a plan, what costs least first. Engine thread only."""

    def __init__(
        self,
        placer: Placer,
        planner: Planner,
        running: list[Sequence],
        waiting: FairQueue[Sequence],
        stats: EngineStats,
    ) -> None:
        """running, waiting: the scheduler's own; a preempted sequence moves between them."""
        self._placer = placer
        self._planner = planner
        self._running = running
        self._waiting = waiting
        self._stats = stats
        self._crowd: list[Sequence] = []  # that ran when there was no room for their prompts

    def plannable(self) -> list[Sequence]:
        """The sequences to plan for: all, or only streams while there is no room for prompts."""
        if self._crowd:
            if self._crowd == self._running:
                streams = [s for s in self._running if s.decoding]
                if streams:
                    return streams
            self._crowd = []
        return self._running

    def make(self, plan: Plan) -> Plan | None:
        """Give something up; return what is left of the plan. None: nothing can be given up."""
        idle = self._placer.cache.oldest_idle()
        if idle is not None:
            self._placer.give_up(idle)
            return plan
        if any(s.drafted for s, _ in plan):
            return [(s, n - len(s.rollback())) for s, n in plan]
        generating = [(s, n) for s, n in plan if s.decoding]
        if generating and len(generating) < len(plan):
            self._crowd = list(self._running)
            return generating
        # A sequence that waits for a leader may hold no cells yet.
        taking = [s for s in self._running if slot_of(s).leader is None or slot_of(s).length]
        if len(taking) > 1:
            youngest = max(taking, key=lambda s: s.generation.submitted)
            self._preempt(youngest)
            remaining = [(s, n) for s, n in plan if s is not youngest]
            return remaining or self._planner.plan(self._running)
        (only, count) = plan[0]
        return [(only, count // 2)] if count > 1 else None

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot away; it waits at the front and is computed again."""
        slot = slot_of(sequence)
        self._stats.preemptions += 1
        self._running.remove(sequence)
        sequence.slot = None
        sequence.preempted = True
        self._placer.forget(slot)
        self._placer.cache.release(slot)
        self._waiting.put_back(sequence)
