"""POST ``/benchmark``: the server measures itself with generated requests.

They go through the same queue and scheduler as all others. The benchmark's thread keeps
``concurrency`` of them in flight; it holds no worker, and the engine thread only reports ends. If
the queue is full, a request waits for room: that is load, not failure.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import failure, success, too_many_requests
from cllm.api.native.schemas import BENCHMARK, BenchmarkRequest
from cllm.api.service import RETRY_AFTER, Service
from cllm.api.tenants import Tenant, scope_of, tenant_of
from cllm.engine import EngineError, QueueFull, SamplingParams
from cllm.engine.sharing import Scope
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation

log = logging.getLogger("cllm.api")

# Benchmarks that may run at the same time, of all tenants and of one; more get a 429.
AT_ONCE = 4
AT_ONCE_OF_ONE = 2
_RETRY = 0.05  # seconds between two tries at a full queue


class Benchmarks:
    """The endpoint; limits how many run at once."""

    __slots__ = ("_lock", "_running", "_service")

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._running: list[str] = []  # the tenant of each

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """Start a benchmark and answer when it is done. An empty body selects every default.

        Raises HttpError 400 and 503, InvalidRequest.
        """
        asked = BENCHMARK.decode(request.body or b"{}")
        engine = self._service.engine
        timeout = self._service.settings.request_timeout
        tenant = self._service.tenants.of(request)
        scope = scope_of(request, self._service.divides_prefixes, None)
        run = _Run(engine, asked, timeout, tenant_of(request), tenant, scope)
        engine.check_prompt(run.prompt)
        if not self._enter(run.name):
            return too_many_requests(RETRY_AFTER)
        answer = DeferredResponse()
        answer.on_cancel(lambda reason: run.cancel())
        thread = threading.Thread(
            target=self._run, args=(run, answer, request.id), name="cllm-benchmark", daemon=True
        )
        try:
            thread.start()
        except BaseException:
            self._leave(run.name)
            raise
        return answer

    def _run(self, run: _Run, answer: DeferredResponse, request_id: str) -> None:
        try:
            run.run()
            response = success(run.report())
        except EngineError as error:
            response = failure(503, f"the benchmark ended early: {error}")
        except Exception:
            log.exception("request=%s the benchmark failed", request_id)
            response = failure(500, f"internal error (id {request_id})")
        finally:
            self._leave(run.name)
        answer.resolve(response)

    def _enter(self, tenant: str) -> bool:
        with self._lock:
            running = self._running
            if len(running) >= AT_ONCE or running.count(tenant) >= AT_ONCE_OF_ONE:
                return False
            running.append(tenant)
            return True

    def _leave(self, tenant: str) -> None:
        with self._lock:
            self._running.remove(tenant)


@dataclass(slots=True)
class _Results:
    """One entry per successful request; times in seconds."""

    seconds: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    failed: int = 0


class _Request:
    """One request in flight; reports its end to the run."""

    __slots__ = ("_ended", "_lock", "_told", "generation")

    def __init__(self, ended: SimpleQueue[_Request | None]) -> None:
        self._ended = ended
        self._lock = threading.Lock()
        self._told = False
        self.generation: Generation | None = None

    @property
    def gave_way(self) -> bool:
        """Whether it gave up its place in a full queue for another client's request."""
        return self.generation is not None and isinstance(self.generation.error, QueueFull)

    def on_update(self) -> None:
        """On a thread of the engine after a step, and once after submission."""
        generation = self.generation
        if generation is None or not generation.done:
            return
        with self._lock:
            told, self._told = self._told, True
        if not told:
            self._ended.put(self)


