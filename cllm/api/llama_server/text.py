"""``/tokenize``, ``/detokenize`` and ``/apply-template``."""

from __future__ import annotations

from typing import Any

from cllm.api.chat.prompt import prompt_text
from cllm.api.envelopes import JSON, encode
from cllm.api.llama_server.prompts import mixed_tokens, spelled
from cllm.api.llama_server.schemas import APPLY_TEMPLATE, DETOKENIZE, TOKENIZE
from cllm.api.openai.chat import conversation_of
from cllm.api.service import Service
from cllm.http import HttpRequest, HttpResponse


class Text:
    """The endpoints; each raises HttpError 400 and 503, InvalidRequest."""

    __slots__ = ("_service",)

    def __init__(self, service: Service) -> None:
        self._service = service

    def tokenize(self, request: HttpRequest) -> HttpResponse:
        """POST ``/tokenize``. A piece that is not UTF-8 is a list of its bytes."""
        asked, engine = TOKENIZE.decode(request.body), self._service.engine
        tokens = mixed_tokens(
            engine, asked.content, bool(asked.add_special), asked.parse_special is not False
        )
        if not asked.with_pieces:
            return _json({"tokens": tokens})
        pieces = zip(tokens, engine.pieces(tokens), strict=True)
        return _json({"tokens": [{"id": token, "piece": _text(piece)} for token, piece in pieces]})

    def detokenize(self, request: HttpRequest) -> HttpResponse:
        """POST ``/detokenize``; control tokens become text."""
        tokens = DETOKENIZE.decode(request.body).tokens
        return _json({"content": spelled(self._service.engine, tokens)})

    def apply_template(self, request: HttpRequest) -> HttpResponse:
        """POST ``/apply-template``: the prompt of a chat completion."""
        asked = APPLY_TEMPLATE.decode(request.body)
        prompt = prompt_text(self._service, conversation_of(asked))
        return _json({"prompt": prompt})


def _text(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


def _json(value: Any) -> HttpResponse:
    return HttpResponse.bytes(encode(value), JSON)
