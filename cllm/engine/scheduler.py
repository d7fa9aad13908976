"""The engine thread's loop and its policy: who is admitted, what is decoded, who must wait."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from cllm.engine.errors import DeadlineExceeded, EngineClosed, EngineError, QueueFull
from cllm.engine.generation import FinishReason, Generation
from cllm.engine.guide import MaskThread
from cllm.engine.llama import Batch, Context, Vocab
from cllm.engine.pacing import Pacer
from cllm.engine.placement import Placer
from cllm.engine.prefix_cache import Slot
from cllm.engine.sampling import TokenSampler
from cllm.engine.sequence import Sequence
from cllm.engine.speculation import Speculation
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_FAILURES_TO_GIVE_UP = 3  # steps in a row that ended in an unexpected exception
_NO_ROOM = 1  # llama_decode: no place in the cache; nothing was changed

_PLACING_S = 0.05  # that running streams wait for prefixes to be saved and restored, a step

Plan = list[tuple[Sequence, int]]  # whose next tokens to decode, and how many
Command = tuple[int, Callable[[Slot], Any], "Future[Any]"]  # a slot and what to do when it is idle


class Scheduler:
    """Runs sequences on a context. submit, cancel and stop are for any thread, run is the loop."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        vocab: Vocab,
        placer: Placer,
        pacer: Pacer,
        speculation: Speculation | None,
        stats: EngineStats,
        shared_cells: int | None,
    ) -> None:
        """shared_cells: what all sequences share if it may be too little for all of them."""
        self._context = context
        self._batch = batch
        self._vocab = vocab
        self._placer = placer
        self._cache = placer.cache
        self._pacer = pacer
        self._speculation = speculation
        self._max_in_flight = stats.slots_total + stats.queue_limit
        self._masks = MaskThread()
        self._shared_cells = shared_cells
        self.stats = stats
        self.failure: Exception | None = None
        self._wake = threading.Condition()
        # Written by any thread, under _wake:
        self._arrivals: list[Sequence] = []
        self._cancellations: list[Generation] = []
        self._commands: list[Command] = []
        self._in_flight = 0
        self._stopping = False
        # The engine thread's own:
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._put_off: list[Command] = []
        self._changed: list[Generation] = []
        self._next_deadline = math.inf
        self._mean_s = 0.0
        self._failures = 0

    # Any thread.

    def submit(self, sequence: Sequence) -> None:
        """Queue a request. Raises QueueFull, EngineClosed, or EngineError if the loop has died."""
        with self._wake:
            self._check_open()
            self._in_flight += 1
            self.stats.requests_submitted += 1
            self._arrivals.append(sequence)
            self._wake.notify()

    def check_open(self) -> None:
        """Raise what submit would raise now, before effort goes into preparing a request."""
        with self._wake:
            self._check_open()

    def _check_open(self) -> None:
        if self.failure is not None:
            raise EngineError(f"the engine has failed: {self.failure}") from self.failure
        if self._stopping:
            raise EngineClosed
        if self._in_flight >= self._max_in_flight:
            self.stats.requests_refused += 1
            raise QueueFull(self.queue_depth, self._retry_after())

    def cancel(self, generation: Generation) -> None:
        """End a generation before the next decode."""
        with self._wake:
            self._cancellations.append(generation)
            self._wake.notify()

    def command(self, slot: int, run: Callable[[Slot], Any]) -> Future[Any]:
        """Have something done to a slot on the engine thread, as soon as no request is in it.

        The future ends with what `run` returns or raises, or with EngineClosed.
        """
        future: Future[Any] = Future()
        with self._wake:
            if self._stopping:
                future.set_exception(EngineClosed())
            else:
                self._commands.append((slot, run, future))
                self._wake.notify()
        return future

    def stop(self) -> None:
        """Make run() return after the step it is in; every request then ends with EngineClosed."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def snapshot(self) -> EngineStats:
        """Counters and gauges, as of now."""
        cache = self._cache
        return replace(
            self.stats,
            requests_finished=dict(self.stats.requests_finished),
            queue_depth=self.queue_depth,
            slots_busy=cache.busy,
            kv_tokens=cache.held,
            cache_ram_bytes=cache.saved.bytes,
        )

    @property
    def slots(self) -> list[Slot]:
        """The places for sequences."""
        return self._cache.slots

    @property
    def queue_depth(self) -> int:
        """Requests that wait for a slot."""
        return max(0, self._in_flight - len(self._running))

    def _retry_after(self) -> int:
        """Seconds until the queue has likely moved on by as many requests as run at once."""
        return min(60, max(1, math.ceil(self._mean_s))) if self._mean_s else 5

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
            with self._wake:
                self._stopping = True
                self._waiting.extend(self._arrivals)
                self._arrivals.clear()
                self._put_off += self._commands
                self._commands.clear()
            for _, _, future in self._put_off:
                if future.set_running_or_notify_cancel():
                    future.set_exception(EngineClosed(message))
            for sequence in [*self._running, *self._waiting]:
                closed = EngineError(message) if error else EngineClosed(message)
                self._finish(sequence, FinishReason.ERROR, closed)
            self._notify()
            self._masks.close()

    def _take_messages(self) -> bool:
        """Take what other threads left; sleep while there is nothing to do. False: stop."""
        with self._wake:
            while not (self._arrivals or self._cancellations or self._commands or self._stopping):
                if self._running or self._waiting:
                    break
                self._wake.wait()
            if self._stopping:
                return False
            arrivals, self._arrivals = self._arrivals, []
            cancellations, self._cancellations = self._cancellations, []
            self._put_off += self._commands
            self._commands.clear()
        for sequence in arrivals:
            self._waiting.append(sequence)
            self._next_deadline = min(self._next_deadline, sequence.deadline)
        if cancellations:
            gone = set(cancellations)
            for sequence in [*self._running, *self._waiting]:
                if sequence.generation in gone:
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
                self.failure = error
                self.stats.healthy = False
                self.stop()

    def _step(self) -> None:
        began = time.perf_counter()
        stats = self.stats
        self._expire()
        if self._put_off:
            self._obey()
        self._catch_up()
        self._admit()
        plan = self._plan()
        if not plan:
            return
        generating = sum(s.decoding for s, _ in plan)
        decode_began = time.perf_counter()
        self._masks.start([s.guide for s, _ in plan if s.guide is not None])
        done, code = self._decode(plan)
        self._masks.wait()
        decode_ended = time.perf_counter()
        if done is plan and not code:
            self._learn(plan, generating, decode_ended - decode_began)
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
        stats.other_s += time.perf_counter() - sampled + decode_began - began

    def _learn(self, plan: Plan, generating: int, seconds: float) -> None:
        """Tell the policies what a step took."""
        supposed = sum(sequence.supposed for sequence, _ in plan)
        step_s = self._pacer.step_s(generating)
        if not supposed:
            tokens = sum(count for _, count in plan) - generating
            self._pacer.observe(generating, tokens, seconds)
        elif self._speculation is not None and step_s is not None:
            self._speculation.observe(supposed, seconds, step_s)

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

    def _obey(self) -> None:
        """Carry out the commands whose slots are idle."""
        commands, self._put_off = self._put_off, []
        for command in commands:
            index, run, future = command
            slot = self._cache.slots[index]
            if slot.busy:
                self._put_off.append(command)
            elif future.set_running_or_notify_cancel():
                try:
                    future.set_result(run(slot))
                except Exception as error:
                    future.set_exception(error)

    def _catch_up(self) -> None:
        """Let go on who waited for a prompt that another sequence has evaluated by now."""
        for sequence in self._running:
            slot = _slot(sequence)
            if slot.leader is not None and self._placer.catch_up(slot):
                self._note_start(sequence)

    def _admit(self) -> None:
        """Give free slots to those who wait, first come first served."""
        began = time.perf_counter()
        while (sequence := self._next()) is not None:
            slot = self._placer.place(sequence.tokens, sequence.wanted_slot, sequence.fresh)
            if slot is None:
                break
            self._waiting.remove(sequence)
            self._running.append(sequence)
            sequence.slot = slot
            sequence.generation.slot = slot.id
            slot.user = sequence
            if sequence.sampler is None:
                sequence.sampler = TokenSampler(sequence.params, self._vocab)
                sequence.generation._note_admitted(0)
                self.stats.prompt_tokens += sequence.n_prompt
            if slot.leader is None:
                self._note_start(sequence)
            if len(self._running) > 1 and time.perf_counter() - began > _PLACING_S:
                break

    def _next(self) -> Sequence | None:
        """The first that can be admitted; whoever wants a busy slot lets others go ahead."""
        if self._waiting and self._cache.has_idle:
            slots = self._cache.slots
            for sequence in self._waiting:
                if sequence.wanted_slot is None or not slots[sequence.wanted_slot].busy:
                    return sequence if self._fits(sequence) else None
        return None

    def _note_start(self, sequence: Sequence) -> None:
        """Count what need not be evaluated of a sequence that is about to begin."""
        reused = _slot(sequence).length
        if sequence.preempted:
            self.stats.recomputed_tokens += len(sequence.tokens) - reused
            return
        sequence.generation.usage.cached_tokens = reused
        self.stats.cached_tokens += reused
        self.stats.prefix_hits += reused > 0

    def _fits(self, sequence: Sequence) -> bool:
        """Whether a cache that is too small for everybody can take one more at their lengths."""
        if self._shared_cells is None or not self._running:
            return True
        lengths = sum(len(other.tokens) + 1 for other in self._running)
        return lengths + len(sequence.tokens) + 1 <= self._shared_cells

    def _plan(self) -> Plan:
        """The newest tokens of those that are generating, then of prompts what time allows."""
        generating = [s for s in self._running if s.decoding]
        counts = {s: s.pending for s in generating}
        room = self._batch.capacity - sum(counts.values())
        if room < 0:
            counts = dict.fromkeys(counts, 1)
        elif self._speculation is not None and 0 < len(generating) == len(self._running):
            self._speculation.guess(generating, room, self._pacer.step_s(len(generating)))
            counts = {s: s.pending for s in generating}
        prompts = [s for s in self._running if s not in counts and _slot(s).leader is None]
        if prompts:
            pacer, room = self._pacer, self._batch.capacity - sum(counts.values())
            room = min(room, pacer.budget(len(counts), self._context.n_ubatch))
            prompts.sort(key=lambda s: pacer.due(s.generation._submitted, s.pending))
            for sequence in prompts:
                counts[sequence] = min(sequence.pending, room)
                room -= counts[sequence]
        # A cache split by sequence is decoded together only for consecutive slots in order.
        return sorted(((s, n) for s, n in counts.items() if n), key=lambda item: _slot(item[0]).id)

    def _decode(self, plan: Plan) -> tuple[Plan, int]:
        """Decode a plan, or what of it finds room; return what was tried last and the code."""
        while plan:
            code = self._context.decode(self._batch, self._fill(plan))
            if code == 0:
                for sequence, count in plan:
                    self._note_decoded(sequence, count)
                self.stats.decoded_sequences += len(plan)
                return plan, 0
            if code != _NO_ROOM:
                return plan, code
            smaller = self._make_room(plan)
            if smaller is None:
                return plan, code
            plan = smaller
        return plan, 0

    def _note_decoded(self, sequence: Sequence, count: int) -> None:
        slot = _slot(sequence)
        slot.length += count
        self.stats.longest = max(self.stats.longest, slot.length)
        if sequence.params.report_progress and len(sequence.tokens) == sequence.n_prompt:
            sequence.generation._note_evaluated(slot.length)
            self._changed.append(sequence.generation)

    def _fill(self, plan: Plan) -> int:
        batch, at = self._batch, 0
        for sequence, count in plan:
            slot = _slot(sequence)
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
        taking = [s for s in self._running if _slot(s).leader is None or _slot(s).length]
        if len(taking) > 1:
            youngest = max(taking, key=lambda s: s.generation._submitted)
            self._preempt(youngest)
            remaining = [(s, n) for s, n in plan if s is not youngest]
            return remaining or self._plan()
        (only, count) = plan[0]
        return [(only, count // 2)] if count > 1 else None

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's slot away; it waits at the front and is computed again."""
        slot = _slot(sequence)
        self.stats.preemptions += 1
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
                    self.stats.guesses += 1
                    self.stats.guessed_tokens += supposed
                    self.stats.guessed_right += len(tokens) - 1
            except EngineError as error:
                self._fail(sequence, error)
            at += 1 + supposed
        return chosen

    def _publish(self, chosen: list[tuple[Sequence, list[int]]]) -> None:
        now = time.monotonic()
        for sequence, tokens in chosen:
            length = len(sequence.tokens)
            reason = sequence.accept(tokens, now)
            self.stats.completion_tokens += len(sequence.tokens) - length
            self._forget_wrong(sequence)
            if reason is not None:
                self._finish(sequence, reason)
            else:
                self._changed.append(sequence.generation)

    def _forget_wrong(self, sequence: Sequence) -> None:
        """Remove what was evaluated of guesses that were wrong, or behind the end of the text."""
        slot, before_newest = _slot(sequence), len(sequence.tokens) - 1
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
        finished = self.stats.requests_finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        ran_s = generation.timings.total_s - generation.timings.queued_s
        self._mean_s += 0.2 * (ran_s - self._mean_s)
        with self._wake:
            self._in_flight -= 1
        generation._finish(reason, error)
        self._changed.append(generation)

    def _notify(self) -> None:
        began = time.perf_counter()
        changed, self._changed = self._changed, []
        for generation in changed:
            generation._notify()
        self.stats.other_s += time.perf_counter() - began


def _slot(sequence: Sequence) -> Slot:
    assert sequence.slot is not None
    return sequence.slot
