"""Idle slots that waiting prompts displace: they are saved while llama_decode runs.

llama.cpp can copy one sequence while it decodes others if they share no cells, nothing of them
moves, and the copy does not pass through a device. It does not promise that;
tests/engine/cache/test_saving_aside.py compares the bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from cllm.engine.cache.prefix_cache import Slot


class SavesAside:
    """What to save during the next decode. leaving: slots that no token may be computed in then."""

    def __init__(
        self, possible: bool, worth: Callable[[Slot], bool], save: Callable[[Slot], None]
    ) -> None:
        """possible: whether the cache allows it. worth: whether a slot is worth saving."""
        self.leaving: list[Slot] = []
        self._possible = possible
        self._worth = worth
        self._save = save
        self._tried: dict[int, int] = {}  # by slot: when it was used last before it was saved

    def want(self, slot: Slot, slots: list[Slot], most: int) -> bool:
        """Save an idle slot next, then other idle ones, `most` in all; False: it cannot be.

        Others are those that the prompts behind the first one will displace.
        """
        if not self._possible or self.tried(slot):
            return False
        others = [other for other in slots if not other.busy and other is not slot]
        others.sort(key=lambda other: other.last_used)
        self.leaving = [slot, *others[: most - 1]]
        return True

    def tried(self, slot: Slot) -> bool:
        """Whether what an idle slot holds was saved, or could not be."""
        return self._tried.get(slot.id) == slot.last_used

    def run(self, in_time: Callable[[], bool]) -> None:
        """Save them, the first in any case. in_time: whether one more may begin.

        Not those in which another tenant's request has claimed its place meanwhile.
        """
        for slot in self.leaving:
            if not slot.busy and self._worth(slot):
                self._tried[slot.id] = slot.last_used  # first: a failure is not repeated each step
                self._save(slot)
            if not in_time():
                break
