"""Which set of LoRA adapters the next step computes with: the sets of running sequences take turns.

llama.cpp applies one set to a whole batch, and changing it takes milliseconds. So a set keeps its
turn for a few short steps. A new set goes behind those that wait already: no row of new sets can
keep one from its turn. Pure policy.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Protocol, TypeVar

from cllm.engine.sharing import COMMON, AdapterSet

TURN_S = 0.05
"""Time after which a turn ends, if other sets wait. Each turn has at least one step."""


class Adapted(Protocol):
    """A sequence with its set."""

    @property
    def adapters(self) -> AdapterSet: ...


S = TypeVar("S", bound=Adapted)


class AdapterTurns:
    """The turns. Engine thread only."""

    __slots__ = ("_began", "_clock", "_order")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._began = 0.0
        self._order: OrderedDict[AdapterSet, None] = OrderedDict({COMMON.adapters: None})

    @property
    def holder(self) -> AdapterSet:
        """The set whose turn it is, or was last."""
        return next(iter(self._order))

    def choose(self, sequences: Seq[S]) -> list[S]:
        """The sequences of the set whose turn it is."""
        order = self._order
        holder = self.holder
        sets = dict.fromkeys(sequence.adapters for sequence in sequences)
        if len(sets) <= 1 and (not sets or holder in sets):
            return list(sequences)
        for gone in [known for known in order if known not in sets]:
            del order[gone]
        order.update(dict.fromkeys(sets))
        now = self._clock()
        if holder in sets and now - self._began >= TURN_S:
            order.move_to_end(holder)
        if (chosen := next(iter(order))) != holder:
            self._began = now
        return [sequence for sequence in sequences if sequence.adapters == chosen]
