"""What is known of an engine whose model has been unloaded, and what its successor continues."""

from __future__ import annotations

from dataclasses import dataclass

from cllm.engine.adapters import Adapters
from cllm.engine.cache.slot_info import SlotInfo
from cllm.engine.history import History, RequestRecord
from cllm.engine.info import ModelInfo
from cllm.engine.stats import EngineStats


@dataclass(frozen=True, slots=True)
class Unloaded:
    """An engine at rest: it answers as an idle engine with empty slots, and holds no model.

    The methods are those of Engine. adapters: with the default scales at the time of unloading.
    """

    _info: ModelInfo
    _stats: EngineStats
    history: History
    adapters: Adapters

    def info(self) -> ModelInfo:
        """The model and its context as they were."""
        return self._info

    def stats(self) -> EngineStats:
        """The counters as they were left; nothing runs, waits or is held in memory."""
        return self._stats

    def slots(self) -> list[SlotInfo]:
        """The slots, all empty; none of a model that embeds or ranks."""
        if self._info.pooling is not None:
            return []
        count = self._info.context.n_slots
        return [SlotInfo(id_, False, False, 0, None, None, None) for id_ in range(count)]

    def waiting(self, most: int) -> list[tuple[str, int, list[RequestRecord]]]:
        """No request waits for a slot."""
        return []
