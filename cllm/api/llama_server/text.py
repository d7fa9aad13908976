"""``/tokenize``, ``/detokenize`` and ``/apply-template``."""

from __future__ import annotations

from typing import Any

from cllm.api.chat_template import TemplateError
from cllm.api.llama_server.prompts import mixed_tokens, spelled
from cllm.api.llama_server.schemas import APPLY_TEMPLATE, DETOKENIZE, TOKENIZE
from cllm.api.responses import JSON, encode
from cllm.api.service import Service
from cllm.http import HttpError, HttpRequest, HttpResponse


class Text:
    """The endpoints; each raises HttpError 400 and 503, InvalidRequest."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def tokenize(self, request: HttpRequest) -> HttpResponse:
        """POST ``/tokenize``. A piece that is not UTF-8 is a list of its bytes."""
        asked, engine = TOKENIZE.decode(request.body), self._service.engine
        tokens = mixed_tokens(engine, asked.content, asked.add_special, asked.parse_special)
        if not asked.with_pieces:
            return _json({"tokens": tokens})
        pieces = zip(tokens, engine.pieces(tokens), strict=True)
        return _json({"tokens": [{"id": token, "piece": _text(piece)} for token, piece in pieces]})

    def detokenize(self, request: HttpRequest) -> HttpResponse:
        """POST ``/detokenize``; control tokens are spelled out."""
        tokens = DETOKENIZE.decode(request.body).tokens
        return _json({"content": spelled(self._service.engine, tokens)})

    def apply_template(self, request: HttpRequest) -> HttpResponse:
        """POST ``/apply-template``: what a chat completion would read."""
        asked = APPLY_TEMPLATE.decode(request.body)
        variables = dict(asked.chat_template_kwargs or {})
        for name in ("tools", "reasoning_effort", "add_generation_prompt"):
            if (value := getattr(asked, name)) is not None:
                variables[name] = value
        messages = [_flat(message) for message in asked.messages]
        continued = messages[-1].get("role") == "assistant" and "tool_calls" not in messages[-1]
        try:
            prompt = self._service.chat_template.render(messages, variables, continued=continued)
        except TemplateError as error:
            raise HttpError(400, f"messages: {error}") from None
        return _json({"prompt": prompt})


def _flat(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its content as one text. Raises HttpError 400 for anything but text."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise HttpError(400, "messages: content holds a part that is not text")
        return {**message, "content": "".join(part for part in parts if part)}
    return message


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _json(value: Any) -> HttpResponse:
    return HttpResponse.bytes(encode(value), JSON)
