"""The engine thread's loop: what happens in a step, who gives way, and who pays for a failure."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

from cllm.engine.cache.placement import Placer
from cllm.engine.cache.prefix_cache import Slot
from cllm.engine.constraints.guide import MaskThread
from cllm.engine.errors import DeadlineExceeded, EngineError, described
from cllm.engine.generation import FinishReason, Generation
from cllm.engine.llama import DONE, INTERRUPTED, NO_ROOM, Batch, Context
from cllm.engine.request import Request
from cllm.engine.scheduling.admission import Admission
from cllm.engine.scheduling.commands import Commands
from cllm.engine.scheduling.fairness import GENERATED
from cllm.engine.scheduling.inbox import Inbox
from cllm.engine.scheduling.interruption import Interruption
from cllm.engine.scheduling.planning import Plan, Planner, fill, shape_of
from cllm.engine.scheduling.threads import Threads
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_FAILURES_TO_GIVE_UP = 3  # steps in a row that ended in an unexpected exception
_GATHER_S = 0.002  # within which requests to an idle engine come together


class Scheduler:
    """Runs sequences on a context. submit, cancel and stop are for any thread, run is the loop."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        placer: Placer,
        admission: Admission,
        planner: Planner,
        threads: Threads,
        stats: EngineStats,
    ) -> None:
        self._context = context
        self._batch = batch
        self._placer = placer
        self._cache = placer.cache
        self._planner = planner
        self._threads = threads
        self._inbox: Inbox[Sequence] = Inbox(stats.slots_total, stats.queue_limit)
        self._commands = Commands(self._inbox.wake)
        self._masks = MaskThread()
        self._interruption = Interruption(context, placer.goes_back)
        self.submit = self._inbox.put
        self.check_open = self._inbox.check_open
        self.command = self._commands.put
        # The engine thread's own:
        self._stats = stats
        self._admission = admission
        self._waiting = admission.waiting
        self._running: list[Sequence] = []
        self._changed: list[Generation] = []
        self._next_deadline = math.inf
        self._suspects: list[Sequence] = []  # of a failed step; each is decoded alone
        self._crowd: list[Sequence] = []  # who ran when there was no room for their prompts
        self._failures = 0

    # Any thread.

    def cancel(self, request: Request) -> None:
        """Ask for the end of a request: before the next step, or of the step that reads it."""
        self._inbox.cancel(request)
        self._interruption.cancel(request)

    def stop(self) -> None:
        """Let run() return; the step in progress is not finished."""
        self._inbox.stop()
        self._interruption.stop()

    @property
    def failure(self) -> Exception | None:
        """What made the loop give up, if it did."""
        return self._inbox.failure

    @property
    def crowded(self) -> bool:
        """Whether all that can be worked on at once is there."""
        return self._inbox.in_flight >= self._stats.slots_total

    def snapshot(self) -> EngineStats:
        """Counters and gauges, as of now."""
        cache, inbox = self._cache, self._inbox
        return replace(
            self._stats,
            requests_submitted=inbox.submitted,
            requests_refused=inbox.refused,
            requests_finished=dict(self._stats.requests_finished),
            queue_depth=max(0, inbox.in_flight - len(self._running)),
            slots_busy=cache.busy,
            kv_tokens=cache.held,
            cache_ram_bytes=cache.saved.bytes,
        )

    @property
    def slots(self) -> list[Slot]:
        """The places for sequences."""
        return self._cache.slots

    # The engine thread.

    def run(self) -> None:
        """Serve until stop(), or until nothing works any more."""
        try:
            while self._take_messages():
                self._guarded_step()
                self._notify()
        except BaseException as error:
            _log.exception("the engine thread stops after an error")
            self._inbox.fail(error)
        finally:
            self._waiting.extend(self._inbox.close())
            ending = self._inbox.ending()
            self._commands.close(str(ending))
            for sequence in [*self._running, *self._waiting]:
                try:
                    self._finish(sequence, FinishReason.ERROR, ending)
                except Exception:  # what was left half done must not keep others waiting
                    _log.exception("request %s could not be ended", sequence.generation.id)
                    sequence.generation._finish(FinishReason.ERROR, ending)
                    self._changed.append(sequence.generation)
            self._notify()
            self._masks.close()

    def _take_messages(self) -> bool:
        """Take what other threads left; sleep while there is nothing to do. False: stop."""
        idle = not (self._running or self._waiting)
        messages = self._inbox.take(wait=idle, gather_s=_GATHER_S)
        if messages is None:
            return False
        self._waiting.extend(messages.arrivals)
        for sequence in messages.arrivals:
            self._next_deadline = min(self._next_deadline, sequence.deadline)
        for sequence, refusal in messages.displaced:
            # One that was admitted or has ended meanwhile has left the queue already.
            if sequence.sampler is None and not sequence.generation.done:
                self._finish(sequence, FinishReason.ERROR, refusal)
        if messages.cancelled:
            for sequence in [*self._running, *self._waiting]:
                if sequence.generation in messages.cancelled:
                    self._finish(sequence, FinishReason.CANCELLED)
        return True

    def _guarded_step(self) -> None:
        try:
            self._step()
        except Exception as error:
            _log.exception("a step failed; its requests end with an error")
            for sequence in list(self._running):
                self._fail(sequence, EngineError(f"internal error: {described(error)}"))
            self._count_failure(error)

    def _count_failure(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_GIVE_UP:
            self._inbox.fail(error)

    def _step(self) -> None:
        began, stats = time.perf_counter(), self._stats
        drafted_before = stats.draft_s
        self._expire()
        self._commands.obey(self._cache.slots)
        self._admission.catch_up(self._running, self._give_up)
        known = len(self._running)
        self._admission.admit(self._running, self._give_up)
        for sequence in self._running[known:]:
            self._inbox.begun(sequence)
        plan = self._plan()
        if not plan:
            return
        shape = shape_of(plan)
        self._threads.prepare(shape)
        decode_began = time.perf_counter()
        self._masks.start([s.guide for s, _ in plan if s.guide is not None])
        self._interruption.begin(s for s, count in plan if count > 1 and not s.decoding)
        try:
            done, code = self._decode(plan)
        finally:
            interrupted = self._interruption.end()
        self._masks.wait()
        decode_ended = time.perf_counter()
        done_whole = done is plan and code == DONE
        if done_whole and self._threads.learn(shape, decode_ended - decode_began):
            self._planner.learn(plan, decode_ended - decode_began)
        plan = done
        if code == DONE:
            self._failures = 0
        else:
            if code != NO_ROOM:
                self._undo(plan)
            if code != INTERRUPTED or not interrupted:
                self._blame(plan, code)
        chosen = self._sample(plan) if code == DONE else []
        sampled = time.perf_counter()
        self._publish(chosen)
        stats.steps += 1
        stats.decode_s += decode_ended - decode_began
        stats.sampling_s += sampled - decode_ended
        in_draft_s = stats.draft_s - drafted_before
        stats.other_s += time.perf_counter() - sampled + decode_began - began - in_draft_s

    def _give_up(self, sequence: Sequence, error: Exception) -> None:
        """End a request that could not be placed; those that run have nothing to do with it."""
        _log.error("request %s failed", sequence.generation.id, exc_info=error)
        self._fail(sequence, EngineError(f"internal error: {described(error)}"))
        self._count_failure(error)

    def _plan(self) -> Plan:
        """What to decode: what the planner says, unless a failed step is being looked into."""
        while self._suspects:
            suspect = self._suspects.pop()
            if suspect in self._running and (plan := self._planner.plan([suspect])):
                return plan
        if self._crowd:
            if self._crowd == self._running:
                streams = [s for s in self._running if s.decoding]
                if streams:
                    return self._planner.plan(streams)
            self._crowd = []
        return self._planner.plan(self._running)

    def _undo(self, plan: Plan) -> None:
        """Forget what a decode that did not end has left in the memory."""
        for sequence, _ in plan:
            sequence.take_back()
        self._placer.undo([slot_of(sequence) for sequence, _ in plan])

    def _blame(self, plan: Plan, code: int) -> None:
        """llama_decode failed: of several sequences each is tried alone, a lone one is given up."""
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

    def _expire(self) -> None:
        if self._next_deadline == math.inf:
            return
        now = time.monotonic()
        if now < self._next_deadline:
            return
        for sequence in [*self._running, *self._waiting]:
            if sequence.deadline <= now:
                assert sequence.deadline_s is not None
                error = DeadlineExceeded(sequence.deadline_s)
                self._finish(sequence, FinishReason.ERROR, error)
        alive = [*self._running, *self._waiting]
        self._next_deadline = min((s.deadline for s in alive), default=math.inf)

    def _decode(self, plan: Plan) -> tuple[Plan, int]:
        """Decode a plan, or what of it finds room; return what was tried last and the code."""
        while plan:
            code = self._context.decode(self._batch, fill(self._batch, plan))
            if code == DONE:
                for sequence, count in plan:
                    self._note_decoded(sequence, count)
                self._stats.decoded_sequences += len(plan)
                return plan, code
            if code != NO_ROOM:
                return plan, code
            smaller = self._make_room(plan)
            if smaller is None:
                return plan, code
            plan = smaller
        return plan, DONE

    def _note_decoded(self, sequence: Sequence, count: int) -> None:
        slot = slot_of(sequence)
        slot.length += count
        self._stats.longest = max(self._stats.longest, slot.length)
        if sequence.params.report_progress and len(sequence.tokens) == sequence.n_prompt:
            sequence.generation._note_evaluated(slot.length)
            self._changed.append(sequence.generation)

    def _make_room(self, plan: Plan) -> Plan | None:
        """After "no room": give up the cheapest thing. None: there is nothing left to give up."""
        idle = self._cache.oldest_idle()
        if idle is not None:
            self._placer.give_up(idle)
            return plan
        if any(s.supposed for s, _ in plan):
            return [(s, n - len(s.take_back())) for s, n in plan]
        generating = [(s, n) for s, n in plan if s.decoding]
        if generating and len(generating) < len(plan):
            self._crowd = list(self._running)
            return generating
        # Who waits for a leader may take no room yet.
        taking = [s for s in self._running if slot_of(s).leader is None or slot_of(s).length]
        if len(taking) > 1:
            youngest = max(taking, key=lambda s: s.generation._submitted)
            self._preempt(youngest)
            remaining = [(s, n) for s, n in plan if s is not youngest]
            return remaining or self._planner.plan(self._running)
        (only, count) = plan[0]
        return [(only, count // 2)] if count > 1 else None

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot away; it waits at the front and is computed again."""
        slot = slot_of(sequence)
        self._stats.preemptions += 1
        self._running.remove(sequence)
        sequence.slot = None
        sequence.preempted = True
        self._placer.forget(slot)
        self._cache.release(slot)
        self._waiting.put_back(sequence)

    def _sample(self, plan: Plan) -> list[tuple[Sequence, list[int]]]:
        """Choose what follows in each sequence whose last token was decoded."""
        outputs = [s for s, _ in plan if s.pending == 0]
        chosen: list[tuple[Sequence, list[int]]] = []
        if not outputs:
            return chosen
        rows, at = self._context.logits(sum(1 + s.supposed for s in outputs)), 0
        for sequence in outputs:
            supposed = sequence.supposed
            try:
                tokens = sequence.choose(rows[at : at + 1 + supposed])
                chosen.append((sequence, tokens))
                if supposed:
                    self._stats.guesses += 1
                    self._stats.guessed_tokens += supposed
                    self._stats.guessed_right += len(tokens) - 1
            except EngineError as error:
                self._fail(sequence, error)
            except Exception as error:
                _log.exception("sampling failed; the request ends with an error")
                self._fail(sequence, EngineError(f"internal error: {described(error)}"))
            at += 1 + supposed
        return chosen

    def _publish(self, chosen: list[tuple[Sequence, list[int]]]) -> None:
        now = time.monotonic()
        for sequence, tokens in chosen:
            length = len(sequence.tokens)
            reason = sequence.accept(tokens, now)
            generated = len(sequence.tokens) - length
            self._stats.completion_tokens += generated
            self._waiting.charge(sequence.tenant, GENERATED * generated)
            self._forget_wrong(sequence)
            if reason is not None:
                self._finish(sequence, reason)
            else:
                self._changed.append(sequence.generation)

    def _forget_wrong(self, sequence: Sequence) -> None:
        """Remove what was evaluated of guesses that were wrong, or behind the end of the text."""
        slot, before_newest = slot_of(sequence), len(sequence.tokens) - 1
        if slot.length > before_newest:
            slot.length = before_newest
            self._context.remove(slot.id, before_newest)

    def _fail(self, sequence: Sequence, error: EngineError) -> None:
        """End a sequence whose part of the cache is in doubt."""
        if sequence.slot is not None:
            self._placer.forget(sequence.slot)
        self._finish(sequence, FinishReason.ERROR, error)

    def _finish(
        self, sequence: Sequence, reason: FinishReason, error: EngineError | None = None
    ) -> None:
        generation = sequence.generation
        slot = sequence.slot
        if slot is not None:
            self._running.remove(sequence)
            sequence.slot = None
            self._cache.release(slot)
        self._waiting.leave(sequence)
        sequence.close()
        # Counted before it is told: whoever waits for the end finds room and the right figures.
        finished = self._stats.requests_finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        timings = generation.timings
        self._inbox.ended(sequence, timings.total_s - timings.queued_s)
        generation._finish(reason, error)
        self._changed.append(generation)

    def _notify(self) -> None:
        began = time.perf_counter()
        changed, self._changed = self._changed, []
        for generation in changed:
            generation._notify()
        self._stats.other_s += time.perf_counter() - began
