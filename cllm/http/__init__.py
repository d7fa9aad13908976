"""A server of HTTP/1.1 and HTTP/2: routing, responses, streams, threads. Standard library only."""

from __future__ import annotations

from cllm.http.body_stream import BodyStream, IterableStream
from cllm.http.certificates import TlsConfig
from cllm.http.cors import cors
from cllm.http.deferred import DeferredResponse
from cllm.http.errors import HttpError, HttpServerError, ProtocolError, StreamClosed
from cllm.http.facade import HttpServer
from cllm.http.handler import HttpHandler, Route
from cllm.http.limits import Limits, ServerConfig
from cllm.http.parser import ParserState, RequestParser
from cllm.http.request import Headers, HttpRequest
from cllm.http.response import HttpResponse
from cllm.http.server import Server
from cllm.http.sse import EventStream, IterableEventStream
from cllm.http.stats import ServerStats

__all__ = [
    "BodyStream",
    "DeferredResponse",
    "EventStream",
    "Headers",
    "HttpError",
    "HttpHandler",
    "HttpRequest",
    "HttpResponse",
    "HttpServer",
    "HttpServerError",
    "IterableEventStream",
    "IterableStream",
    "Limits",
    "ParserState",
    "ProtocolError",
    "RequestParser",
    "Route",
    "Server",
    "ServerConfig",
    "ServerStats",
    "StreamClosed",
    "TlsConfig",
    "cors",
]
