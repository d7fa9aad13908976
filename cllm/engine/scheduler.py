"""The engine thread's loop: what happens in a step, who gives way, and who pays for a failure."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace

from cllm.engine.admission import Admission
from cllm.engine.commands import Commands
from cllm.engine.errors import DeadlineExceeded, EngineClosed, EngineError
from cllm.engine.generation import FinishReason, Generation
from cllm.engine.guide import MaskThread
from cllm.engine.inbox import Inbox
from cllm.engine.llama import Batch, Context
from cllm.engine.placement import Placer
from cllm.engine.planning import Plan, Planner, fill, shape_of
from cllm.engine.prefix_cache import Slot
from cllm.engine.sequence import Sequence, slot_of
from cllm.engine.stats import EngineStats
from cllm.engine.threads import Threads

_log = logging.getLogger("cllm.engine")

_FAILURES_TO_GIVE_UP = 3  # steps in a row that ended in an unexpected exception
_GATHER_S = 0.002  # within which requests to an idle engine come together
_NO_ROOM = 1  # llama_decode: no place in the cache; nothing was changed


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
        self.submit = self._inbox.put
        self.check_open = self._inbox.check_open
        self.cancel = self._inbox.cancel
        self.command = self._commands.put
        self.stop = self._inbox.stop
        # The engine thread's own:
        self._stats = stats
        self._admission = admission
        self._waiting = admission.waiting
        self._running: list[Sequence] = []
        self._changed: list[Generation] = []
        self._next_deadline = math.inf
        self._failures = 0

    # Any thread.

    @property
    def failure(self) -> Exception | None:
        """What made the loop give up, if it did."""
        return self._inbox.failure

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
        finally:
            error = self.failure
            message = f"the engine has failed: {error}" if error else "the engine was closed"
            self._waiting.extend(self._inbox.close())
            self._commands.close(message)
            for sequence in [*self._running, *self._waiting]:
                closed = EngineError(message) if error else EngineClosed(message)
                self._finish(sequence, FinishReason.ERROR, closed)
            self._notify()
            self._masks.close()

    def _take_messages(self) -> bool:
        """Take what other threads left; sleep while there is nothing to do. False: stop."""
        idle = not (self._running or self._waiting)
        messages = self._inbox.take(wait=idle, gather_s=_GATHER_S)
        if messages is None:
            return False
        arrivals, cancelled = messages
        for sequence in arrivals:
            self._waiting.append(sequence)
            self._next_deadline = min(self._next_deadline, sequence.deadline)
        if cancelled:
            for sequence in [*self._running, *self._waiting]:
                if sequence.generation in cancelled:
                    self._finish(sequence, FinishReason.CANCELLED)
        return True

    def _guarded_step(self) -> None:
        try:
            self._step()
            self._failures = 0
        except Exception as error:
            _log.exception("a step failed; the requests in it are given up")
            for sequence in list(self._running):
                self._fail(sequence, EngineError(f"internal error: {error}"))
            self._failures += 1
            if self._failures >= _FAILURES_TO_GIVE_UP:
                self._inbox.fail(error)

    def _step(self) -> None:
        began, stats = time.perf_counter(), self._stats
        drafted_before = stats.draft_s
        self._expire()
        self._commands.obey(self._cache.slots)
        self._admission.catch_up(self._running)
        self._admission.admit(self._running)
        plan = self._planner.plan(self._running)
        if not plan:
            return
        shape = shape_of(plan)
        self._threads.prepare(shape)
        decode_began = time.perf_counter()
        self._masks.start([s.guide for s, _ in plan if s.guide is not None])
        done, code = self._decode(plan)
        self._masks.wait()
        decode_ended = time.perf_counter()
        if done is plan and not code and self._threads.learn(shape, decode_ended - decode_began):
            self._planner.learn(plan, decode_ended - decode_began)
        plan = done
        if code:
            stats.failed_decodes += 1
            for sequence, _ in plan:
                self._fail(sequence, EngineError(f"llama_decode failed with code {code}"))
        chosen = self._sample(plan) if not code else []
        sampled = time.perf_counter()
        self._publish(chosen)
        stats.steps += 1
        stats.decode_s += decode_ended - decode_began
        stats.sampling_s += sampled - decode_ended
        in_draft_s = stats.draft_s - drafted_before
        stats.other_s += time.perf_counter() - sampled + decode_began - began - in_draft_s

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
            if code == 0:
                for sequence, count in plan:
                    self._note_decoded(sequence, count)
                self._stats.decoded_sequences += len(plan)
                return plan, 0
            if code != _NO_ROOM:
                return plan, code
            smaller = self._make_room(plan)
            if smaller is None:
                return plan, code
            plan = smaller
        return plan, 0

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
        self._waiting.appendleft(sequence)

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
            at += 1 + supposed
        return chosen

    def _publish(self, chosen: list[tuple[Sequence, list[int]]]) -> None:
        now = time.monotonic()
        for sequence, tokens in chosen:
            length = len(sequence.tokens)
            reason = sequence.accept(tokens, now)
            self._stats.completion_tokens += len(sequence.tokens) - length
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
        else:
            self._waiting.remove(sequence)
        sequence.close()
        # Counted before it is told: whoever waits for the end finds room and the right figures.
        finished = self._stats.requests_finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        timings = generation.timings
        self._inbox.ended(timings.total_s - timings.queued_s)
        generation._finish(reason, error)
        self._changed.append(generation)

    def _notify(self) -> None:
        began = time.perf_counter()
        changed, self._changed = self._changed, []
        for generation in changed:
            generation._notify()
        self._stats.other_s += time.perf_counter() - began
