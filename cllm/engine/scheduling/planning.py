"""What a step decodes: which sequences, how many tokens of each, and their order in the batch."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.config import SCORED_ROWS
from cllm.engine.llama import Batch
from cllm.engine.scheduling.adapter_turns import AdapterTurns
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.sharing import AdapterSet
from cllm.engine.speculation.speculation import Speculation
from cllm.engine.speculation.synthetic import SyntheticSpeculation

_log = logging.getLogger("cllm.engine")

_TILE = 64
"""Rows of a sequence that llama.cpp's flash attention computes together on a CPU; the rest go one
by one. After 1 500 tokens, 64 rows take less time than 32, and two thirds of the time of 65."""
_OVER = 8
"""Tokens by which a step without streams may exceed its budget to read a whole tile."""
_SHALLOW = 256  # tokens up to which parts of a tile cost little more than their share
_PARTS = (16, 8)
_LAST_STEP = 2
"""Budgets that a step without streams may read if all prompts end in it."""

Plan = list[tuple[Sequence, int]]
"""Sequences, and the number of tokens to decode of each."""


@dataclass(slots=True)
class _Turns:
    """How streams and prompts with the same LoRA adapters take turns.

    prompts_were_read: in the last step. owed: steps of streams before the next crowd, as a crowd
    has stopped them. waited: steps for which prompts have waited for streams to end, less the
    steps since.
    """

    prompts_were_read: bool = False
    owed: int = 0
    waited: int = 0


class Planner:
    """Fills steps within the limits of time and batch, and learns their times. Engine thread."""

    def __init__(
        self,
        pacer: Pacer,
        speculation: Speculation | SyntheticSpeculation | None,
        capacity: int,
        split_cache: bool,
        slots: int,
        ubatch: int | None = None,
    ) -> None:
        """capacity: tokens of a batch. split_cache: each sequence has an equal part of the cache;
        sequences are then evaluated together only with equal numbers of tokens. slots: sequences
        that can run. ubatch: maximum tokens of a step with drafts. With windowed attention
        llama.cpp may use cells again that are out of the window of the last token of an earlier
        ubatch, which may be a rejected draft.
        """
        self._pacer = pacer
        self._speculation = speculation
        self._capacity = capacity
        self._split_cache = split_cache
        self._slots = slots
        self._ubatch = capacity if ubatch is None else min(capacity, ubatch)
        self._turns = AdapterTurns()
        self._turns_of: dict[AdapterSet, _Turns] = {}
        self._turn = 0

    def plan(self, running: list[Sequence]) -> Plan:
        """What the next step decodes: a reproducible sequence alone, or some of the others.

        They take turns. The sums of a row depend on how many rows are computed with it, so all
        rows of a reproducible sequence are computed in steps of its own, in the same parts.
        """
        alone = [sequence for sequence in running if sequence.reproducible]
        if not alone:
            return self._plan_together(running)
        together = [sequence for sequence in running if not sequence.reproducible]
        for _ in range(len(alone) + 1):
            self._turn = (self._turn + 1) % (len(alone) + 1)
            if self._turn < len(alone):
                return [(alone[self._turn], self._fixed_part(alone[self._turn]))]
            if plan := self._plan_together(together):
                return plan
        return []

    def _fixed_part(self, sequence: Sequence) -> int:
        """All newest tokens; of a prompt, those up to the next whole tile."""
        most = sequence.pending if sequence.decoding else _TILE - slot_of(sequence).length % _TILE
        return min(most, sequence.pending, self._capacity)

    def _plan_together(self, running: list[Sequence]) -> Plan:
        """The newest tokens of generating sequences, and as many of prompts as time allows.

        All of one set of LoRA adapters, which a step computes with; the sets take turns.

        A split cache would evaluate the two one after the other: the first token of each prompt
        with the newest ones of the streams, then the rest. There they take turns instead, and both
        keep shapes that are evaluated fast.
        """
        ready = [sequence for sequence in running if slot_of(sequence).leader is None]
        chosen = self._turns.choose(ready)
        if not chosen:
            return []
        adapters = chosen[0].adapters
        generating, prompts = list[Sequence](), list[Sequence]()
        plain = False  # whether drafts are out of place
        for sequence in chosen:
            if sequence.decoding:
                generating.append(sequence)
            elif sequence.pending == 1:  # a prompt whose other tokens are cached: like a stream
                generating.append(sequence)
                plain = True
            else:
                prompts.append(sequence)
        waiting = 0  # streams of other sets, for which prompts also leave time
        if len(chosen) < len(ready):
            waiting = sum(s.decoding for s in ready) - sum(s.decoding for s in chosen)
        crowd = self._crowd(prompts, len(generating) + waiting)
        prompts = crowd or prompts
        turns = self._turns_of.setdefault(adapters, _Turns())
        if len(self._turns_of) > 1:
            present = {sequence.adapters for sequence in ready}
            self._turns_of = {
                each: self._turns_of[each] for each in self._turns_of if each in present
            }
        in_turn = self._split_cache and (turns.owed > 0 if crowd else turns.prompts_were_read)
        ends_soon = bool(generating) and self._end_soon(generating, prompts, turns.waited)
        turns.waited = turns.waited + 1 if ends_soon else max(0, turns.waited - 1)
        if ends_soon or (in_turn and generating):
            prompts = []
        plain = plain or bool(prompts)
        turns.prompts_were_read = bool(prompts)
        counts = {} if prompts and self._split_cache else self._newest(generating, not plain)
        if prompts:
            full = len(running) >= self._slots
            streams = len(generating) + waiting
            begins = self._add_prompts(counts, prompts, streams, bool(crowd), full)
            if begins and crowd and generating and self._split_cache:
                turns.owed = 1 + int(self._pacer.prompt_s(sum(map(_to_read, crowd))) or 0.0)
        else:
            turns.owed = max(0, turns.owed - 1)
        # llama_decode evaluates slots of a split cache together only if they follow each other.
        return sorted(
            ((s, n) for s, n in counts.items() if n), key=lambda item: slot_of(item[0]).id
        )

    def _newest(self, generating: list[Sequence], draft: bool) -> dict[Sequence, int]:
        pending = sum(s.pending for s in generating)
        if pending > self._capacity:
            return dict.fromkeys(generating, 1)
        room = self._ubatch - pending
        if draft and generating and self._speculation is not None and room > 0:
            step_s = self._pacer.step_s(len(generating))
            try:
                self._speculation.draft(generating, room, step_s)
            except Exception:  # it only saves time
                _log.exception("speculation failed and is switched off")
                self._speculation = None
                for sequence in generating:
                    sequence.rollback()
        return {s: s.pending for s in generating}

    def _add_prompts(
        self,
        counts: dict[Sequence, int],
        prompts: list[Sequence],
        generating: int,
        together: bool,
        full: bool,
    ) -> bool:
        """Add parts of prompts; whether those that begin together are read to their ends."""
        pacer, capacity = self._pacer, self._capacity - sum(counts.values())
        budget = room = min(capacity, pacer.budget(generating, len(prompts), _TILE))
        over = _TILE // 2 if generating else _OVER
        rows = SCORED_ROWS // 2 if generating else SCORED_ROWS
        prompts.sort(key=lambda s: pacer.due(s.generation.submitted, s.pending))
        ends = together and self._all_end(prompts, budget, full)
        if ends:
            together, room = False, capacity
        read = False
        for sequence in prompts:
            slot = slot_of(sequence)
            pending = slot.next_mark - slot.length
            if together and pending == sequence.pending:
                pending -= _held_back(pending)
                if not pending:
                    continue
            if read and room < min(pending, _TILE // 2):
                break
            count = min(_part(pending, room, slot.length, over), capacity)
            if sequence.scores is not None:
                count = min(count, rows)
                rows -= count
            if not (generating or together) and count < pending and 0 < budget - room < budget // 4:
                break  # prompts that end in this step would wait several times as long
            counts[sequence] = count
            read = True
            capacity -= count
            room = max(0, room - count)
        return ends

    def _crowd(self, prompts: list[Sequence], generating: int) -> list[Sequence]:
        """Prompts that begin to generate in the same step, and that streams wait for; [] if none.

        They are more than the streams, and take not too long from the beginning to the end of all.
        The first ones would otherwise stop, after each of a few tokens, for a part of the others.
        None is longer than the others together, which would wait for it, nor passes one that is due
        before.
        """
        if len(prompts) <= max(1, generating):
            return []
        if any(s.scores is not None or s.preempted for s in prompts):
            return []
        crowd = sorted(prompts, key=_to_read)
        total = sum(map(_to_read, crowd))
        while crowd and not (
            self._pacer.begin_together(total, generating)
            and 2 * _to_read(crowd[-1]) <= total + _TILE
        ):
            total -= _to_read(crowd.pop())
        if len(crowd) <= max(1, generating) or self._first(prompts) not in crowd:
            return []
        return crowd

    def _first(self, prompts: list[Sequence]) -> Sequence:
        return min(prompts, key=lambda s: self._pacer.due(s.generation.submitted, s.pending))

    def _end_soon(self, generating: list[Sequence], prompts: list[Sequence], waited: int) -> bool:
        """Whether all streams end so soon that prompts wait for it rather than stop them.

        That is within half of the time for which they would stop, and less wait in all. waited:
        steps for which the prompts have waited already, maybe for streams that have ended since.
        """
        step_s = self._pacer.step_s(len(generating))
        reading_s = self._pacer.prompt_s(sum(s.pending for s in prompts))
        if not prompts or step_s is None or reading_s is None:
            return False
        left = max(s.max_length - len(s.tokens) for s in generating)
        return (waited + left) * step_s <= reading_s * min(0.5, len(generating) / len(prompts))

    def _all_end(self, prompts: list[Sequence], budget: int, full: bool) -> bool:
        """Whether the next step reads prompts that begin together to their ends.

        full: no further request can join them meanwhile.
        """
        pending = [sequence.pending for sequence in prompts]
        most = _LAST_STEP * budget if full else budget // 4
        return sum(pending) <= most or all(n == _held_back(n) for n in pending)

    def learn(self, plan: Plan, shape: Shape, seconds: float) -> None:
        """Tell the policies a step's time, except with forced tokens, which they do not model."""
        drafted = 0
        if shape.tokens > shape.sequences:  # else there are only streams, with a token each
            for sequence, count in plan:
                drafted += sequence.drafted
                begun = len(sequence.tokens) - sequence.drafted > sequence.n_prompt
                if begun and count > 1 + sequence.drafted:
                    return  # tokens that a constraint forced
        if not drafted:
            self._pacer.observe(shape.generating, shape.tokens - shape.generating, seconds)
        elif self._speculation is not None:
            step_s = self._pacer.step_s(shape.generating)
            if step_s is not None:
                self._speculation.observe(shape.generating, drafted, seconds, step_s)


