"""A description of a slot for other threads."""

from __future__ import annotations

from dataclasses import dataclass

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.generation import Generation
from cllm.engine.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot of the cache and the number of tokens that it holds.

    waits: for a prefix that another slot's request is reading.
    tenant, generation, params: of the request that it serves or served last; None if it served
    none yet, or if its tokens were restored or erased since.
    """

    id: int
    busy: bool
    waits: bool
    tokens: int
    tenant: str | None
    generation: Generation | None
    params: SamplingParams | None


def slot_info(slot: Slot) -> SlotInfo:
    """Describe a slot as of now. Any thread."""
    served, length = slot.served, slot.length
    if slot.served is not served:  # the length may be another tenant's
        served = None
    generation, params, tenant = served or (None, None, None)
    return SlotInfo(slot.id, slot.busy, slot.leader is not None, length, tenant, generation, params)
