"""What a step decodes: which sequences, how many tokens of each, and how they lie in the batch."""

from __future__ import annotations

from cllm.engine.llama import Batch
from cllm.engine.pacing import Pacer
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.speculation import Speculation

Plan = list[tuple[Sequence, int]]
"""Whose next tokens to decode, and how many."""


class Planner:
    """Fills steps as far as time and batch allow, and learns what they take. Engine thread."""

    def __init__(
        self, pacer: Pacer, speculation: Speculation | None, capacity: int, n_ubatch: int
    ) -> None:
        """capacity: tokens of a batch. n_ubatch: tokens that are evaluated together."""
        self._pacer = pacer
        self._speculation = speculation
        self._capacity = capacity
        self._n_ubatch = n_ubatch

    def plan(self, running: list[Sequence]) -> Plan:
        """The newest tokens of those that are generating, then of prompts what time allows."""
        generating = [s for s in running if s.decoding]
        counts = {s: s.pending for s in generating}
        room = self._capacity - sum(counts.values())
        if room < 0:
            counts = dict.fromkeys(counts, 1)
        elif self._speculation is not None and 0 < len(generating) == len(running):
            self._speculation.guess(generating, room, self._pacer.step_s(len(generating)))
            counts = {s: s.pending for s in generating}
        prompts = [s for s in running if s not in counts and slot_of(s).leader is None]
        if prompts:
            pacer, room = self._pacer, self._capacity - sum(counts.values())
            room = min(room, pacer.budget(len(counts), self._n_ubatch))
            prompts.sort(key=lambda s: pacer.due(s.generation._submitted, s.pending))
            for sequence in prompts:
                counts[sequence] = min(sequence.pending, room)
                room -= counts[sequence]
        # A cache split by sequence is decoded together only for consecutive slots in order.
        return sorted(
            ((s, n) for s, n in counts.items() if n), key=lambda item: slot_of(item[0]).id
        )

    def learn(self, plan: Plan, generating: int, seconds: float) -> None:
        """Tell the policies what a step took in which so many sequences were generating."""
        supposed = sum(sequence.supposed for sequence, _ in plan)
        step_s = self._pacer.step_s(generating)
        if not supposed:
            tokens = sum(count for _, count in plan) - generating
            self._pacer.observe(generating, tokens, seconds)
        elif self._speculation is not None and step_s is not None:
            self._speculation.observe(supposed, seconds, step_s)


def fill(batch: Batch, plan: Plan) -> int:
    """Put a plan into the batch; return its tokens. Logits are wanted after each last token."""
    at = 0
    for sequence, count in plan:
        slot = slot_of(sequence)
        start, end = slot.length, slot.length + count
        if count == 1:
            batch.token[at] = sequence.tokens[start]
            batch.pos[at] = start
            batch.seq[at] = slot.id
        else:
            batch.token[at : at + count] = sequence.tokens[start:end]
            batch.pos[at : at + count] = range(start, end)
            batch.seq[at : at + count] = slot.id
            batch.output[at : at + count] = 0
        at += count
        rows = 1 + sequence.supposed
        batch.output[at - rows : at] = end == len(sequence.tokens)
    return at
