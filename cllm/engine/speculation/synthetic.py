"""Synthetic speculation, for benchmarks: drafts of one length, accepted by chance (chance.py).

It shows what speculation would gain with a draft model of a given acceptance rate. The texts have
no meaning: a drafted token that is accepted takes the place of the model's own choice.

Source: llama-server's --spec-synth-rates (common/speculative.cpp).
"""

from __future__ import annotations

from cllm.engine.config import SPARE_ROWS
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.draft_model import DraftModel


class SyntheticSpeculation:
    """Drafts in every step, whatever that costs. Engine thread only.

    model: drafts the tokens; None: they repeat the newest one, and cost nothing.
    """

    __slots__ = ("_length", "_model")

    reading = None  # drafts do not depend on texts

    def __init__(self, length: int, model: DraftModel | None) -> None:
        self._length = length
        self._model = model

    def draft(self, sequences: list[Sequence], room: int, step_s: float | None) -> None:
        """Add drafts of equal length to sequences that are generating; see Speculation."""
        able = [s for s in sequences if s.drafter is not None]
        if len(able) < len(sequences):  # a split cache evaluates only equal numbers together
            return
        left = min(s.max_length - len(s.tokens) - 1 for s in able)
        length = min(self._length, left, min(room, SPARE_ROWS) // len(able))
        if length < 1:
            return
        drafts = {s: [s.tokens[-1]] * length for s in able}
        if self._model is not None:
            drafts = self._drafted(self._model, dict.fromkeys(able, length))
        for sequence, draft in drafts.items():
            sequence.add_draft(draft)

    def _drafted(
        self, model: DraftModel, lengths: dict[Sequence, int]
    ) -> dict[Sequence, list[int]]:
        if model.broken or sum(len(s.tokens) + n for s, n in lengths.items()) > model.cells:
            return {}
        while sum(map(model.unread, lengths)) > model.capacity:
            if not model.read(list(lengths), model.capacity):
                return {}
        return model.draft(lengths)

    def observe(self, count: int, drafted: int, seconds: float, step_s: float) -> None:
        """Nothing is learned."""
