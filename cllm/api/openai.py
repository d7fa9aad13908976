"""The OpenAI endpoints: models, completions and chat completions.

Source: the OpenAI API reference. Field names and their order in events are its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cllm.api.chat_template import TemplateError
from cllm.api.openai_schemas import (
    CHAT,
    COMPLETION,
    MOST_CHOICES,
    ChatRequest,
    CompletionRequest,
    Message,
    Sampled,
)
from cllm.api.responses import JSON, encode
from cllm.api.service import Service
from cllm.api.submission import Submission, Wanted
from cllm.engine import InvalidRequest
from cllm.http import DeferredResponse, HttpError, HttpRequest, HttpResponse

if TYPE_CHECKING:
    from cllm.engine import Generation

PREFIX = "/v1/"

# Status -> OpenAI's type and code of the error.
_KINDS = {
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    408: ("timeout_error", "timeout"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    503: ("service_unavailable_error", "unavailable"),
}
_FIELD = re.compile(r"([a-z_]+(?:[.\[][\w.\[\]]*)?): ")


def error_body(status: int, message: str) -> tuple[bytes, str]:
    """OpenAI's envelope; `param` is the field that the message begins with."""
    usual = "server_error" if status >= 500 else "invalid_request_error"
    kind, code = _KINDS.get(status, (usual, None))
    field = _FIELD.match(message) if status == 400 else None
    param = field[1] if field else None
    error = {"message": message, "type": kind, "param": param, "code": code}
    return encode({"error": error}), JSON


def _refused(error: HttpError) -> HttpResponse:
    body, content_type = error_body(error.status, error.message)
    return HttpResponse.bytes(body, content_type, error.status, error.headers)


@dataclass(frozen=True, slots=True)
class _Reply:
    """What every response to one request says of it."""

    id: str
    created: int  # seconds since 1970
    model: str
    choices: int  # of each prompt


class _Format(Protocol):
    """The two kinds of completion: how a choice is written, whole and in pieces."""

    object: str
    chunk_object: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice that opens a stream, if any."""

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        """A whole choice."""

    def piece(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and behind a delta's text, as JSON."""

    def end(self, index: int, reason: str) -> dict[str, Any]:
        """The choice that ends a stream."""


