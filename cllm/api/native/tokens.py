"""``/encode`` and ``/decode``: text to tokens and back."""

from __future__ import annotations

from cllm.api.envelopes import success
from cllm.api.native.schemas import DECODE, ENCODE
from cllm.api.service import Service
from cllm.engine import InvalidRequest
from cllm.http import HttpRequest, HttpResponse


def encode(service: Service, request: HttpRequest) -> HttpResponse:
    """POST ``/encode``; raises HttpError 400 and 503."""
    asked = ENCODE.decode(request.body)
    tokens = service.engine.tokenize(
        asked.text,
        add_special=asked.add_special is not False,
        parse_special=bool(asked.parse_special),
    )
    return success({"tokens": tokens, "length": len(tokens)})


def decode(service: Service, request: HttpRequest) -> HttpResponse:
    """POST ``/decode``; raises HttpError 400 and 503, InvalidRequest."""
    asked = DECODE.decode(request.body)
    engine = service.engine
    size = engine.info().vocab_size
    tokens = asked.tokens
    if tokens and not (min(tokens) >= 0 and max(tokens) < size):
        index = next(i for i, token in enumerate(tokens) if not 0 <= token < size)
        raise InvalidRequest(
            f"tokens[{index}]", tokens[index], f"a token of the vocabulary, from 0 to {size - 1}"
        )
    return success({"text": engine.detokenize(tokens, special=asked.special is not False)})
