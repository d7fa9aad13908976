"""``/v1/completions``: prompts in, their continuations out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from cllm.api.choices import check_choices
from cllm.api.constraint_fields import asked_constraint, checked
from cllm.api.envelopes import encode
from cllm.api.filling import filling
from cllm.api.llama_fields import most_tokens, place_of
from cllm.api.openai.completion_choices import choice_of, whole
from cllm.api.openai.errors import refused
from cllm.api.openai.logprobs import TextLogprobs
from cllm.api.openai.reply import Chunks, Reply, failed
from cllm.api.openai.schemas import COMPLETION, CompletionRequest
from cllm.api.service import Service
from cllm.api.streamed import made_late
from cllm.api.submission import Submission, Wanted
from cllm.api.telemetry import timings
from cllm.api.tenants import tenant_of
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpRequest, HttpResponse
from cllm.http.sse import PING

if TYPE_CHECKING:
    from cllm.engine import Engine, Generation

_KIND = "text_completion"
_MOST_TOKENS = 16  # OpenAI's default


class Completions:
    """The endpoint."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def endpoint(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/completions``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        asked = COMPLETION.decode(request.body)
        engine = self._service.engine
        prompts = self._prompts(asked)
        echoes = [engine.detokenize(tokens) if asked.echo else "" for tokens in prompts]
        if asked.suffix:
            prompts = [filling(engine, tokens, asked.suffix) for tokens in prompts]
        for tokens in prompts:
            engine.check_prompt(tokens)  # before any is queued
        count = asked.made
        name = "best_of" if count > (asked.n or 1) else "n"
        check_choices(self._service, request, len(prompts), count, name)
        constraint = checked(engine, asked_constraint(asked), tenant_of(request))
        defaults = self._service.settings.sampling
        most = most_tokens(defaults, asked.n_predict, asked.max_tokens, otherwise=_MOST_TOKENS)
        slot, fresh = place_of(asked, engine.info().context.n_slots)
        logprobs = asked.shown_logprobs
        if logprobs is None and count > (asked.n or 1):
            logprobs = 0  # the best are found by them
        wanted = [
            Wanted(
                tokens,
                asked.sampling(
                    self._service,
                    choice,
                    max_tokens=most,
                    logprobs=logprobs,
                    prompt_logprobs=asked.scored if asked.stream or not choice else None,
                    constraint=constraint,
                ),
                slot,
                fresh,
            )
            for tokens in prompts
            for choice in range(count)
        ]
        shown = [echo for echo in echoes for _ in range(count)]
        recorder = None if asked.shown_logprobs is None else engine
        reply = partial(Reply.of, self._service, "cmpl", count)

        def respond(generations: Sequence[Generation]) -> HttpResponse:
            make = partial(whole, reply(generations), echoes, asked)
            return make() if asked.scored is None else made_late(make)

        return self._submission.answer(
            request,
            asked,
            wanted,
            stream=asked.stream,
            frames=lambda generations: _Frames(reply(generations), shown, recorder, asked),
            respond=respond,
            refuse=refused,
        )

    def _prompts(self, asked: CompletionRequest) -> list[list[int]]:
        engine, prompt = self._service.engine, asked.prompt
        if isinstance(prompt, str):
            prompt = [prompt]
        if not prompt:
            raise InvalidRequest("prompt", prompt, "at least one prompt")
        if all(isinstance(token, int) for token in prompt):
            prompt = [[token for token in prompt if isinstance(token, int)]]
        found: list[list[int]] = []
        for number, each in enumerate(prompt):
            if isinstance(each, int) or not each:
                kinds = "non-empty text or a non-empty list of tokens, or only tokens"
                raise InvalidRequest(f"prompt[{number}]", each, kinds)
            found.append(engine.tokenize(each) if isinstance(each, str) else each)
        return found


class _Frames:
    """The chunks of a stream; each choice begins with its echo. See `cllm.api.stream.Frames`."""

    __slots__ = ("_chunks", "_echoes", "_logprobs", "_pieces", "_reply", "_timed", "_waiting")

    ping = PING

    def __init__(
        self, reply: Reply, echoes: Sequence[str], engine: Engine | None, asked: CompletionRequest
    ) -> None:
        self._timed = bool(asked.timings_per_token)
        self._reply = reply
        self._echoes = echoes
        self._chunks = chunks = Chunks(reply, _KIND, asked.streams_usage)
        self._logprobs: list[TextLogprobs] | None = None
        self._waiting: dict[int, str] = {}  # echoes that come with log-probabilities
        if engine is not None:
            count = asked.shown_logprobs or 0
            by_number = bool(asked.return_tokens_as_token_ids)
            self._logprobs = [TextLogprobs(engine, count, by_number) for _ in echoes]
            if asked.echo:
                self._waiting = dict(enumerate(echoes))
        self._pieces = [
            (
                chunks.head + b'{"index":%d,"text":' % index,
                b',"logprobs":null,"finish_reason":null}' + chunks.tail,
            )
            for index in range(len(echoes))
        ]

    def opening(self) -> bytes:
        return b"".join(
            self._chunks.chunk(choice_of(index, echo, None))
            for index, echo in enumerate(self._echoes)
            if echo and index not in self._waiting
        )

    def delta(self, index: int, text: str) -> bytes:
        generation = self._reply.generations[index]
        if not text:
            return self._chunks.progress(choice_of(index, "", None), generation, self._timed)
        if self._logprobs is not None or self._timed:
            more = {"timings": timings(generation)} if self._timed else {}
            echo, logprobs = self._echo(index), self._taken(index)
            return echo + self._chunks.chunk(choice_of(index, text, None, logprobs), **more)
        before, behind = self._pieces[index]
        return b"%b%b%b" % (before, encode(text), behind)

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        if error is not None:
            return failed(500, error)
        echo, logprobs = self._echo(index), self._taken(index)
        return echo + self._chunks.last(choice_of(index, "", generation.finish_reason, logprobs))

    def closing(self) -> bytes:
        return self._chunks.closing(self._reply.usage())

    def broken_off(self, reason: str) -> bytes:
        return failed(503, reason)

    def _echo(self, index: int) -> bytes:
        """The echo of a prompt with its log-probabilities, which are known when it was read."""
        echo = self._waiting.pop(index, None)
        if echo is None or self._logprobs is None:
            return b""
        records = self._reply.generations[index].take_prompt_tokens()
        logprobs = self._logprobs[index].of_prompt(records, echo)
        return self._chunks.chunk(choice_of(index, echo, None, logprobs))

    def _taken(self, index: int) -> dict[str, Any] | None:
        """Of all tokens since the last time, though some may belong to text that follows."""
        if self._logprobs is None:
            return None
        return self._logprobs[index].of(self._reply.generations[index].take_tokens())
