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
        content, add_special = asked.content, asked.add_special
        if asked.prompt is not None:
            content, add_special = asked.prompt, asked.add_special_tokens is not False
        tokens = mixed_tokens(engine, content, bool(add_special), asked.parse_special is not False)
        if not asked.with_pieces:
            return _json({"tokens": tokens})
        pieces = zip(tokens, engine.pieces(tokens), strict=True)
        return _json({"tokens": [{"id": token, "piece": _text(piece)} for token, piece in pieces]})

    def detokenize(self, request: HttpRequest) -> HttpResponse:
        """POST ``/detokenize``; control tokens become text. `prompt` is vLLM's name of it."""
        text = spelled(self._service.engine, DETOKENIZE.decode(request.body).tokens)
        return _json({"content": text, "prompt": text})

    def tokenizer_info(self, request: HttpRequest) -> HttpResponse:
        """GET ``/tokenizer_info``, in the names of a model's `tokenizer_config.json`."""
        engine, info = self._service.engine, self._service.engine.info()
        added = engine.tokenize("", add_special=True)
        return _json(
            {
                "tokenizer_class": str(info.metadata.get("tokenizer.ggml.model", "")),
                "bos_token": info.bos_text or None,
                "eos_token": info.eos_text or None,
                "pad_token": self._token("padding"),
                "unk_token": self._token("unknown"),
                "add_bos_token": info.bos_token is not None and added[:1] == [info.bos_token],
                "add_eos_token": info.eos_token is not None and added[-1:] == [info.eos_token],
                "chat_template": self._service.settings.chat_template or info.chat_template,
                "model_max_length": info.context.ctx_size,
            }
        )

    def _token(self, role: str) -> str | None:
        """The text of the token that the model's file names for a purpose."""
        engine = self._service.engine
        token = engine.info().metadata.get(f"tokenizer.ggml.{role}_token_id")
        if not isinstance(token, int) or not 0 <= token < engine.info().vocab_size:
            return None
        return engine.piece(token).decode("utf-8", "replace")

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
