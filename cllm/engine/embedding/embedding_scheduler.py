"""The engine thread's loop for models that embed: whose inputs are computed next, in one batch."""

from __future__ import annotations

import logging
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cllm.engine.embedding.handle import Embedding, all_finite
from cllm.engine.embedding.pooling import EmbeddingShape
from cllm.engine.errors import DeadlineExceeded, EngineClosed, EngineError, described
from cllm.engine.llama import INTERRUPTED
from cllm.engine.loading.loading import Loaded
from cllm.engine.request import FinishReason
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.scheduling.inbox import Inbox
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.scheduling.threads import Threads
from cllm.engine.stats import EngineStats

_log = logging.getLogger("cllm.engine")

_FAILURES_TO_GIVE_UP = 3  # steps in a row that ended in an unexpected exception


class Job:
    """One request. next: the input whose turn it is. read: tokens of it that are in memory."""

    __slots__ = ("deadline", "deadline_s", "embedding", "inputs", "next", "read", "tenant")

    def __init__(
        self,
        inputs: Sequence[Sequence[int]],
        embedding: Embedding,
        deadline: float | None,
        tenant: str = "",
    ) -> None:
        self.inputs = [array("i", tokens) for tokens in inputs]
        self.embedding = embedding
        self.deadline_s = deadline
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        self.next = 0
        self.read = 0
        self.tenant = tenant

    @property
    def left(self) -> int:
        """Tokens of the input whose turn it is that are not in memory."""
        return len(self.inputs[self.next]) - self.read


@dataclass(frozen=True, slots=True)
class _Part:
    """An input, or a chunk of a long one, in a batch: tokens from start to end."""

    job: Job
    index: int
    start: int
    end: int

    @property
    def complete(self) -> bool:
        """Whether the input ends with it."""
        return self.end == len(self.job.inputs[self.index])


