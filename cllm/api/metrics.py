"""``/metrics``: counters of the engine and the server, in Prometheus text format 0.0.4.

A scrape reads all values; only the histograms cost time otherwise, about 5 µs at the end of a
generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cllm.api.llama_server.metrics import LlamaFigures
from cllm.api.service import Service
from cllm.api.tenants import Tenant
from cllm.http import HttpError, HttpRequest, HttpResponse
from cllm.version import __version__

if TYPE_CHECKING:
    from cllm.engine import EngineStats, Request
    from cllm.http.stats import ServerStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)

# Metric name (a counter gets "_total"), help, field of EngineStats.
_ENGINE_COUNTERS = (
    ("requests_submitted", "Generations accepted by the engine", "requests_submitted"),
    ("requests_refused", "Generations refused because the queue was full", "requests_refused"),
    ("prompt_tokens", "Prompt tokens of admitted generations", "prompt_tokens"),
    ("generated_tokens", "Tokens generated", "completion_tokens"),
    ("prefix_cached_tokens", "Prompt tokens found in the prefix cache", "cached_tokens"),
    ("prefix_hits", "Admissions that reused a cached prefix", "prefix_hits"),
    ("prefixes_saved", "Prefixes put into host memory", "saved_prefixes"),
    ("prefixes_restored", "Prefixes taken from host memory", "restored_prefixes"),
    ("prefix_restored_tokens", "Prompt tokens taken from host memory", "restored_tokens"),
    ("prefixes_evicted", "Prefixes dropped from host memory for others", "evicted_prefixes"),
    ("checkpoints_saved", "States of recurrent layers kept", "saved_checkpoints"),
    ("checkpoints_restored", "Prompts that began at such a state", "restored_checkpoints"),
    ("disk_prefixes_read", "Prefixes read from disk", "disk_read_prefixes"),
    ("disk_prefixes_written", "Prefixes written to disk", "disk_written_prefixes"),
    (
        "disk_prefixes_dropped",
        "Prefixes not written because the disk was full or too slow",
        "disk_dropped_prefixes",
    ),
    ("disk_prefixes_evicted", "Prefixes removed from disk for others", "disk_evicted_prefixes"),
    ("guessed_tokens", "Draft tokens evaluated", "guessed_tokens"),
    ("guessed_right_tokens", "Draft tokens accepted", "guessed_right"),
    ("recomputed_tokens", "Tokens evaluated again after a preemption", "recomputed_tokens"),
    ("context_shifts", "Full sequences that lost old tokens", "context_shifts"),
    ("preemptions", "Sequences preempted for lack of KV cache", "preemptions"),
    ("pauses", "Sequences that left their slot to another tenant", "pauses"),
    ("failed_decodes", "llama_decode calls that failed", "failed_decodes"),
    ("thread_changes", "Changes of the number of computing threads", "thread_changes"),
    ("constraints_compiled", "Constraints compiled", "constraints_compiled"),
    ("constraints_refused", "Constraints refused by the compiler", "constraints_refused"),
    ("constraint_deaths", "Compiler processes killed by a constraint", "constraint_deaths"),
    ("steps", "Scheduler steps", "steps"),
    ("decode_seconds", "Time in llama_decode", "decode_s"),
    ("draft_seconds", "Time in the draft model", "draft_s"),
    ("sampling_seconds", "Time choosing tokens", "sampling_s"),
    (
        "other_step_seconds",
        "Time in steps outside llama_decode, draft model and sampling",
        "other_s",
    ),
)
_ENGINE_GAUGES = (
    ("queue_depth", "Generations waiting for a slot", "queue_depth"),
    ("queue_limit", "Generations that may wait", "queue_limit"),
    ("slots_busy", "Sequence slots in use", "slots_busy"),
    ("slots", "Sequence slots", "slots_total"),
    ("kv_tokens", "Tokens held in the KV cache", "kv_tokens"),
    ("kv_cells", "Tokens the KV cache can hold", "kv_cells"),
    ("prefix_ram_bytes", "Host memory taken for saved prefixes", "cache_ram_bytes"),
    ("threads", "Threads that compute a step now", "threads"),
    ("threads_limit", "Upper bound on computing threads", "threads_limit"),
    ("cores", "Cores that the process may use", "cores"),
    ("cores_left", "Cores recently free of other programs", "cores_left"),
    ("prefix_ram_limit_bytes", "Limit of host memory for saved prefixes", "cache_ram_limit"),
    ("disk_prefixes", "Prefixes on disk for this model", "cache_disk_entries"),
    ("disk_bytes", "Bytes of all prefixes on disk", "cache_disk_bytes"),
    ("disk_limit_bytes", "Limit of the bytes of all prefixes on disk", "cache_disk_limit"),
)
# The same for ServerStats.
_SERVER_COUNTERS = (
    ("http_connections_accepted", "Connections accepted", "accepted_total"),
    ("http_connections_reclaimed", "Idle connections closed for new ones", "reclaimed_total"),
    (
        "http_connections_turned_away",
        "Connections closed at the limit per client",
        "turned_away_total",
    ),
    ("http_requests", "HTTP requests read", "requests_total"),
    ("http_sent_bytes", "Bytes of response bodies sent", "bytes_sent_total"),
    ("http_clients_left", "Clients that left before their response ended", "clients_left_total"),
    ("http_timeouts", "Deadlines of a head, a body or a write that passed", "timeouts_total"),
)
_SERVER_GAUGES = (
    ("http_connections", "Connections open", "connections_open"),
    ("http_connections_parked", "Connections that wait for bytes, tokens or a deadline", "parked"),
    ("http_body_bytes", "Bytes of request bodies that are not complete", "body_bytes"),
    ("http_queue_depth", "Connections that wait for a worker", "queue_depth"),
    ("http_workers", "Worker threads", "workers"),
    ("http_workers_busy", "Workers at work", "workers_busy"),
)


class Metrics:
    """A registry of its own, so that several servers in a process keep their figures apart."""

    __slots__ = ("_length", "_llama", "_queued", "_registry", "_seconds", "_service", "_ttft")

    def __init__(self, service: Service) -> None:
        self._service = service
        registry = CollectorRegistry()
        self._registry = registry
        self._seconds = _histogram(
            registry, "generation_seconds", "Seconds from request to end", _SECONDS
        )
        self._queued = _histogram(
            registry, "queued_seconds", "Seconds from request to slot", _SECONDS
        )
        self._ttft = _histogram(
            registry, "time_to_first_token_seconds", "Seconds from request to first token", _SECONDS
        )
        self._length = _histogram(registry, "generation_tokens", "Tokens generated", _TOKENS)
        self._llama = LlamaFigures(service)
        self._service = service
        registry.register(_Figures(service))
        registry.register(self._llama)
        ProcessCollector(registry=registry)

    def finished(self, request: Request) -> None:
        """Count a request whose response is complete. Any thread."""
        timings = request.timings
        self._seconds.observe(timings.total_s)
        self._queued.observe(timings.queued_s)
        if timings.ttft_s > 0:
            self._length.observe(request.usage.completion_tokens)
            self._ttft.observe(timings.ttft_s)
            self._llama.finished(request)

    def endpoint(self, request: HttpRequest) -> HttpResponse:
        """GET ``/metrics``; with a file of keys, only an admin key sees more than its own.

        Raises HttpError 501 where they are switched off.
        """
        if not self._service.settings.metrics:
            raise HttpError(501, "this server does not show metrics; start it with --metrics")
        tenants = self._service.tenants
        own = CollectorRegistry()
        own.register(_OfTenants(tenants.visible(request)))
        text = generate_latest(own) if tenants.keyed else b""
        if tenants.sees_all(request):
            text = generate_latest(self._registry) + text
        # The library adds the suffix to every counter; llama-server's has none.
        text = text.replace(b"llamacpp:n_tokens_max_total", b"llamacpp:n_tokens_max")
        response = HttpResponse.bytes(text, CONTENT_TYPE)
        response.headers.append(("Process-Start-Time-Unix", str(round(self._service.started_at))))
        return response


class _Figures(Collector):
    """Reads the counters of the engine and the server at each scrape."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        # Prevents registration from collecting before there is an engine.
        return []

    def collect(self) -> Iterator[Metric]:
        service = self._service
        build = GaugeMetricFamily("cllm_build", "Version of cLLM", labels=["version"])
        build.add_metric([__version__], 1)
        yield build
        yield GaugeMetricFamily(
            "cllm_uptime_seconds", "Seconds since the service started", service.uptime
        )
        yield from _engine(service.known.stats())
        if service.server_stats is not None:
            yield from _server(service.server_stats())


