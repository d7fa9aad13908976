"""What a step decodes: which sequences, how many tokens of each, and their order in the batch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import pairwise

from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.config import SCORED_ROWS
from cllm.engine.scheduling.adapter_turns import AdapterTurns
from cllm.engine.scheduling.overlap import Job
from cllm.engine.scheduling.pacing import Pacer
from cllm.engine.scheduling.passes import TILE, Plan, in_passes, whole_passes
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.sharing import AdapterSet
from cllm.engine.speculation.speculation import Speculation
from cllm.engine.speculation.synthetic import SyntheticSpeculation

_log = logging.getLogger("cllm.engine")

_OVER = 8
"""Tokens by which a step without streams may exceed its budget to read a whole tile."""
_SHALLOW = 256  # tokens up to which parts of a tile cost little more than their share
_PARTS = (16, 8)
_LAST_STEP = 2
"""Budgets that a step without streams may read if all prompts end in it."""


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
        tiles: bool = True,
    ) -> None:
        """capacity: tokens of a batch. split_cache: each sequence has an equal part of the cache;
        sequences are then evaluated together only with equal numbers of tokens. slots: sequences
        that can run. ubatch: tokens of one pass, and maximum of a step with drafts. With windowed
        attention llama.cpp may use cells again that are out of the window of the last token of an
        earlier ubatch, which may be a rejected draft. tiles: whether attention has tiles.
        """
        self._pacer = pacer
        self._speculation = speculation
        self._capacity = capacity
        self._split_cache = split_cache
        self._slots = slots
        self._ubatch = capacity if ubatch is None else min(capacity, ubatch)
        self._tiles = tiles and split_cache and self._ubatch >= TILE
        self._turns = AdapterTurns()
        self._turns_of: dict[AdapterSet, _Turns] = {}
        self._turn = 0

    def plan(self, running: list[Sequence]) -> Plan:
        """What the next step decodes: a reproducible sequence alone, or some of the others.

        They take turns. The sums of a row depend on how many rows are computed with it, so all
        rows of a reproducible sequence are computed in steps of its own, in the same parts.
        """
        if plan := self._streams(running):
            return plan
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

    def _streams(self, running: list[Sequence]) -> Plan:
        """The plan of the usual step, in which every sequence is a stream; []: it is another step.

        As _plan_together() would make it, with a part of its work.
        """
        if not running or len(self._turns_of) != 1:
            return []
        ((adapters, turns),) = self._turns_of.items()
        for sequence in running:
            if (
                not sequence.decoding
                or slot_of(sequence).leader is not None
                or sequence.reproducible
                or sequence.adapters != adapters
            ):
                return []
        if self._turns.holder != adapters:
            return []
        turns.prompts_were_read = False
        turns.waited = max(0, turns.waited - 1)
        turns.owed = max(0, turns.owed - 1)
        return _in_order(self._newest(running, True))

    def _fixed_part(self, sequence: Sequence) -> int:
        """All newest tokens; of a prompt, those up to the next whole tile."""
        most = sequence.pending if sequence.decoding else TILE - slot_of(sequence).length % TILE
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
        plan = _in_order(counts)
        return in_passes(plan, self._ubatch) if prompts and self._tiles else plan

    def _newest(self, generating: list[Sequence], draft: bool) -> dict[Sequence, int]:
        counts = {s: s.pending for s in generating}
        pending = sum(counts.values())
        if pending > self._capacity:
            return dict.fromkeys(generating, 1)
        room = self._ubatch - pending
        draft = draft and room > 0 and any(s.drafter is not None for s in generating)
        if draft and self._speculation is not None:
            step_s = self._pacer.step_s(len(generating))
            try:
                self._speculation.draft(generating, room, step_s)
            except Exception:  # it only saves time
                _log.exception("speculation failed and is switched off")
                self._speculation = None
                for sequence in generating:
                    sequence.rollback()
            counts = {s: s.pending for s in generating}
        return counts

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
        budget = room = min(capacity, pacer.budget(generating, len(prompts), TILE))
        over = TILE // 2 if generating else _OVER
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
            if read and room < min(pending, TILE // 2):
                break
            count = min(_part(pending, room, slot.length, over), capacity)
            if self._tiles and not ends:
                count = whole_passes(count, self._ubatch)
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
        before. A prompt whose answer is its first token has nothing to keep in step.
        """
        if len(prompts) <= max(1, generating):
            return []
        if any(s.scores is not None or s.preempted for s in prompts):
            return []
        crowd = [s for s in prompts if s.max_length - len(s.tokens) > 1]
        crowd.sort(key=_to_read)
        total = sum(map(_to_read, crowd))
        while crowd and not (
            self._pacer.begin_together(total, generating, total <= self._capacity)
            and 2 * _to_read(crowd[-1]) <= total + TILE
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
        if not prompts:
            return False
        step_s = self._pacer.step_s(len(generating))
        reading_s = self._pacer.prompt_s(sum(s.pending for s in prompts))
        if step_s is None or reading_s is None:
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

    @property
    def reading(self) -> Job | None:
        """What looks for repetitions in new texts, which the plan did not need; None: nothing."""
        return None if self._speculation is None else self._speculation.reading

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


def _in_order(counts: dict[Sequence, int]) -> Plan:
    """The plan: llama_decode evaluates neighboring slots of a split cache together."""
    return sorted(((s, n) for s, n in counts.items() if n), key=lambda item: slot_of(item[0]).id)


def _part(pending: int, room: int, behind: int, over: int = TILE // 2) -> int:
    """Tokens of a prompt to read when there is time for `room` tokens.

    The part that is no whole tile is read first, where there is little to attend to, then whole
    tiles. behind: tokens that are read already. over: tokens by which the room may be exceeded;
    with half a tile, the number of tiles is rounded to the nearest.
    """
    if pending <= room:
        return pending
    if room < TILE // 2 and behind < _SHALLOW:
        return next((part for part in _PARTS if part <= room), room)
    odd = pending % TILE
    tiles = max(0, room - odd + over) // TILE * TILE
    return odd + tiles or TILE


def _to_read(sequence: Sequence) -> int:
    """Tokens of a prompt that were not cached when it got its slot."""
    return sequence.n_prompt - sequence.generation.usage.cached_tokens


def _held_back(pending: int) -> int:
    """Tokens at the end of a prompt that wait until those of others are read: few, and no tile."""
    odd = pending % TILE
    return min(odd, _PARTS[-1]) if odd > 1 else TILE + odd if pending >= TILE else pending


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
    ids = [slot_of(sequence).id for sequence, _ in plan]
    if ids[-1] - ids[0] < len(ids) or any(count != 1 for _, count in plan):
        return []
    depth = min(longest - 1, max((slot_of(sequence).length for sequence, _ in plan), default=0))
    holes = [slots[left + 1] for left, right in pairwise(ids) if right - left == 2]
    return [slot for slot in holes if slot.length <= depth]
