"""What ``/monitor`` shows: the engine, the server and the requests as of one moment.

The types are the fields of its events and of their description in ``/openapi.json``.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from cllm.api.service import Service
from cllm.engine.history import record_of
from cllm.engine.step_records import Pace, Steps

if TYPE_CHECKING:
    from cllm.engine.cache.slot_info import SlotInfo
    from cllm.engine.history import RequestRecord
    from cllm.engine.stats import EngineStats
    from cllm.http.stats import ServerStats

SECONDS = 60  # of the timelines
_LAST_STEPS = 20  # described one by one
_LISTED = 20  # waiting requests of each tenant that are described one by one
_DIGITS = 5  # of seconds
_BUSY = 0.85  # of the time in steps, from which the machine is the limit
_OTHERS = 0.5  # cores that other programs use, from which they are the limit


class Gaps(Struct):
    """Seconds between tokens: the median of the last 256 gaps, and the longest gap."""

    median: float
    max: float


class ShownRequest(Struct):
    """A request that waits, runs or has ended; times in seconds, 0 for a phase not begun.

    prefix: where cached_tokens came from: "slot", "copy", "running", "memory", "disk" or "".
    read_tokens: of the prompt that are in the cache. gaps: of the steps that are still known; null
    without any. others_prompts_s: of decode_s, in steps that also read prompts of other requests.
    """

    id: str
    tenant: str
    state: Literal["waiting", "prefix", "prompt", "generating", "ended"]
    slot: int | None
    prompt_tokens: int
    cached_tokens: int
    prefix: str
    read_tokens: int
    generated_tokens: int
    tokens_per_second: float
    queued_s: float
    prompt_s: float
    decode_s: float
    total_s: float
    gaps: Gaps | None
    others_prompts_s: float
    guessed_tokens: int
    guessed_right_tokens: int
    finish_reason: str | None
    error: str


class ShownSlot(Struct):
    """A slot: the tokens it holds and the request it serves; null if they are another tenant's."""

    id: int
    busy: bool
    tokens: int | None
    request: ShownRequest | None


class Waiting(Struct):
    """The queue of a tenant; requests: the oldest 20."""

    tenant: str
    count: int
    oldest_s: float
    requests: list[ShownRequest]


class Step(Struct):
    """One step: rows evaluated, tokens generated, and milliseconds by part."""

    number: int
    prompt_rows: int
    decode_rows: int
    tokens: int
    decode_ms: float
    sample_ms: float
    publish_ms: float
    other_ms: float


class Timeline(Struct):
    """Sums over each of the last 60 whole seconds, the oldest first; null where not known."""

    tokens: list[int | None]
    prompt_tokens: list[int | None]
    steps: list[int | None]


class ShownEngine(Struct):
    """The engine; counters since the start.

    busy: share of the last second that was spent in steps. limit: what bounds the speed now:
    "idle", "machine", "programs" (others on this machine) or "clients".
    """

    slots_busy: int
    slots_total: int
    queue_depth: int
    queue_limit: int
    kv_tokens: int
    kv_cells: int
    cache_ram_bytes: int
    cache_ram_limit: int
    cache_disk_bytes: int
    cache_disk_limit: int
    cache_disk_entries: int
    prompt_tokens: int
    cached_tokens: int
    prefix_hits: int
    generated_tokens: int
    guessed_tokens: int
    guessed_right_tokens: int
    preemptions: int
    pauses: int
    threads: int
    threads_limit: int
    cores: int
    cores_left: float | None
    busy: float
    limit: Literal["idle", "machine", "programs", "clients"]


class ShownServer(Struct):
    """The HTTP server; requests since the start."""

    connections: int
    workers: int
    workers_busy: int
    queue_depth: int
    requests_total: int


class Moment(Struct):
    """One event: everything, or what one tenant may see.

    number: of the snapshot; numbers that are missing were skipped. at: seconds since the start.
    ended: requests that ended since the previous event, at first the last 100. all: whether it
    shows all tenants; otherwise engine, server, timeline and steps are null.
    """

    number: int
    at: float
    all: bool
    slots: list[ShownSlot]
    queue: list[Waiting]
    engine: ShownEngine | None
    server: ShownServer | None
    timeline: Timeline | None
    steps: list[Step] | None
    ended: list[ShownRequest] = []


def shown_request(
    record: RequestRecord,
    pace: Pace,
    state: Literal["waiting", "prefix", "prompt", "generating", "ended"],
    read_tokens: int,
) -> ShownRequest:
    """Describe one request."""
    usage, took = record.usage, record.timings
    gaps, reading = None, 0.0
    if took.ttft_s:
        first, end = record.submitted + took.ttft_s, record.submitted + took.total_s
        found, reading = pace.gaps(first, end), pace.reading(first, end)
        if found is not None:
            gaps = Gaps(round(found[0], _DIGITS), round(found[1], _DIGITS))
    made = usage.completion_tokens
    return ShownRequest(
        record.id,
        record.tenant,
        state,
        record.slot,
        usage.prompt_tokens,
        usage.cached_tokens,
        record.prefix,
        read_tokens,
        made,
        round((made - 1) / took.decode_s if made > 1 and took.decode_s > 0 else 0.0, _DIGITS),
        round(took.queued_s, _DIGITS),
        round(took.prefill_s, _DIGITS),
        round(took.decode_s, _DIGITS),
        round(took.total_s, _DIGITS),
        gaps,
        round(reading, _DIGITS),
        record.guessed,
        record.guessed_right,
        record.finish_reason,
        record.error[:200],
    )


