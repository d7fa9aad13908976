"""An HTTP/1.1 server: parser, routing, responses, streams, threads. Standard library only."""

from __future__ import annotations

from cllm.http.body_stream import BodyStream, IterableStream
from cllm.http.errors import HttpError, HttpServerError, ProtocolError, StreamClosed
from cllm.http.limits import Limits, ServerConfig
from cllm.http.parser import ParserState, RequestParser
from cllm.http.request import Headers, HttpRequest
from cllm.http.response import DeferredResponse, HttpResponse

__all__ = [
    "BodyStream",
    "DeferredResponse",
    "Headers",
    "HttpError",
    "HttpRequest",
    "HttpResponse",
    "HttpServerError",
    "IterableStream",
    "Limits",
    "ParserState",
    "ProtocolError",
    "RequestParser",
    "ServerConfig",
    "StreamClosed",
]