class _OfTenants(Collector):
    """What tenants have used; their names are those of the keys, so their number is bounded."""

    def __init__(self, tenants: Sequence[Tenant]) -> None:
        self._tenants = tenants

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "cllm_tenant_requests", "POST requests of a tenant", labels=["tenant"]
        )
        refused = CounterMetricFamily(
            "cllm_tenant_refused", "Requests refused by a limit", labels=["tenant", "limit"]
        )
        tokens = CounterMetricFamily(
            "cllm_tenant_tokens", "Tokens of a tenant", labels=["tenant", "kind"]
        )
        running = GaugeMetricFamily(
            "cllm_tenant_in_flight", "Requests that wait or run", labels=["tenant"]
        )
        for tenant in self._tenants:
            told, name = tenant.described(), tenant.name
            requests.add_metric([name], told["requests"])
            running.add_metric([name], told["in_flight"])
            for limit, count in told["refused"].items():
                refused.add_metric([name, limit], count)
            for kind in ("prompt", "cached", "generated"):
                tokens.add_metric([name, kind], told[f"{kind}_tokens"])
        yield from (requests, refused, tokens, running)


def _engine(stats: EngineStats) -> Iterator[Metric]:
    for name, text, field in _ENGINE_COUNTERS:
        yield CounterMetricFamily(f"cllm_{name}", text, getattr(stats, field))
    for name, text, field in _ENGINE_GAUGES:
        yield GaugeMetricFamily(f"cllm_{name}", text, getattr(stats, field))
    finished = CounterMetricFamily(
        "cllm_requests_finished", "Generations that ended", labels=["reason"]
    )
    for reason in ("stop", "length", "cancelled", "error"):
        finished.add_metric([reason], stats.requests_finished.get(reason, 0))
    yield finished


def _server(stats: ServerStats) -> Iterator[Metric]:
    for name, text, field in _SERVER_COUNTERS:
        yield CounterMetricFamily(f"cllm_{name}", text, getattr(stats, field))
    for name, text, field in _SERVER_GAUGES:
        yield GaugeMetricFamily(f"cllm_{name}", text, getattr(stats, field))
    responses = CounterMetricFamily(
        "cllm_http_responses", "HTTP responses by status", labels=["status"]
    )
    for status, count in sorted(stats.responses_by_status.items()):
        responses.add_metric([str(status)], count)
    yield responses
    limits = CounterMetricFamily(
        "cllm_http2_limits", "Limits of HTTP/2 that clients have passed", labels=["limit"]
    )
    for limit, count in sorted(stats.http2_limits.items()):
        limits.add_metric([limit], count)
    yield limits


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"cllm_{name}", text, buckets=buckets, registry=registry)
