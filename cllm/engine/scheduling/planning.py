"""What a step decodes: which sequences, how many tokens of each, and their order in the batch."""

from __future__ import annotations

import logging

from cllm.engine.llama import Batch
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.speculation.speculation import Speculation

_log = logging.getLogger("cllm.engine")

_TILE = 64
"""Rows of a sequence that llama.cpp's flash attention computes together on a CPU, the rest singly.
After 1 500 tokens, 64 rows take less time than 32, and two thirds of the time of 65."""
_OVER = 8
"""Tokens by which a step without waiting streams may exceed its time to read a whole tile."""
_SHALLOW = 256  # tokens of context up to which a part of a tile costs about its share
_PARTS = (16, 8)

Plan = list[tuple[Sequence, int]]
"""The sequences to decode, with a number of tokens each."""


class Planner:
    """Fills steps within the time and batch limits, and learns their cost. Engine thread."""

    def __init__(
        self,
        pacer: Pacer,
        speculation: Speculation | None,
        capacity: int,
        split: bool,
    ) -> None:
        """capacity: tokens of a batch. split: whether tokens evaluated together must be the same
        number for each sequence, as in a cache that is split by sequence.
        """
        self._pacer = pacer
        self._speculation = speculation
        self._capacity = capacity
        self._split = split
        self._prompts_were_read = False

    def plan(self, running: list[Sequence]) -> Plan:
        """The newest tokens of generating sequences, and as much of prompts as time allows.

        A split cache would evaluate the two one after the other: the first token of each prompt
        with the newest tokens of the others, then the rest. There they take turns, so that both
        keep shapes that are evaluated fast.
        """
        # A prompt that is cached except for its last token is evaluated like a stream.
        following = [s for s in running if slot_of(s).leader is None]
        generating = [s for s in following if s.decoding or s.pending == 1]
        prompts = [s for s in following if not s.decoding and s.pending > 1]
        if self._split and generating and self._prompts_were_read:
            prompts = []
        self._prompts_were_read = bool(prompts)
        plain = bool(prompts) or not all(s.decoding for s in generating)
        counts = {} if prompts and self._split else self._newest(generating, not plain)
        if prompts:
            self._add_prompts(counts, prompts, len(generating))
        # A split cache decodes together only consecutive slots in order.
        return sorted(
            ((s, n) for s, n in counts.items() if n), key=lambda item: slot_of(item[0]).id
        )

    def _newest(self, generating: list[Sequence], guess: bool) -> dict[Sequence, int]:
        room = self._capacity - sum(s.pending for s in generating)
        if room < 0:
            return dict.fromkeys(generating, 1)
        if guess and generating and self._speculation is not None:
            step_s = self._pacer.step_s(len(generating))
            try:
                self._speculation.guess(generating, room, step_s)
            except Exception:  # drafting only saves time
                _log.exception("guessing ahead failed; no tokens are guessed any more")
                self._speculation = None
                for sequence in generating:
                    sequence.take_back()
        return {s: s.pending for s in generating}

    def _add_prompts(
        self, counts: dict[Sequence, int], prompts: list[Sequence], generating: int
    ) -> None:
        pacer, capacity = self._pacer, self._capacity - sum(counts.values())
        budget = room = min(capacity, pacer.budget(generating, len(prompts), _TILE))
        over = _TILE // 2 if generating else _OVER
        prompts.sort(key=lambda s: pacer.due(s.generation._submitted, s.pending))
        for sequence in prompts:
            if sequence is not prompts[0] and room < min(sequence.pending, _TILE // 2):
                break
            count = min(_part(sequence.pending, room, slot_of(sequence).length, over), capacity)
            if not generating and count < sequence.pending and 0 < budget - room < budget // 4:
                break  # a prompt read to its end would wait several times as long for its answer
            counts[sequence] = count
            capacity -= count
            room = max(0, room - count)

    def learn(self, plan: Plan, seconds: float) -> None:
        """Report a step's cost to the policies, unless it contained tokens they do not model."""
        for sequence, count in plan:
            begun = len(sequence.tokens) - sequence.supposed > sequence.n_prompt
            if begun and count > 1 + sequence.supposed:
                return  # tokens forced by a constraint
        generating = sum(count == 1 + sequence.supposed for sequence, count in plan)
        supposed = sum(sequence.supposed for sequence, _ in plan)
        step_s = self._pacer.step_s(generating)
        if not supposed:
            tokens = sum(count for _, count in plan) - generating
            self._pacer.observe(generating, tokens, seconds)
        elif self._speculation is not None and step_s is not None:
            self._speculation.observe(supposed, seconds, step_s)


def _part(pending: int, room: int, behind: int, over: int = _TILE // 2) -> int:
    """How many tokens of a prompt to read if there is time for `room` tokens.

    The remainder of whole tiles comes first, while the context is short, then whole tiles. behind:
    tokens read already. over: tokens by which the room may be exceeded; with half a tile the
    result is the nearest number of tiles.
    """
    if pending <= room:
        return pending
    if room < _TILE // 2 and behind < _SHALLOW:
        return next((part for part in _PARTS if part <= room), room)
    odd = pending % _TILE
    tiles = max(0, room - odd + over) // _TILE * _TILE
    return odd + tiles or _TILE


def shape_of(plan: Plan) -> Shape:
    """The shape by which steps are compared."""
    generating = sum(count == 1 + sequence.supposed for sequence, count in plan)
    return Shape(len(plan), generating, sum(count for _, count in plan))


def fill(batch: Batch, plan: Plan) -> int:
    """Put a plan into the batch; return its tokens. Logits are needed after each last token."""
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