def _part(pending: int, room: int, behind: int, over: int = _TILE // 2) -> int:
    """Tokens of a prompt to read when there is time for `room` tokens.

    The part that is no whole tile is read first, where there is little to attend to, then whole
    tiles. behind: tokens that are read already. over: tokens by which the room may be exceeded;
    with half a tile, the number of tiles is rounded to the nearest.
    """
    if pending <= room:
        return pending
    if room < _TILE // 2 and behind < _SHALLOW:
        return next((part for part in _PARTS if part <= room), room)
    odd = pending % _TILE
    tiles = max(0, room - odd + over) // _TILE * _TILE
    return odd + tiles or _TILE


def _to_read(sequence: Sequence) -> int:
    """Tokens of a prompt that were not cached when it got its slot."""
    return sequence.n_prompt - sequence.generation.usage.cached_tokens


def _held_back(pending: int) -> int:
    """Tokens at the end of a prompt that wait until those of others are read: few, and no tile."""
    odd = pending % _TILE
    return min(odd, _PARTS[-1]) if odd > 1 else _TILE + odd if pending >= _TILE else pending


def shape_of(plan: Plan) -> Shape:
    """The shape by which the times of steps are compared."""
    generating = tokens = 0
    for sequence, count in plan:
        tokens += count
        generating += count == 1 + sequence.drafted
    return Shape(len(plan), generating, tokens)


def holes_of(plan: Plan, slots: list[Slot], longest: int) -> list[Slot]:
    """Single slots between those of a step with one token for each sequence.

    llama.cpp evaluates only neighboring slots of a split cache together. With a token in the hole,
    which is removed afterwards, a step of 7 sequences takes one pass over the weights instead of
    two. longest: tokens that a slot can hold. Deeper slots than those of the step stay out.
    """
    if any(count != 1 for _, count in plan):
        return []
    ids = [slot_of(sequence).id for sequence, _ in plan]
    depth = min(longest - 1, max((slot_of(sequence).length for sequence, _ in plan), default=0))
    holes = [slots[left + 1] for left, right in pairwise(ids) if right - left == 2]
    return [slot for slot in holes if slot.length <= depth]


def fill(batch: Batch, plan: Plan, holes: Iterable[Slot] = ()) -> int:
    """Put a plan into the batch; return its number of tokens. Last and scored tokens get logits.

    holes: slots that get a token without meaning.
    """
    at, before = 0, {slot.id + 1: slot for slot in holes}
    if not before and all(
        count == 1 and not sequence.drafted and sequence.scores is None for sequence, count in plan
    ):
        return _fill_newest(batch, plan)
    for sequence, count in plan:
        slot = slot_of(sequence)
        if (hole := before.get(slot.id)) is not None:
            batch.token[at] = sequence.tokens[slot.length]
            batch.pos[at] = hole.length
            batch.seq[at] = hole.id
            batch.output[at] = 0
            at += 1
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
        rows = 1 + sequence.drafted
        batch.output[at - rows : at] = end == len(sequence.tokens)
        if sequence.scores is not None and (scored := sequence.scores.wanted(start, end)):
            batch.output[at - end + scored.start : at - end + scored.stop] = 1
    return at


def _fill_newest(batch: Batch, plan: Plan) -> int:
    """fill() for one token of each sequence: four numpy calls for all of them."""
    tokens, at, ids, outputs = list[int](), list[int](), list[int](), list[bool]()
    for sequence, _ in plan:
        slot = slot_of(sequence)
        length = slot.length
        tokens.append(sequence.tokens[length])
        at.append(length)
        ids.append(slot.id)
        outputs.append(length + 1 == len(sequence.tokens))
    count = len(plan)
    batch.token[:count], batch.pos[:count] = tokens, at
    batch.seq[:count], batch.output[:count] = ids, outputs
    return count
