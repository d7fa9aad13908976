"""Context shift: a text that fills its context loses old tokens and goes on."""

from __future__ import annotations

from cllm.engine.cache.placement import Placer
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats

_LEAST_LEFT = 3  # tokens after the kept ones, at least: as in llama-server


class ContextShift:
    """Discards tokens of sequences that are full, as llama-server does. Engine thread only.

    The first n_keep tokens stay (-1: the prompt; the BOS is not counted), the next n_discard are
    discarded (0: half of the rest), and the rest moves to their positions. The keys are rotated by
    the next decode; nothing is evaluated again.
    """

    def __init__(self, placer: Placer, stats: EngineStats, ctx_size: int, adds_bos: bool) -> None:
        self._placer = placer
        self._stats = stats
        self._ctx_size = ctx_size
        self._adds_bos = adds_bos

    def apply(self, running: list[Sequence]) -> None:
        """Shift the sequences that have no space for another token."""
        for sequence in running:
            if sequence.decoding and len(sequence.tokens) >= self._ctx_size:
                self._shift(sequence)

    def _shift(self, sequence: Sequence) -> None:
        slot, params = slot_of(sequence), sequence.params
        prompt = sequence.generation.usage.prompt_tokens
        keep = prompt if params.n_keep < 0 else params.n_keep
        keep = min(keep + self._adds_bos, slot.length - _LEAST_LEFT)
        left = slot.length - keep
        discard = min(params.n_discard or left // 2, left - 1)
        self._placer.shift(slot, keep, discard)
        sequence.shift(keep, discard)
        self._stats.context_shifts += 1
