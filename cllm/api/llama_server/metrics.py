"""llama-server's names in ``/metrics``, in addition to ours.

Source: llama.cpp, tools/server/server-task.cpp, to_metrics. As there, the two rates are those of
the requests that ended since the previous scrape, and 0 without any.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cllm.api.service import Service

if TYPE_CHECKING:
    from cllm.engine.request import Request


class LlamaFigures(Collector):
    """Counts the time of generations as they end; a scrape reads the other values."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = threading.Lock()
        self._reading_s = self._making_s = 0.0
        self._read = self._made = 0  # tokens that took this time
        self._scraped = (0.0, 0.0, 0, 0)  # the four at the previous scrape

    def finished(self, request: Request) -> None:
        """Count an answered request with at least one token. Any thread."""
        timings, usage = request.timings, request.usage
        with self._lock:
            self._reading_s += timings.prefill_s
            self._making_s += timings.decode_s
            self._read += usage.prompt_tokens - usage.cached_tokens
            self._made += usage.completion_tokens - 1

    def describe(self) -> list[Metric]:
        # Prevents a collection at registration, before the engine exists.
        return []

    def collect(self) -> Iterator[Metric]:
        stats = self._service.known.stats()
        with self._lock:
            reading_s, making_s = self._reading_s, self._making_s
            read, made = self._read, self._made
            old_reading_s, old_making_s, old_read, old_made = self._scraped
            self._scraped = (reading_s, making_s, read, made)
        decodes = max(stats.steps, 1)
        counters = (
            ("prompt_tokens", "Prompt tokens evaluated", stats.prompt_tokens - stats.cached_tokens),
            ("prompt_tokens_cached", "Prompt tokens reused", stats.cached_tokens),
            ("prompt_seconds", "Time reading prompts", reading_s),
            ("tokens_predicted", "Tokens generated", stats.completion_tokens),
            ("tokens_predicted_seconds", "Time generating tokens", making_s),
            ("n_decode", "Calls of llama_decode", stats.steps),
            ("spec_decode_num_draft_tokens", "Draft tokens generated", stats.guessed_tokens),
            ("spec_decode_num_accepted_tokens", "Draft tokens accepted", stats.guessed_right),
            ("n_tokens_max", "Tokens of the longest sequence so far", stats.longest),
            ("spec_decode_num_drafts", "Verifications of drafts", stats.guesses),
        )
        gauges = (
            (
                "prompt_tokens_seconds",
                "Prompt tokens/s",
                _rate(read - old_read, reading_s - old_reading_s),
            ),
            (
                "predicted_tokens_seconds",
                "Generated tokens/s",
                _rate(made - old_made, making_s - old_making_s),
            ),
            ("requests_processing", "Requests that run", stats.slots_busy),
            ("requests_deferred", "Requests that wait", stats.queue_depth),
            (
                "n_busy_slots_per_decode",
                "Sequences in a call of llama_decode",
                stats.decoded_sequences / decodes,
            ),
        )
        for name, text, value in counters:
            yield CounterMetricFamily(f"llamacpp:{name}", text, value)
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"llamacpp:{name}", text, value)


def _rate(tokens: float, seconds: float) -> float:
    return tokens / seconds if tokens and seconds else 0.0
