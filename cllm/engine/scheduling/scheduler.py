"""A step of a model that generates: decode, sample, publish, and what a failed decode ends."""

from __future__ import annotations

import logging
import math
import time

from cllm.engine.cache.disk_cache import DiskCache
from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.constraints.guide import MaskThread
from cllm.engine.errors import EngineError, described
from cllm.engine.generation import FinishReason
from cllm.engine.llama import DONE, INTERRUPTED, NO_ROOM, Batch, Context
from cllm.engine.request import Request
from cllm.engine.scheduling.adapter_turns import TURN_S
from cllm.engine.scheduling.admission import Admission
from cllm.engine.scheduling.commands import Commands
from cllm.engine.scheduling.fairness import GENERATED
from cllm.engine.scheduling.filling import fill
from cllm.engine.scheduling.interruption import Interruption
from cllm.engine.scheduling.loop import EngineLoop
from cllm.engine.scheduling.overlap import Job, Overlap
from cllm.engine.scheduling.passes import Plan
from cllm.engine.scheduling.planning import Planner, holes_of, shape_of
from cllm.engine.scheduling.room import RoomMaker
from cllm.engine.scheduling.rows import RowFilter
from cllm.engine.scheduling.shifting import ContextShift
from cllm.engine.scheduling.threads import Threads
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_GATHER_S = 0.002  # that an idle engine waits for more requests after each


