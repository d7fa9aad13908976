"""The public description of a slot."""

from __future__ import annotations

from dataclasses import dataclass

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.generation import Generation
from cllm.engine.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot and the number of tokens it holds.

    generation, params: of the request that it serves, or served last; None: none so far.
    """

    id: int
    busy: bool
    tokens: int
    generation: Generation | None
    params: SamplingParams | None


def slot_info(slot: Slot) -> SlotInfo:
    """Describe a slot as of now. Any thread."""
    user = slot.user
    if user is None:
        return SlotInfo(slot.id, slot.busy, slot.length, None, None)
    return SlotInfo(slot.id, slot.busy, slot.length, user.generation, user.params)
