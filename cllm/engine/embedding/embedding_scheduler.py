"""A step of a model that embeds or ranks: the inputs that are computed next, in one batch."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cllm.engine.adapters import Adapters
from cllm.engine.embedding.handle import Embedding, EmbeddingWriter
from cllm.engine.embedding.pooling import EmbeddingShape
from cllm.engine.errors import DeadlineExceeded, EngineClosed, EngineError
from cllm.engine.info import ContextInfo
from cllm.engine.llama import INTERRUPTED, Batch, Context
from cllm.engine.request import FinishReason, Request
from cllm.engine.scheduling.fairness import FairQueue
from cllm.engine.scheduling.interruption import Interruption
from cllm.engine.scheduling.loop import EngineLoop
from cllm.engine.scheduling.thread_policy import Shape
from cllm.engine.scheduling.threads import Threads
from cllm.engine.sharing import EQUAL, Share
from cllm.engine.stats import EngineStats

_EARLY = 0.001  # s; a timer may be this early, and its step has ended


class Job:
    """One request. next: its next input. read: tokens of that input that are in memory."""

    __slots__ = (
        "deadline",
        "deadline_s",
        "embedding",
        "inputs",
        "next",
        "priority",
        "read",
        "share",
        "tenant",
        "writer",
    )

    def __init__(
        self,
        inputs: Sequence[Sequence[int]],
        embedding: Embedding,
        deadline: float | None,
        tenant: str = "",
        share: Share = EQUAL,
        priority: int = 0,
    ) -> None:
        self.inputs = [array("i", tokens) for tokens in inputs]
        self.embedding = embedding
        self.writer = EmbeddingWriter(embedding)
        self.deadline_s = deadline
        self.deadline = math.inf if deadline is None else time.monotonic() + deadline
        self.next = 0
        self.read = 0
        self.tenant = tenant
        self.share = share
        self.priority = priority

    @property
    def request(self) -> Embedding:
        """What the engine loop ends."""
        return self.embedding

    @property
    def left(self) -> int:
        """Tokens of the next input that are not in memory."""
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


class EmbeddingScheduler(EngineLoop[Job]):
    """Computes jobs on a context, as many inputs in one batch as fit."""

    def __init__(
        self,
        context: Context,
        batch: Batch,
        live: ContextInfo,
        shape: EmbeddingShape,
        width: int,
        max_queue: int,
        adapters: Adapters,
    ) -> None:
        """live: what the context was made with. width: components of a vector, or scores."""
        stats = EngineStats(
            queue_limit=max_queue, slots_total=shape.most_inputs, kv_cells=context.n_ctx
        )
        super().__init__(stats, FairQueue())  # jobs leave the queue when their last input begins
        self._context = context
        self._batch = batch
        self._shape = shape
        self._width = width
        self._adapters = adapters
        self._threads = Threads([context], live, stats)
        self._interruption = Interruption(context, can_undo=True)
        self._reading: Job | None = None  # a part of its next input is in memory
        self._parts: list[_Part] = []  # what this step computes

    # Any thread.

    def renew(self, tenant: str, share: Share) -> None:
        """Give a tenant another weight; `share.concurrent` does not apply."""
        super().renew(tenant, Share(share.weight))

    def cancel(self, request: Request) -> None:
        """End a request before the next step; a step that computes only it is interrupted."""
        super().cancel(request)
        self._interruption.cancel(request)

    def stop(self) -> None:
        """Let run() return; the batch in progress is not finished."""
        super().stop()
        self._interruption.stop()

    def snapshot(self) -> EngineStats:
        """Counters and gauges, as of now."""
        parts = self._parts
        return self._snapshot(len({part.job for part in parts}), slots_busy=len(parts))

    # The engine thread.

    def _rest(self) -> float:
        rest = super()._rest()
        if rest > 0:
            self._threads.rest()
        return rest

    def _step(self) -> None:
        began = time.perf_counter()
        self._expire()
        if self._waiting:
            self._compute(began)
        self._failures = 0

    def _compute(self, began: float) -> None:
        self._plan()
        count = self._fill()
        step = Shape(len(self._parts), 0, count)
        self._threads.prepare(step)
        if self._threads.is_due:
            self._threads.look()
        decode_began = time.perf_counter()
        jobs = {part.job for part in self._parts}
        # The inputs of others in a step would have to be computed again: it runs to its end.
        self._interruption.begin(tuple(jobs) if len(jobs) == 1 else (), len(jobs) == 1)
        try:
            if self._reading is None:  # an input is computed with one set from its beginning on
                self._context.adapt(self._adapters.defaults)
            code = self._context.decode(self._batch, count)
        finally:
            self._interruption.end()
        decode_ended = time.perf_counter()
        stats = self._stats
        stats.steps += 1
        stats.decode_s += decode_ended - decode_began
        if code == INTERRUPTED:
            self._end_interrupted(jobs)
        elif code:
            stats.failed_decodes += 1
            self._fail_parts(EngineError(f"llama.cpp failed with code {code}"))
        else:
            self._threads.learn(step, decode_ended - decode_began)
            stats.prompt_tokens += count
            self._collect(count)
        self._parts = []
        ended, prepared = time.perf_counter(), decode_began - began
        stats.other_s += ended - decode_ended + prepared
        decode_s, publish_s = decode_ended - decode_began, ended - decode_ended
        self.history.note_step(time.monotonic(), count, 0, 0, decode_s, 0.0, publish_s, prepared)

    def _plan(self) -> None:
        """Add inputs in their order while they fit; a long one has batches of its own.

        The next one is of the tenant that has used the least; its requests take turns.
        """
        shape, parts = self._shape, self._parts
        if self._reading is None:
            self._context.clear()
        room = shape.packed
        while len(parts) < shape.most_inputs:
            job = self._reading or next(self._waiting.candidates(), None)
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
        """Note that a part is in the batch; after a complete input another request has its turn."""
        job = part.job
        if not (job.next or job.read):
            job.writer.admit()
            self._inbox.begun(job)
        self._waiting.charge(job.tenant, part.end - part.start)
        if not part.complete:
            job.read, self._reading = part.end, job
            return
        job.next, job.read, self._reading = job.next + 1, 0, None
        if job.next < len(job.inputs):
            self._waiting.rotate(job)
        else:
            self._waiting.take(job)

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
            if part.job.writer.append(vectors) == len(part.job.inputs):
                self._complete(part.job)

    def _complete(self, job: Job) -> None:
        if job.writer.all_finite():
            self._finish(job, FinishReason.STOP)
        else:
            error = EngineError("the model computed a NaN or infinity; its file may be damaged")
            self._finish(job, FinishReason.ERROR, error)

    def _end_interrupted(self, jobs: Iterable[Job]) -> None:
        """End the requests of an interrupted step: cancelled, expired, or the engine closes."""
        for job in jobs:
            error: EngineError | None = EngineClosed("the engine was closed")
            if job.request.cancel_requested:
                error = None
            elif job.deadline_s is not None and job.deadline <= time.monotonic() + _EARLY:
                error = DeadlineExceeded(job.deadline_s)
            job.read = 0
            self._finish(job, FinishReason.ERROR if error else FinishReason.CANCELLED, error)

    def _fail_step(self, message: str) -> None:
        self._fail_parts(EngineError(message))

    def _fail_parts(self, error: EngineError) -> None:
        for job in {part.job for part in self._parts}:
            job.read = 0
            self._finish(job, FinishReason.ERROR, error)
        self._parts = []

    def _release(self, job: Job) -> None:
        if self._reading is job:
            self._reading = None