class _Run:
    """One benchmark: submits, collects, reports."""

    def __init__(
        self,
        engine: Engine,
        asked: BenchmarkRequest,
        request_timeout: float,
        name: str,
        tenant: Tenant,
        scope: Scope,
    ) -> None:
        self.prompt = engine.tokenize(asked.prompt)
        self._engine = engine
        self._asked = asked
        self._request_timeout = request_timeout
        self.name = name
        self._tenant = tenant
        self._scope = scope
        sampling = SamplingParams(max_tokens=asked.max_tokens)
        if asked.temperature is not None:
            sampling = replace(sampling, temperature=asked.temperature)
        self._sampling = sampling
        # An entry is an ended request, or None: stop.
        self._ended: SimpleQueue[_Request | None] = SimpleQueue()
        self._in_flight: set[_Request] = set()
        self._results = _Results()
        self._total_time = 0.0

    def cancel(self) -> None:
        """Stop: no client waits for the response. Any thread."""
        self._ended.put(None)

    def run(self) -> None:
        """Run until every request has ended or `cancel` was called; raises EngineError."""
        asked = self._asked
        log.info(
            "benchmark: %d requests, %d at a time, %d tokens each",
            asked.requests, asked.concurrency, asked.max_tokens,
        )  # fmt: skip
        tenth = max(1, asked.requests // 10)
        started = time.monotonic()
        waiting, done = asked.requests, 0
        try:
            while done < asked.requests:
                while waiting and len(self._in_flight) < asked.concurrency and self._submit():
                    waiting -= 1
                starved = waiting > 0 and len(self._in_flight) < asked.concurrency
                try:
                    request = self._ended.get(timeout=_RETRY if starved else None)
                except Empty:
                    continue
                if request is None:
                    log.info("benchmark: cancelled after %d of %d", done, asked.requests)
                    return
                self._in_flight.discard(request)
                if request.gave_way:
                    waiting += 1
                    continue
                self._collect(request)
                done += 1
                if done % tenth == 0:
                    log.info("benchmark: %d of %d requests done", done, asked.requests)
        finally:
            self._total_time = time.monotonic() - started
            for left in self._in_flight:
                if left.generation is not None:
                    left.generation.cancel()

    def _submit(self) -> bool:
        """Whether there was room in the engine's queue, and the tenant may use more tokens."""
        try:
            self._tenant.check_tokens()
        except HttpError:
            return False
        request, share = _Request(self._ended), self._tenant.share
        try:
            request.generation = self._engine.submit(
                self.prompt,
                self._sampling,
                deadline=self._request_timeout,
                on_update=request.on_update,
                tenant=self.name,
                share=share,
                priority=self._tenant.terms.usual_priority,
                scope=self._scope,
                meter=self._tenant,
            )
        except QueueFull:
            return False
        self._tenant.submitted(self._engine, share)
        self._in_flight.add(request)
        request.on_update()
        return True

    def _collect(self, request: _Request) -> None:
        generation = request.generation
        assert generation is not None
        results = self._results
        if generation.finish_reason not in ("stop", "length"):
            results.failed += 1
            log.warning("benchmark: a request failed: %s", generation.error or "it was cancelled")
            return
        timings = generation.timings
        results.seconds.append(timings.total_s)
        results.first_token.append(timings.ttft_s)
        results.tokens.append(generation.usage.completion_tokens)

    def report(self) -> dict[str, Any]:
        """The results (docs/api.md); times in seconds, of successful requests."""
        results, total_time = self._results, self._total_time
        seconds, tokens = sorted(results.seconds), sum(results.tokens)
        each = [n / s for n, s in zip(results.tokens, results.seconds, strict=True) if s > 0]
        return {
            "total_requests": self._asked.requests,
            "successful_requests": len(seconds),
            "failed_requests": results.failed,
            "avg_response_time": _mean(seconds),
            "min_response_time": seconds[0] if seconds else 0.0,
            "max_response_time": seconds[-1] if seconds else 0.0,
            "p50_response_time": _percentile(seconds, 0.50),
            "p95_response_time": _percentile(seconds, 0.95),
            "p99_response_time": _percentile(seconds, 0.99),
            "time_to_first_token": _mean(results.first_token),
            "avg_throughput": tokens / total_time if total_time > 0 else 0.0,
            "avg_tokens_per_second": _mean(each),
            "total_tokens_processed": tokens,
            "avg_generated_tokens": _mean(results.tokens),
            "total_time": total_time,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _percentile(ascending: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all does not exceed (nearest rank)."""
    if not ascending:
        return 0.0
    rank = -int(-fraction * len(ascending) // 1)  # the ceiling
    return ascending[max(rank, 1) - 1]