def ended_request(record: RequestRecord, pace: Pace) -> ShownRequest:
    """Describe a request that has ended."""
    began = record.timings.ttft_s > 0
    return shown_request(record, pace, "ended", record.usage.prompt_tokens if began else 0)


class View:
    """The parts of the moments of one snapshot, for all tenants or one of them."""

    def __init__(self, service: Service, number: int, before: Steps | None = None) -> None:
        """before: the steps of the view before."""
        engine = service.known
        self._service = service
        self._number = number
        self._at = time.monotonic()
        newer = engine.history.steps_since(0 if before is None else before.next)
        self.steps = newer if before is None else before.then(newer)
        self.pace = Pace(self.steps)
        self._stats = engine.stats()
        self._slots = engine.slots() if engine.info().pooling is None else []
        self._waiting = engine.waiting(_LISTED)

    def moment(self, tenant: str | None) -> Moment:
        """Of all tenants (None) or one, without the requests that have ended."""
        whole = tenant is None
        server = self._service.server_stats
        return Moment(
            number=self._number,
            at=round(self._at - self._service.started, 3),
            all=whole,
            slots=[
                self._slot(slot)
                if whole or slot.tenant == tenant
                else ShownSlot(slot.id, slot.busy, None, None)
                for slot in self._slots
            ],
            queue=[
                self._queue(name, count, oldest)
                for name, count, oldest in self._waiting
                if whole or name == tenant
            ],
            engine=self._engine(self._stats) if whole else None,
            server=_server(server()) if whole and server is not None else None,
            timeline=_timeline(self.steps, self._at) if whole else None,
            steps=_last(self.steps) if whole else None,
        )

    def _slot(self, slot: SlotInfo) -> ShownSlot:
        request = None
        generation = slot.generation
        if slot.busy and generation is not None:
            state: Literal["prefix", "prompt", "generating"] = "generating"
            if not generation.usage.completion_tokens:
                state = "prefix" if slot.waits else "prompt"
            read = min(slot.tokens, generation.usage.prompt_tokens)
            record = record_of(generation, slot.tenant or "")
            request = shown_request(record, self.pace, state, read)
        return ShownSlot(slot.id, slot.busy, slot.tokens, request)

    def _queue(self, tenant: str, count: int, oldest: list[RequestRecord]) -> Waiting:
        requests = [shown_request(record, self.pace, "waiting", 0) for record in oldest]
        return Waiting(tenant, count, requests[0].total_s if requests else 0.0, requests)

    def _engine(self, stats: EngineStats) -> ShownEngine:
        busy = self.steps.busy(self._at - 1.0)
        if busy is None:  # a step that takes longer counts as soon as it began
            busy = float(stats.slots_busy > 0)
        left = stats.cores_left
        return ShownEngine(
            stats.slots_busy,
            stats.slots_total,
            stats.queue_depth,
            stats.queue_limit,
            stats.kv_tokens,
            stats.kv_cells,
            stats.cache_ram_bytes,
            stats.cache_ram_limit,
            stats.cache_disk_bytes,
            stats.cache_disk_limit,
            stats.cache_disk_entries,
            stats.prompt_tokens,
            stats.cached_tokens,
            stats.prefix_hits,
            stats.completion_tokens,
            stats.guessed_tokens,
            stats.guessed_right,
            stats.preemptions,
            stats.pauses,
            stats.threads,
            stats.threads_limit,
            stats.cores,
            None if math.isnan(left) else round(left, 2),
            round(busy, 3),
            _limit(stats, busy),
        )


def _limit(stats: EngineStats, busy: float) -> Literal["idle", "machine", "programs", "clients"]:
    if not stats.slots_busy and not stats.queue_depth:
        return "idle"
    if stats.cores_left < min(stats.threads_limit, stats.cores - _OTHERS):
        return "programs"
    return "machine" if busy >= _BUSY else "clients"


def _timeline(steps: Steps, now: float) -> Timeline:
    return Timeline(*steps.by_second(math.floor(now), SECONDS))


def _last(steps: Steps) -> list[Step]:
    return [
        Step(number, *counts, *(round(1000 * part, 3) for part in parts))
        for number, counts, parts in steps.last(_LAST_STEPS)
    ]


def _server(stats: ServerStats) -> ShownServer:
    return ShownServer(
        stats.connections_open,
        stats.workers,
        stats.workers_busy,
        stats.queue_depth,
        stats.requests_total,
    )