class Scheduler(EngineLoop[Sequence]):
    """Runs sequences on a context: admits them, plans and decodes steps, and publishes text."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        placer: Placer,
        admission: Admission,
        planner: Planner,
        threads: Threads,
        stats: EngineStats,
        shift: ContextShift | None = None,
        disk: DiskCache | None = None,
    ) -> None:
        """shift: lets full sequences go on; None: they end."""
        super().__init__(stats, admission.waiting, _GATHER_S)
        self._context, self._batch = context, batch
        self._placer = placer
        self._cache = placer.cache
        self._planner = planner
        self._threads = threads
        self._admission = admission
        self._shift = shift
        self._disk = disk
        self._room = RoomMaker(placer, planner, self._running, admission.waiting, stats)
        self._commands = Commands(self._inbox.wake)
        self.command = self._commands.put  # any thread
        self._filter, self._masks = RowFilter(), MaskThread()
        self._overlap = Overlap()
        self._interruption = Interruption(context, placer.supports_rollback)
        self._adapted = False  # the step in progress has other LoRA adapters than the last one
        self._fills_holes = placer.cache.split and placer.attends_to_all
        self._suspects: list[Sequence] = []  # of a failed step; each is decoded alone

    # Any thread.

    def wake(self) -> None:
        """Let the engine thread look for work."""
        self._inbox.wake()

    def cancel(self, request: Request) -> None:
        """End a request before the next step; a step that reads its prompt is interrupted."""
        super().cancel(request)
        self._interruption.cancel(request)

    def stop(self) -> None:
        """Let run() return; the step in progress is not finished."""
        super().stop()
        self._interruption.stop()

    def snapshot(self) -> EngineStats:
        """Counters and gauges, as of now."""
        cache = self._cache
        return self._snapshot(
            len(self._running),
            slots_busy=cache.busy,
            kv_tokens=cache.held,
            cache_ram_bytes=cache.saved.bytes,
            **({} if self._disk is None else self._disk.gauges()),
        )

    @property
    def in_callback(self) -> bool:
        """Whether the caller runs on a thread for which the engine thread waits."""
        return self._overlap.is_current

    @property
    def slots(self) -> list[Slot]:
        """The slots of the cache."""
        return self._cache.slots

    # The engine thread.

    def run(self) -> None:
        """Serve until stop(), or until nothing works any more."""
        try:
            super().run()
        finally:
            self._masks.close()
            self._overlap.close()

    def _rest(self) -> float:
        rest = super()._rest()
        if rest > 0:
            self._threads.rest()
        if self._disk is None:
            return rest
        if rest == math.inf:
            self._disk.writer.note_idle()
            self._disk.writer.serve()
            return rest
        self._disk.writer.note_busy()
        return rest if self._running else self._admission.rest()

    def _close(self, ending: EngineError) -> None:
        self._commands.close(str(ending))

    def _fail_step(self, message: str) -> None:
        for sequence in list(self._running):
            self._fail(sequence, EngineError(message))

    def _step(self) -> None:
        began, stats = time.perf_counter(), self._stats
        drafted_before, guessed_before = stats.draft_s, stats.guessed_tokens
        self._expire()
        self._commands.obey(self._cache.slots)
        self._admission.catch_up(self._running, self._give_up)
        for sequence in self._admission.admit(self._running, self._give_up):
            self._inbox.begun(sequence)
        if self._shift is not None:
            self._shift.apply(self._running)
        plan = self._plan()
        if not plan:
            self._tell()
            return
        shape = shape_of(plan)
        fixed = plan[0][0].reproducible
        self._threads.prepare(shape, fixed)
        decode_began = time.perf_counter()
        self._masks.start([s.guide for s, _ in plan if s.guide is not None])
        # Keys that are to be rotated; an interruption would leave some of them as they were.
        moves = self._shift is not None and self._context.copies_pending
        reading = [] if moves else [s for s, n in plan if n > 1 and not s.decoding]
        self._interruption.begin(reading, len(plan) == 1)
        try:
            done, code = self._decode(plan)
        finally:
            interrupted = self._interruption.end()
        self._masks.wait()
        decode_ended = time.perf_counter()
        if done is not plan:
            shape = shape_of(done)
        # Rows of logits for a prompt take time that no other step needs.
        usual = done is plan and code == DONE and all(s.scores is None for s, _ in plan)
        usual = usual and not moves and not fixed
        # A change of adapters takes time too; in long steps it is a small part.
        usual = usual and not (self._adapted and decode_ended - decode_began < TURN_S)
        if usual and self._threads.learn(shape, decode_ended - decode_began):
            self._planner.learn(plan, shape, decode_ended - decode_began)
        plan = done
        if code == DONE:
            self._failures = 0
            for sequence, count in plan:
                self._note_decoded(sequence, count)
        else:
            if code != NO_ROOM:
                self._undo(plan)
            if code != INTERRUPTED or not interrupted:
                self._blame(plan, code)
        noted = time.perf_counter()
        chosen = self._sample(plan) if code == DONE else []
        sampled = time.perf_counter()
        now = time.monotonic()
        generated = self._publish(chosen, now)
        published = time.perf_counter()
        stats.steps += 1
        stats.decode_s += decode_ended - decode_began
        stats.sampling_s += sampled - noted
        in_draft_s = stats.draft_s - drafted_before
        prepared = decode_began - began + noted - decode_ended
        stats.other_s += time.perf_counter() - sampled + prepared - in_draft_s
        if code == DONE:
            decoded = shape.generating + stats.guessed_tokens - guessed_before
            self.history.note_step(
                now,
                shape.tokens - decoded,
                decoded,
                generated,
                decode_ended - decode_began,
                sampled - noted,
                published - sampled,
                prepared,
            )

    def _give_up(self, sequence: Sequence, error: Exception) -> None:
        """End a request that could not be placed; the others go on."""
        _log.error("request %s is given up", sequence.generation.id, exc_info=error)
        self._fail(sequence, EngineError(f"internal error: {described(error)}"))
        self._count_failure(error)

    def _plan(self) -> Plan:
        """What to decode: what the planner says, but one suspect at a time after a failed step."""
        while self._suspects:
            suspect = self._suspects.pop()
            if suspect in self._running and (plan := self._planner.plan([suspect])):
                return plan
        return self._planner.plan(self._room.plannable())

    def _undo(self, plan: Plan) -> None:
        """Remove what an incomplete decode left in the memory."""
        for sequence, _ in plan:
            sequence.rollback()
        self._placer.undo([slot_of(sequence) for sequence, _ in plan])

    def _blame(self, plan: Plan, code: int) -> None:
        """After a failed decode: try each of several sequences alone; end a lone one."""
        self._stats.failed_decodes += 1
        if len(plan) > 1:
            _log.warning(
                "llama_decode failed with code %d for %d sequences; trying one at a time",
                code,
                len(plan),
            )
            self._suspects = [sequence for sequence, _ in plan]
            return
        for sequence, _ in plan:
            self._fail(sequence, EngineError(f"llama_decode failed with code {code}"))

    def _decode(self, plan: Plan) -> tuple[Plan, int]:
        """Decode a plan, or the part of it that fits; return what was tried last and the code."""
        while plan:
            self._adapted = self._context.adapt(plan[0][0].adapters)
            code = self._compute(plan)
            if code == DONE:
                self._stats.decoded_sequences += len(plan)
                return plan, code
            if code != NO_ROOM:
                return plan, code
            smaller = self._room.make(plan)
            if smaller is None:
                return plan, code
            plan = smaller
        return plan, DONE

    def _compute(self, plan: Plan) -> int:
        """Decode a plan; return llama.cpp's code."""
        holes: list[Slot] = []
        if self._fills_holes and not self._context.copies_pending:
            room = self._batch.capacity - len(plan)
            holes = holes_of(plan, self._cache.slots, self._context.n_ctx_seq)[:room]
            holes = [slot for slot in holes if slot not in self._placer.aside.leaving]
        count = fill(self._batch, plan, holes)
        self._overlap.start(self._jobs())
        try:
            return self._context.decode(self._batch, count)
        finally:
            self._overlap.wait()
            self._placer.aside.leaving = []
            for hole in holes:
                self._context.remove(hole.id, hole.length)

    def _jobs(self) -> list[Job]:
        """What need not precede the next decode."""
        jobs: list[Job] = [self._tell] if self._changed else []
        if (reading := self._planner.reading) is not None:
            jobs.append(reading)
        if self._threads.is_due:
            jobs.append(self._threads.look)
        if self._placer.aside.leaving and not self._context.copies_pending:
            jobs.append(lambda: self._placer.aside.run(lambda: not self._overlap.hurry))
        return jobs

    def _notify(self) -> None:
        if not self._running:  # else the next step does it while it decodes
            super()._notify()

    def _note_decoded(self, sequence: Sequence, count: int) -> None:
        slot = slot_of(sequence)
        slot.length += count
        if slot.marks:
            self._placer.reached(slot)
        self._stats.longest = max(self._stats.longest, slot.length)
        if sequence.params.report_progress and len(sequence.tokens) == sequence.n_prompt:
            sequence.writer.report_progress(slot.length)
            self._changed.append(sequence.writer)

    def _sample(self, plan: Plan) -> list[tuple[Sequence, list[int]]]:
        """Score prompts, and choose what follows in each sequence whose last token was decoded."""
        outputs = [(s, _scored(s, n), 1 + s.drafted if s.pending == 0 else 0) for s, n in plan]
        chosen: list[tuple[Sequence, list[int]]] = []
        count = sum(scored + last for _, scored, last in outputs)
        if not count:
            return chosen
        rows, at = self._context.logits(count), 0
        found = self._filter.filtered(outputs, rows)
        for sequence, scored, last in outputs:
            drafted, begin = sequence.drafted, at
            at += scored + last
            try:
                if sequence.scores is not None:
                    sequence.scores.take(rows[begin : begin + scored])
                    if sequence.scores.complete:
                        sequence.scores = None
                if not last:
                    continue
                among = found.get(at - last)
                if among is None:
                    tokens = sequence.choose(rows[begin + scored : at])
                else:
                    tokens = sequence.choose_among(among)
                chosen.append((sequence, tokens))
                if drafted and tokens:
                    self._stats.guesses += 1
                    self._stats.guessed_tokens += drafted
                    self._stats.guessed_right += len(tokens) - 1
            except EngineError as error:
                self._fail(sequence, error)
            except Exception as error:
                _log.exception("sampling failed; the request ends with an error")
                self._fail(sequence, EngineError(f"internal error: {described(error)}"))
        return chosen

    def _publish(self, chosen: list[tuple[Sequence, list[int]]], now: float) -> int:
        """Publish what was chosen; return how many tokens."""
        published = 0
        for sequence, tokens in chosen:
            if sequence.generation.cancel_requested:  # during this step, perhaps by its callback
                self._forget_rejected(sequence)
                self._finish(sequence, FinishReason.CANCELLED)
                continue
            length = len(sequence.tokens)
            reason = sequence.accept(tokens, now)
            generated = len(sequence.tokens) - length
            self._stats.completion_tokens += generated
            published += generated
            self._waiting.charge(sequence.tenant, GENERATED * generated)
            if slot_of(sequence).length >= len(sequence.tokens):
                self._forget_rejected(sequence)
            if reason is not None:
                self._finish(sequence, reason)
            else:
                self._changed.append(sequence.writer)
        return published

    def _forget_rejected(self, sequence: Sequence) -> None:
        """Remove what was evaluated of rejected drafts, or after the end of the text."""
        slot, before_newest = slot_of(sequence), len(sequence.tokens) - 1
        # A recurrent memory keeps a prompt whose last token nothing follows.
        if slot.length > before_newest and self._context.remove(slot.id, before_newest):
            slot.length = before_newest

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        """End a sequence whose part of the cache is in doubt."""
        if sequence.slot is not None:
            self._placer.forget(sequence.slot)
        self._finish(sequence, FinishReason.ERROR, error)

    def _release(self, sequence: Sequence) -> None:
        slot = sequence.slot
        if slot is not None:
            self._running.remove(sequence)
            sequence.slot = None
            self._placer.release(slot)
            self._commands.note_idle()
        self._admission.forget(sequence)
        sequence.close()


def _scored(sequence: Sequence, count: int) -> int:
    """How many of the tokens that were decoded last score the next one of the prompt."""
    if sequence.scores is None:
        return 0
    end = slot_of(sequence).length
    return len(sequence.scores.wanted(end - count, end))