class OpenAI:
    """The endpoints of one service."""

    __slots__ = ("_service", "_submission")

    def __init__(self, service: Service, submission: Submission) -> None:
        self._service = service
        self._submission = submission

    def models(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/models``."""
        return HttpResponse.bytes(encode({"object": "list", "data": [self._model()]}), JSON)

    def model(self, request: HttpRequest) -> HttpResponse:
        """GET ``/v1/models/{id}``."""
        own = self._model()
        asked = request.path_params["id"]
        if asked != own["id"]:
            raise HttpError(404, f'the model "{asked[:80]}" is not served here; "{own["id"]}" is')
        return HttpResponse.bytes(encode(own), JSON)

    def completions(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/completions``. Raises HttpError 400 and 503, InvalidRequest, QueueFull."""
        asked = COMPLETION.decode(request.body)
        prompts = [self._checked(tokens) for tokens in self._prompts(asked)]
        echoes = self._echoes(prompts) if asked.echo else [""] * len(prompts)
        count = asked.n or 1
        if len(prompts) * count > MOST_CHOICES:
            most = f"at most {MOST_CHOICES} choices in all, prompts times n"
            raise InvalidRequest("n", count, most)
        most_tokens = 16 if asked.max_tokens is None else asked.max_tokens
        wanted = [
            Wanted(tokens, asked.sampling(most_tokens, choice))
            for tokens in prompts
            for choice in range(count)
        ]
        shown = [echo for echo in echoes for _ in range(count)]
        return self._answer(request, asked, wanted, _Text(shown), "cmpl")

    def chat(self, request: HttpRequest) -> HttpResponse | DeferredResponse:
        """POST ``/v1/chat/completions``; raises as `completions`."""
        asked = CHAT.decode(request.body)
        prompt = self._checked(self._chat_prompt(asked))
        most = asked.max_completion_tokens or asked.max_tokens
        wanted = [Wanted(prompt, asked.sampling(most, choice)) for choice in range(asked.n or 1)]
        return self._answer(request, asked, wanted, _Chat(), "chatcmpl")

    def _answer(
        self,
        request: HttpRequest,
        asked: Sampled,
        wanted: Sequence[Wanted],
        form: _Format,
        prefix: str,
    ) -> HttpResponse | DeferredResponse:
        created, model, choices = int(time.time()), self._model_id(), asked.n or 1

        def reply(generations: Sequence[Generation]) -> _Reply:
            return _Reply(f"{prefix}-{generations[0].id}", created, model, choices)

        def respond(generations: Sequence[Generation]) -> HttpResponse:
            return _whole(reply(generations), form, generations)

        if not asked.stream:
            return self._submission.whole(request, wanted, respond, _refused)
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        return self._submission.streamed(
            request,
            wanted,
            lambda generations: _Chunks(reply(generations), form, generations, usage),
        )

    def _prompts(self, asked: CompletionRequest) -> list[list[int]]:
        engine, prompt = self._service.engine, asked.prompt
        if isinstance(prompt, str):
            prompt = [prompt]
        if not prompt:
            raise InvalidRequest("prompt", prompt, "a prompt")
        if all(isinstance(token, int) for token in prompt):
            prompt = [[token for token in prompt if isinstance(token, int)]]
        found: list[list[int]] = []
        for number, each in enumerate(prompt):
            if isinstance(each, int) or not each:
                kinds = "text or a list of tokens that is not empty, or tokens throughout"
                raise InvalidRequest(f"prompt[{number}]", each, kinds)
            found.append(engine.tokenize(each) if isinstance(each, str) else each)
        return found

    def _checked(self, tokens: list[int]) -> list[int]:
        """Refuses what the engine would refuse, so that no part of a request is queued."""
        self._service.engine.check_prompt(tokens)
        return tokens

    def _echoes(self, prompts: Sequence[list[int]]) -> list[str]:
        return [self._service.engine.detokenize(tokens) for tokens in prompts]

    def _chat_prompt(self, asked: ChatRequest) -> list[int]:
        messages = [_plain(message) for message in asked.messages]
        continued = messages[-1]["role"] == "assistant"
        try:
            return self._service.chat_template.tokens(
                self._service.engine,
                messages,
                continued=continued,
                **(asked.chat_template_kwargs or {}),
            )
        except TemplateError as error:
            raise HttpError(400, f"messages: {error}") from None

    def _model(self) -> dict[str, Any]:
        info = self._service.engine.info()
        created = int(info.path.stat().st_mtime) if info.path.exists() else 0
        return {
            "id": self._model_id(),
            "object": "model",
            "created": created,
            "owned_by": "cllm",
            "meta": {
                "n_vocab": info.vocab_size,
                "n_ctx": info.context.ctx_size,
                "n_ctx_train": info.max_sequence_length,
                "n_embd": info.hidden_size,
                "n_params": info.parameters,
                "size": info.size_bytes,
            },
        }

    def _model_id(self) -> str:
        return self._service.engine.info().path.stem


def _plain(message: Message) -> dict[str, Any]:
    """The message as templates expect it: content as one text, no empty fields."""
    plain: dict[str, Any] = msgspec.to_builtins(message)
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    plain["content"] = content or ""
    if message.role == "developer":
        plain["role"] = "system"
    return plain


def _usage(generations: Sequence[Generation], choices: int) -> dict[str, Any]:
    """Counts; a prompt is counted once for all its choices."""
    read = sum(g.usage.prompt_tokens for g in generations[::choices])
    made = sum(g.usage.completion_tokens for g in generations)
    cached = sum(g.usage.cached_tokens for g in generations[::choices])
    return {
        "prompt_tokens": read,
        "completion_tokens": made,
        "total_tokens": read + made,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class _Text:
    """``/v1/completions``; each choice begins with its echo."""

    object = chunk_object = "text_completion"

    def __init__(self, echoes: Sequence[str]) -> None:
        self._echoes = echoes

    def opening(self, index: int) -> dict[str, Any] | None:
        echo = self._echoes[index]
        if not echo:
            return None
        return {"index": index, "text": echo, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        whole = self._echoes[index] + text
        return {"index": index, "text": whole, "logprobs": None, "finish_reason": reason}

    def piece(self, index: int) -> tuple[bytes, bytes]:
        return b'{"index":%d,"text":' % index, b',"logprobs":null,"finish_reason":null}'

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "text": "", "logprobs": None, "finish_reason": reason}


class _Chat:
    """``/v1/chat/completions``."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def piece(self, index: int) -> tuple[bytes, bytes]:
        before = b'{"index":%d,"delta":{"content":' % index
        return before, b'},"logprobs":null,"finish_reason":null}'

    def end(self, index: int, reason: str) -> dict[str, Any]:
        return {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


def _whole(reply: _Reply, form: _Format, generations: Sequence[Generation]) -> HttpResponse:
    choices = [
        form.choice(index, "".join(g.take()), g.finish_reason or "stop")
        for index, g in enumerate(generations)
    ]
    body = {
        "id": reply.id,
        "object": form.object,
        "created": reply.created,
        "model": reply.model,
        "choices": choices,
        "usage": _usage(generations, reply.choices),
    }
    return HttpResponse.bytes(encode(body), JSON)


class _Chunks:
    """The events of a streamed completion; see `cllm.api.stream.Frames`."""

    __slots__ = ("_choices", "_form", "_generations", "_head", "_pieces", "_tail", "_usage")

    def __init__(
        self, reply: _Reply, form: _Format, generations: Sequence[Generation], usage: bool
    ) -> None:
        head: dict[str, Any] = {"id": reply.id, "object": form.chunk_object}
        head |= {"created": reply.created, "model": reply.model}
        self._head = b"data: " + encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if usage else b"]}\n\n"
        self._choices = reply.choices
        self._form = form
        self._generations = generations
        self._pieces = [
            (self._head + before, behind + self._tail)
            for before, behind in map(form.piece, range(len(generations)))
        ]
        self._usage = usage

    def opening(self) -> bytes:
        choices = (self._form.opening(index) for index in range(len(self._generations)))
        return b"".join(self._event(choice) for choice in choices if choice is not None)

    def delta(self, index: int, text: str) -> bytes:
        before, behind = self._pieces[index]
        return b"%b%b%b" % (before, encode(text), behind)

    def end(self, index: int, generation: Generation, error: str | None) -> bytes:
        if error is not None:
            return b"data: " + error_body(500, error)[0] + b"\n\n"
        return self._event(self._form.end(index, generation.finish_reason or "stop"))

    def closing(self) -> bytes:
        done = b"data: [DONE]\n\n"
        if not self._usage:
            return done
        usage = encode(_usage(self._generations, self._choices))
        return self._head + b'],"usage":' + usage + b"}\n\n" + done

    def broken_off(self, reason: str) -> bytes:
        return b"data: " + error_body(503, reason)[0] + b"\n\n"

    def _event(self, choice: dict[str, Any]) -> bytes:
        return self._head + encode(choice) + self._tail
