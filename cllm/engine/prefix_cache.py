"""Which slot of the key/value cache holds which tokens, and which one a new prompt should take."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np


@dataclass(slots=True, eq=False)
class Slot:
    """One sequence of the cache. It holds tokens[:length], also after its request has ended."""

    id: int
    tokens: array[int] = field(default_factory=lambda: array("i"))
    length: int = 0
    busy: bool = False
    last_used: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Take `slot`; its first `reuse` tokens are there, once copied from `source` if that is set."""

    slot: Slot
    reuse: int
    source: Slot | None = None


class PrefixCache:
    """The slots and the policy by which they are reused.

    copy_gain: tokens that a copy between slots must save to be worth it.
    adjacent: whether llama_decode evaluates only neighbouring slots together, as it does in a
    cache that is split by sequence: 4 of 8 sequences take 41 ms as slots 0 to 3 and 57 ms as
    slots 0, 2, 4, 6 (0.6B model, two cores; the more cores, the greater the difference).
    """

    def __init__(self, n_slots: int, copy_gain: int, adjacent: bool) -> None:
        self.slots = [Slot(i) for i in range(n_slots)]
        self._copy_gain = copy_gain
        self._adjacent = adjacent
        self._clock = 0

    @property
    def has_idle(self) -> bool:
        """Whether a request can be placed."""
        return any(not slot.busy for slot in self.slots)

    def choose(self, tokens: array[int]) -> Placement:
        """Choose the slot for a prompt; at least one must be idle.

        A slot whose tokens are mostly a beginning of the prompt is continued. Otherwise the least
        recently used one (of those beside busy ones, if that matters) is given up, so that a
        common first sentence does not cost somebody's long conversation; the shared beginning is
        copied where that pays. The prompt's last token is never reused: its evaluation gives the
        logits for the first new token.
        """
        most = len(tokens) - 1
        shared = [common_prefix(s.tokens, s.length, tokens, most) for s in self.slots]
        idle = [slot for slot in self.slots if not slot.busy]
        best = max(idle, key=lambda slot: (shared[slot.id], -slot.last_used, -slot.id))
        if 2 * shared[best.id] < best.length or not shared[best.id]:
            best = min(idle, key=self._reluctance)
        source = max(self.slots, key=lambda slot: (shared[slot.id], slot is best))
        if shared[source.id] - shared[best.id] >= self._copy_gain and source is not best:
            return Placement(best, shared[source.id], source)
        return Placement(best, shared[best.id])

    def _reluctance(self, slot: Slot) -> tuple[int, bool, int, int]:
        """The less, the sooner a slot is given to a prompt that it has nothing for."""
        busy_neighbours = 0
        if self._adjacent:
            busy_neighbours = sum(s.busy for s in self.slots if abs(s.id - slot.id) == 1)
        return (-busy_neighbours, slot.length > 0, slot.last_used, slot.id)

    def occupy(self, slot: Slot, tokens: array[int], length: int) -> None:
        """Give a slot to a request, whose `tokens` it fills from here on."""
        slot.tokens, slot.length, slot.busy = tokens, length, True

    def release(self, slot: Slot) -> None:
        """Take a slot back from its request; what it holds stays for others to reuse."""
        self._clock += 1
        slot.last_used, slot.busy = self._clock, False

    def oldest_idle(self) -> Slot | None:
        """Return the least recently used slot that holds tokens for nobody; None if none does."""
        idle = [slot for slot in self.slots if not slot.busy and slot.length]
        return min(idle, key=lambda slot: slot.last_used, default=None)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(slot.busy for slot in self.slots)

    @property
    def held(self) -> int:
        """Tokens in all slots, those for nobody included; shared cells are counted in each."""
        return sum(slot.length for slot in self.slots)


def common_prefix(held: array[int], length: int, tokens: array[int], most: int) -> int:
    """Count the leading tokens, at most `most`, that held[:length] and `tokens` have in common."""
    n = min(length, most)
    if n <= 0 or held[0] != tokens[0]:
        return 0
    different = np.frombuffer(held, np.int32, n) != np.frombuffer(tokens, np.int32, n)
    first = int(different.argmax())
    return first if different[first] else n
