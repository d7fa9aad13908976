"""One completion's answer, whole and in pieces, in llama-server's format."""

from __future__ import annotations

import codecs
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cllm.api.llama_server.schemas import CompletionRequest
from cllm.api.telemetry import scales_of, settings, timings

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation, SamplingParams, TokenRecord

_new_decoder = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class Job:
    """What the answers to one request have in common."""

    engine: Engine
    asked: CompletionRequest
    prompts: Sequence[str]  # of each generation, with control tokens as text
    params: Sequence[SamplingParams]
    model: str


def final(job: Job, index: int, generation: Generation, **more: Any) -> dict[str, Any]:
    """The whole answer, or the last event of a stream; more: fields that differ between the two."""
    usage, params = generation.usage, job.params[index]
    shifted = generation.discarded > 0
    length = usage.prompt_tokens + usage.completion_tokens - generation.discarded
    limited = generation.finish_reason == "length"
    stop = "limit" if limited else "word" if generation.stop_text else "eos"
    reached = params.max_tokens is not None and usage.completion_tokens >= params.max_tokens
    asked, info = job.asked, job.engine.info()
    given = {
        "stream": bool(asked.stream),
        "grammar": asked.grammar or "",
        "timings_per_token": bool(asked.timings_per_token),
        "lora": scales_of(generation.adapters),
    }
    answer = {
        "index": index,
        "content": "",
        "tokens": [],
        "id_slot": generation.slot,
        "stop": True,
        "model": job.model,
        "tokens_predicted": usage.completion_tokens,
        "tokens_evaluated": usage.prompt_tokens,
        "generation_settings": settings(params, job.engine.eog_tokens(), **given),
        "prompt": job.prompts[index],
        "has_new_line": generation.has_newline,
        "truncated": shifted or (limited and not reached and length >= info.context.ctx_size),
        "stop_type": stop,
        "stopping_word": generation.stop_text,
        "tokens_cached": length - 1,  # all but the last are in the cache
        "timings": timings(generation),
        **more,
    }
    fields = job.asked.response_fields
    return _picked(answer, fields) if fields else answer


def whole(job: Job, index: int, generation: Generation) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    text, records = "".join(generation.take()), generation.take_tokens()
    more: dict[str, Any] = {"content": text}
    if job.asked.return_tokens:
        more["tokens"] = [record.token for record in records]
    if job.params[index].logprobs:
        more["completion_probabilities"] = probabilities(job, index, records)
    return final(job, index, generation, **more)


def probabilities(job: Job, index: int, records: Sequence[TokenRecord]) -> list[dict[str, Any]]:
    """`completion_probabilities`: each token with its alternatives.

    Log-probabilities of the model, or the probabilities that the samplers left.
    """
    sampled, pieces = job.params[index].sampled_logprobs, job.engine.pieces

    def shown(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
        text = piece.decode("utf-8", "ignore")
        chance = {"prob": math.exp(logprob)} if sampled else {"logprob": logprob}
        return {"id": token, "token": text, "bytes": list(piece), **chance}

    def alternatives(top: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
        spelled = pieces([token for token, _ in top])
        return [shown(token, piece, p) for (token, p), piece in zip(top, spelled, strict=True)]

    name = "top_probs" if sampled else "top_logprobs"
    return [
        {**shown(record.token, record.piece, record.logprob), name: alternatives(record.top)}
        for record in records
    ]


def _picked(answer: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The named fields; a slash selects a field of an object. Missing ones are omitted."""
    picked = {}
    for name in fields:
        value: Any = answer
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            picked[name] = value
    return picked


class Pairing:
    """The tokens of a piece of text, which may be several."""

    __slots__ = ("_decode", "_generation", "_records", "_told", "_written", "count")

    def __init__(self, generation: Generation) -> None:
        self._decode = _new_decoder(errors="replace").decode
        self._generation = generation
        self._records: deque[TokenRecord] = deque()
        self._told = 0  # characters of the text so far
        self._written = 0  # characters of the tokens returned
        self.count = 0  # tokens returned

    def behind(self, text: str) -> list[TokenRecord]:
        """The tokens up to the one that completes this piece."""
        self._records.extend(self._generation.take_tokens())
        self._told += len(text)
        given = []
        while self._records and self._written < self._told:
            record = self._records.popleft()
            self._written += len(self._decode(record.piece))
            given.append(record)
        self.count += len(given)
        return given