class EmbeddingScheduler:
    """Computes jobs on a context. submit, cancel and stop are for any thread, run is the loop."""

    def __init__(self, loaded: Loaded, shape: EmbeddingShape, width: int, max_queue: int) -> None:
        """width: components of a vector, or scores."""
        context = loaded.context
        self._context = context
        self._batch = loaded.batch
        self._shape = shape
        self._width = width
        self._inbox: Inbox[Job] = Inbox(shape.most_inputs, max_queue)
        self.submit = self._inbox.put
        self.cancel = self._inbox.cancel
        self.check_open = self._inbox.check_open
        # The engine thread's own:
        self._stats = EngineStats(
            queue_limit=max_queue, slots_total=shape.most_inputs, kv_cells=context.n_ctx
        )
        self._threads = Threads(loaded.contexts, loaded.info.context, self._stats)
        self._jobs: FairQueue[Job] = FairQueue()  # those whose last input was begun have left
        self._reading: Job | None = None  # a part of its next input is in memory
        self._parts: list[_Part] = []  # what this step computes
        self._changed: list[Embedding] = []
        self._failures = 0

    # Any thread.

    def stop(self) -> None:
        """Let run() return; the batch in progress is not finished."""
        self._inbox.stop()
        self._context.interrupt()

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
        busy = len({part.job for part in self._parts})
        return replace(
            self._stats,
            requests_submitted=self._inbox.submitted,
            requests_refused=self._inbox.refused,
            requests_finished=dict(self._stats.requests_finished),
            queue_depth=max(0, self._inbox.in_flight - busy),
            slots_busy=len(self._parts),
        )

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
            self._jobs.extend(self._inbox.close())
            ending = self._inbox.ending()
            for job in list(self._jobs):
                self._finish(job, FinishReason.ERROR, ending)
            self._notify()

    def _take_messages(self) -> bool:
        """Take what other threads left; sleep while there is nothing to do. False: stop."""
        messages = self._inbox.take(wait=not self._jobs)
        if messages is None:
            return False
        self._jobs.extend(messages.arrivals)
        for job, refusal in messages.displaced:
            if not (job.next or job.read):
                self._finish(job, FinishReason.ERROR, refusal)
        if messages.cancelled:
            for job in list(self._jobs):
                if job.embedding in messages.cancelled:
                    self._finish(job, FinishReason.CANCELLED)
        return True

    def _guarded_step(self) -> None:
        try:
            self._step()
            self._failures = 0
        except Exception as error:
            _log.exception("a step failed; its requests end with an error")
            self._fail_parts(EngineError(f"internal error: {described(error)}"))
            self._failures += 1
            if self._failures >= _FAILURES_TO_GIVE_UP:
                self._inbox.fail(error)

    def _step(self) -> None:
        began = time.perf_counter()
        self._expire()
        if not self._jobs:
            return
        self._plan()
        count = self._fill()
        step = Shape(len(self._parts), 0, count)
        self._threads.prepare(step)
        decode_began = time.perf_counter()
        code = self._context.decode(self._batch, count)
        decode_ended = time.perf_counter()
        stats = self._stats
        stats.steps += 1
        stats.decode_s += decode_ended - decode_began
        if code == INTERRUPTED:  # by stop()
            self._fail_parts(EngineClosed("the engine was closed"))
        elif code:
            stats.failed_decodes += 1
            self._fail_parts(EngineError(f"llama.cpp failed with code {code}"))
        else:
            self._threads.learn(step, decode_ended - decode_began)
            stats.prompt_tokens += count
            self._collect(count)
        self._parts = []
        stats.other_s += time.perf_counter() - decode_ended + decode_began - began

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs if job.deadline <= now]:
            assert job.deadline_s is not None
            self._finish(job, FinishReason.ERROR, DeadlineExceeded(job.deadline_s))

    def _plan(self) -> None:
        """One input after the other while they fit; a long one has batches of its own.

        The next one is of the tenant that has used the least, whose requests take turns.
        """
        shape, parts = self._shape, self._parts
        if self._reading is None:
            self._context.clear()
        room = shape.packed
        while len(parts) < shape.most_inputs:
            job = self._reading or next(self._jobs.candidates(), None)
            if job is None or (parts and job.left > room):
                break
            alone = job.left > room or job.read > 0
            part = _Part(job, job.next, job.read, job.read + min(job.left, shape.batch))
            parts.append(part)
            room -= part.end - part.start
            self._begin(part)
            if alone:
                break

    def _begin(self, part: _Part) -> None:
        """A part is on its way: the next request has its turn, unless more of the input is left."""
        job = part.job
        if not (job.next or job.read):
            job.embedding._note_admitted(0)
            self._inbox.begun(job)
        self._jobs.charge(job.tenant, part.end - part.start)
        if not part.complete:
            job.read, self._reading = part.end, job
            return
        job.next, job.read, self._reading = job.next + 1, 0, None
        if job.next < len(job.inputs):
            self._jobs.rotate(job)
        else:
            self._jobs.take(job)

    def _fill(self) -> int:
        batch, at = self._batch, 0
        for seq, part in enumerate(self._parts):
            end = at + part.end - part.start
            batch.token[at:end] = part.job.inputs[part.index][part.start : part.end]
            batch.pos[at:end] = range(part.start, part.end)
            batch.seq[at:end] = seq
            at = end
        batch.output[:at] = 1
        return at

    def _collect(self, count: int) -> None:
        """Take the vectors of the inputs that are complete."""
        pooled = self._shape.pooling != "none"
        rows = None if pooled else self._context.token_vectors(count, self._width)
        at = 0
        for seq, part in enumerate(self._parts):
            if rows is not None:
                vectors = rows[at : at + part.end - part.start]
                at += len(vectors)
            elif part.complete:
                vectors = self._context.pooled(seq, self._width)
            else:
                continue
            embedding, inputs = part.job.embedding, part.job.inputs
            embedding._outputs.append(vectors)
            if len(embedding._outputs) == len(inputs):
                self._complete(part.job)

    def _complete(self, job: Job) -> None:
        if all_finite(job.embedding._outputs):
            self._finish(job, FinishReason.STOP)
        else:
            error = EngineError("the model computed NaN or infinity; its file may be damaged")
            self._finish(job, FinishReason.ERROR, error)

    def _fail_parts(self, error: EngineError) -> None:
        for job in {part.job for part in self._parts}:
            job.read = 0
            self._finish(job, FinishReason.ERROR, error)
        self._parts = []

    def _finish(self, job: Job, reason: FinishReason, error: EngineError | None = None) -> None:
        embedding = job.embedding
        if embedding.done:
            return
        if self._reading is job:
            self._reading = None
        self._jobs.leave(job)
        # Counted before it is told: whoever waits for the end finds room and the right figures.
        finished = self._stats.requests_finished
        finished[reason.value] = finished.get(reason.value, 0) + 1
        timings = embedding.timings
        self._inbox.ended(job, timings.total_s - timings.queued_s)
        embedding._finish(reason, error)
        self._changed.append(embedding)

    def _notify(self) -> None:
        changed, self._changed = self._changed, []
        for embedding in changed:
            embedding._notify()
