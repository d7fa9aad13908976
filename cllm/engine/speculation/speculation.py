"""Speculative decoding: drafted tokens are evaluated in one step with the newest token.

Drafts come from prompt lookup (drafter.py) or from a draft model (drafting.py). At each drafted
position the sampler chooses as if there were no draft; a draft only decides whether that choice
needs a step of its own. So speculation changes neither the text nor its distribution.
"""

from __future__ import annotations

import logging

from cllm.engine.config import SPARE_ROWS
from cllm.engine.sequence import Sequence
from cllm.engine.speculation.drafting import Drafting

_log = logging.getLogger("cllm.engine")

_PLAIN = 32  # steps with drafts after which one goes without, so that its time is measured anew
_MEMORY = 0.8  # weight of the past at each observation


class Speculation:
    """Decides how many tokens each sequence drafts for the next step. Engine thread only."""

    __slots__ = ("_drafting", "_extra_s", "_max_draft", "_split_cache", "_steps")

    def __init__(self, max_draft: int, split_cache: bool, drafting: Drafting | None = None) -> None:
        """max_draft: tokens that one sequence drafts. split_cache: sequences are evaluated together
        only with equal numbers of tokens. drafting: a draft model for sequences whose text gives
        no draft, or a shorter one; None: there is no draft model.
        """
        self._max_draft = max_draft
        self._split_cache = split_cache
        self._drafting = drafting
        self._extra_s: float | None = None  # that a drafted token adds to a step
        self._steps = 0  # with drafts, since the last one without

    def draft(self, sequences: list[Sequence], room: int, step_s: float | None) -> None:
        """Add drafts to sequences that are generating.

        room: tokens of drafts in the batch. step_s: seconds of a step without drafts; None: not
        measured yet, and nothing is drafted.
        """
        if step_s is None:
            return
        if self._steps >= _PLAIN:
            self._steps = 0
            return
        count = len(sequences)
        if self._extra_s is None:
            self._extra_s = step_s / (count + 1) / 4
        cost = self._extra_s * count / step_s
        room = min(room, SPARE_ROWS) // count
        limits = [min(self._max_draft, room, s.max_length - len(s.tokens) - 1) for s in sequences]
        all_or_none = self._split_cache and count > 1
        drafts = []
        for sequence, limit in zip(sequences, limits, strict=True):
            drafter = sequence.drafter
            drafts.append(drafter.draft(sequence.tokens, limit, cost) if drafter else [])
            if all_or_none and not drafts[-1] and self._drafting is None:
                return
        if self._drafting is not None:
            self._improve(self._drafting, sequences, drafts, limits, cost, step_s)
            if all_or_none and not all(drafts):
                return
        self._steps = self._steps + 1 if any(drafts) else 0
        shortest = min(map(len, drafts)) if self._split_cache else self._max_draft
        for sequence, draft in zip(sequences, drafts, strict=True):
            sequence.add_draft(draft[:shortest])

    def _improve(
        self,
        drafting: Drafting,
        sequences: list[Sequence],
        drafts: list[list[int]],
        limits: list[int],
        cost: float,
        step_s: float,
    ) -> None:
        """Let the draft model draft. If it fails it is dropped, and no request is affected."""
        try:
            drafting.improve(sequences, drafts, limits, cost, step_s)
        except Exception:
            _log.exception("the draft model failed and is no longer used")
            drafting.stop()
            self._drafting = None

    def observe(self, drafted: int, seconds: float, step_s: float) -> None:
        """Learn from a step with drafts what a drafted token costs; one delay changes little."""
        before = 0.0 if self._extra_s is None else self._extra_s
        most = max(2 * before, step_s / 16)
        extra_s = min(max(0.0, seconds - step_s) / drafted, most)
        self._extra_s = before * _MEMORY + extra_s * (1 - _MEMORY)
