"""Counters and gauges of the engine: its thread writes them, any thread may read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace


@dataclass(slots=True)
class EngineStats:
    """Counters since the engine was loaded and current gauges; times are in seconds.

    requests_finished: by finish reason. prompt_tokens counts those of admitted requests, of
    which cached_tokens needed no evaluation. recomputed_tokens were evaluated again after a
    preemption or a pause; pauses: sequences that left their slot to another tenant. decode_s is
    spent in llama_decode, draft_s in the draft model, sampling_s in choosing tokens, other_s in
    everything else of a step; together they are the time that steps took.
    prefix_hits: admissions that found at least one token of their prompt. saved_prefixes were put
    into host memory, restored_prefixes taken from there with restored_tokens of prompts,
    evicted_prefixes dropped for want of room; saved_checkpoints of recurrent states were put there,
    and sequences began at restored_checkpoints; cache_ram_bytes of cache_ram_limit are taken for
    them, memory that is kept for the next one included.
    disk_read_prefixes, disk_written_prefixes, disk_evicted_prefixes: the same for the cache on
    disk, and disk_dropped_prefixes that were not written because the disk was too slow or full.
    cache_disk_bytes of cache_disk_limit are taken by all files, of which cache_disk_entries are of
    use for this model.
    guesses: drafts that were evaluated, with guessed_tokens in all, of which guessed_right were
    accepted.
    decoded_sequences: sequences in all llama_decode calls together. longest: tokens of the longest
    sequence so far.
    constraints_compiled, constraints_refused: by the compiler; constraint_deaths: children that a
    constraint crashed, stalled or filled.
    kv_tokens: tokens in the cache, those of finished requests included, of kv_cells.
    threads: current compute threads, of threads_limit; thread_changes: how often they changed.
    cores_left: by other programs, of the cores that this process may use, in the second before the
    latest step; NaN if the system does not report it.
    """

    requests_submitted: int = 0
    requests_refused: int = 0
    requests_finished: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    prefix_hits: int = 0
    saved_prefixes: int = 0
    restored_prefixes: int = 0
    restored_tokens: int = 0
    evicted_prefixes: int = 0
    saved_checkpoints: int = 0
    restored_checkpoints: int = 0
    cache_ram_bytes: int = 0
    cache_ram_limit: int = 0
    disk_read_prefixes: int = 0
    disk_written_prefixes: int = 0
    disk_dropped_prefixes: int = 0
    disk_evicted_prefixes: int = 0
    cache_disk_bytes: int = 0
    cache_disk_entries: int = 0
    cache_disk_limit: int = 0
    preemptions: int = 0
    context_shifts: int = 0
    pauses: int = 0
    failed_decodes: int = 0
    guesses: int = 0
    guessed_tokens: int = 0
    guessed_right: int = 0
    decoded_sequences: int = 0
    longest: int = 0
    steps: int = 0
    decode_s: float = 0.0
    draft_s: float = 0.0
    sampling_s: float = 0.0
    other_s: float = 0.0
    queue_depth: int = 0
    queue_limit: int = 0
    slots_busy: int = 0
    slots_total: int = 0
    kv_tokens: int = 0
    kv_cells: int = 0
    threads: int = 0
    threads_limit: int = 0
    thread_changes: int = 0
    cores: int = 0
    cores_left: float = 0.0
    constraints_compiled: int = 0
    constraints_refused: int = 0
    constraint_deaths: int = 0
    healthy: bool = True

    def resting(self) -> EngineStats:
        """The same of an engine whose model is unloaded."""
        return replace(self, queue_depth=0, slots_busy=0, kv_tokens=0, cache_ram_bytes=0)

    def after(self, earlier: EngineStats) -> EngineStats:
        """Gauges of this engine, counters of this one and an earlier one together."""
        sums = {
            each.name: getattr(earlier, each.name) + getattr(self, each.name)
            for each in fields(self)
            if each.name not in _GAUGES
        }
        reasons = {**earlier.requests_finished, **self.requests_finished}
        finished = {
            reason: earlier.requests_finished.get(reason, 0) + self.requests_finished.get(reason, 0)
            for reason in reasons
        }
        longest = max(earlier.longest, self.longest)
        return replace(self, **sums, requests_finished=finished, longest=longest)


_GAUGES = frozenset(
    (
        *("queue_depth", "queue_limit", "slots_busy", "slots_total", "kv_tokens", "kv_cells"),
        *("cache_ram_bytes", "cache_ram_limit", "cache_disk_bytes", "cache_disk_entries"),
        *("cache_disk_limit", "threads", "threads_limit", "cores", "cores_left", "healthy"),
        *("longest", "requests_finished"),  # neither is a sum of numbers
    )
)
