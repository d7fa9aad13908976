"""One completion's answer, whole and in pieces, in llama-server's format."""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cllm.api.llama_server.sampling import most_tokens, settings
from cllm.api.llama_server.schemas import CompletionRequest

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

    @property
    def silent(self) -> bool:
        """Whether to evaluate the prompt only and generate nothing."""
        return most_tokens(self.asked) == 0


def timings(generation: Generation) -> dict[str, Any]:
    """Counts and milliseconds; the first token belongs to the prompt's time."""
    usage, took = generation.usage, generation.timings
    read, made = usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
    reading_ms, making_ms = (took.prefill_s * 1000, took.decode_s * 1000) if made else (0.0, 0.0)
    drafts = {"draft_n": generation.guessed, "draft_n_accepted": generation.guessed_right}
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": reading_ms,
        "prompt_per_token_ms": reading_ms / read if read else 0.0,
        "prompt_per_second": read / reading_ms * 1000 if reading_ms else 0.0,
        "predicted_n": made,
        "predicted_ms": making_ms,
        "predicted_per_token_ms": making_ms / (made - 1) if made > 1 else 0.0,
        "predicted_per_second": (made - 1) / making_ms * 1000 if making_ms else 0.0,
        **(drafts if generation.guessed else {}),
    }


def final(job: Job, index: int, generation: Generation, **more: Any) -> dict[str, Any]:
    """The whole answer, or the last event of a stream; more: fields that differ between the two."""
    usage, params = generation.usage, job.params[index]
    made = 0 if job.silent else usage.completion_tokens
    length = usage.prompt_tokens + usage.completion_tokens
    limited = generation.finish_reason == "length"
    stop = "limit" if limited else "word" if generation.stop_text else "eos"
    reached = params.max_tokens is not None and usage.completion_tokens >= params.max_tokens
    info = job.engine.info()
    answer = {
        "index": index,
        "content": "",
        "tokens": [],
        "id_slot": generation.slot,
        "stop": True,
        "model": info.path.stem,
        "tokens_predicted": made,
        "tokens_evaluated": usage.prompt_tokens,
        "generation_settings": settings(params, job.asked),
        "prompt": job.prompts[index],
        "has_new_line": generation.has_newline and not job.silent,
        "truncated": limited and not reached and length >= info.context.ctx_size,
        "stop_type": stop,
        "stopping_word": generation.stop_text,
        "tokens_cached": length - 1,  # all but the last are in the cache
        "timings": timings(generation),
        **more,
    }
    fields = job.asked.response_fields
    return answer if fields is None else _picked(answer, fields)


def whole(job: Job, index: int, generation: Generation) -> dict[str, Any]:
    """The answer to a request that is not streamed."""
    text, records = "".join(generation.take()), generation.take_tokens()
    more: dict[str, Any] = {}
    if not job.silent:
        more["content"] = text
        if job.asked.return_tokens:
            more["tokens"] = [record.token for record in records]
        if job.params[index].logprobs:
            more["completion_probabilities"] = probabilities(job.engine, records)
    return final(job, index, generation, **more)


def probabilities(engine: Engine, records: Sequence[TokenRecord]) -> list[dict[str, Any]]:
    """`completion_probabilities`: each token with its alternatives."""
    return [
        {
            **_told(record.token, record.piece, record.logprob),
            "top_logprobs": [
                _told(token, piece, logprob)
                for (token, logprob), piece in zip(
                    record.top, engine.pieces([token for token, _ in record.top]), strict=True
                )
            ],
        }
        for record in records
    ]


def _told(token: int, piece: bytes, logprob: float) -> dict[str, Any]:
    text = piece.decode("utf-8", "ignore")
    return {"id": token, "token": text, "bytes": list(piece), "logprob": logprob}


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
