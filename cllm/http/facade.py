"""HttpServer: one server of the process behind static methods."""

from __future__ import annotations

import threading
from typing import ClassVar

from cllm.http.certificates import TlsConfig
from cllm.http.errors import HttpServerError
from cllm.http.handler import HttpHandler
from cllm.http.limits import ServerConfig
from cllm.http.server import Server


class HttpServer:
    """One server for the process, without an object to pass around."""

    _lock: ClassVar[threading.Lock] = threading.Lock()
    _server: ClassVar[Server | None] = None

    @classmethod
    def init(
        cls,
        host: str,
        port: int,
        handler: HttpHandler,
        config: ServerConfig | None = None,
        tls: TlsConfig | None = None,
    ) -> None:
        """Configure it; tls: serve HTTPS.

        Raises HttpServerError if it is configured and stop() did not follow.
        """
        with cls._lock:
            if cls._server is not None:
                raise HttpServerError("HttpServer.init was already called; call stop() first")
            cls._server = Server(handler, host, port, config, tls)

    @classmethod
    def start(cls) -> None:
        """Listen and serve; returns once clients can connect. Raises as `Server.start`."""
        cls.instance().start()

    @classmethod
    def stop(cls, grace: float | None = None) -> None:
        """Stop as `Server.stop`, and forget the configuration: `init` may be called again."""
        with cls._lock:
            server = cls._server
        if server is None:
            return
        server.stop(grace)
        with cls._lock:
            if cls._server is server:
                cls._server = None

    @classmethod
    def isRunning(cls) -> bool:  # noqa: N802 - the C++ interface's name
        server = cls._server
        return server is not None and server.is_running

    @classmethod
    def port(cls) -> int:
        """The port in use. Raises HttpServerError before `init`."""
        return cls.instance().port

    @classmethod
    def instance(cls) -> Server:
        """The server itself. Raises HttpServerError before `init`."""
        server = cls._server
        if server is None:
            raise HttpServerError("call HttpServer.init(host, port, handler) first")
        return server
