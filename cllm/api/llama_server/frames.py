"""The events of a streamed completion; see `cllm.api.stream.Frames`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cllm.api.envelopes import encode
from cllm.api.llama_server.errors import error_body
from cllm.api.llama_server.results import Job, Pairing, final, probabilities
from cllm.api.telemetry import progress_of, timings
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Generation


class CompletionFrames:
    """One event per piece of text, per piece of the prompt if requested, and for the end."""

    __slots__ = ("_generations", "_job", "_pairings")

    ping = PING

    def __init__(self, job: Job, generations: Sequence[Generation]) -> None:
        self._job = job
        self._generations = generations
        self._pairings = [Pairing(generation) for generation in generations]

    def opening(self) -> bytes:
        return b""

    def delta(self, index: int, text: str) -> bytes:
        job, generation, pairing = self._job, self._generations[index], self._pairings[index]
        progress = None if text else generation.take_progress()
        records = pairing.behind(text)
        event: dict[str, Any] = {
            "index": index,
            "content": text,
            "tokens": [record.token for record in records],
            "stop": False,
            "id_slot": generation.slot,
            "tokens_predicted": pairing.count,
            "tokens_evaluated": generation.usage.prompt_tokens,
        }
        if job.asked.timings_per_token:
            event["timings"] = timings(generation, progress)
        if progress is not None:
            event["prompt_progress"] = progress_of(generation, progress)
        if job.params[index].logprobs:
            event["completion_probabilities"] = probabilities(job, index, records)
        return b"data: %b\n\n" % encode(event)

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        if error is not None:
            return b"data: %b\n\n" % error_body(500, error)[0]
        return b"data: %b\n\n" % encode(final(self._job, index, generation))

    def closing(self) -> bytes:
        return b""

    def broken_off(self, reason: str) -> bytes:
        return b"data: %b\n\n" % error_body(503, reason)[0]
