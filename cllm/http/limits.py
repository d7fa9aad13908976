"""Limits and deadlines of the server, with their checks: sizes in bytes, times in seconds."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cllm.http.forwarded import TrustedProxies

KIB = 1024
MIB = 1024 * KIB

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_ORIGIN = re.compile(r"\*|null|localhost|[a-z][a-z0-9+.\-]*://[^/\s,?#@]+", re.IGNORECASE)


def _at_least(owner: object, name: str, least: float) -> None:
    value = getattr(owner, name)
    wanted = (int,) if isinstance(least, int) else (int, float)
    # `not >=` and not `<`, so that NaN is refused too.
    if isinstance(value, bool) or not isinstance(value, wanted) or not value >= least:
        kind = "a whole number" if isinstance(least, int) else "a number"
        raise ValueError(
            f"{type(owner).__name__}.{name} is {value!r}; give {kind} that is {least:g} or more"
        )


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum sizes of a request, in bytes unless noted."""

    request_line: int = 8 * KIB  # without its CRLF; past it 414
    head: int = 32 * KIB  # request line, fields and the empty line; past it 431
    fields: int = 100  # field lines; past it 431
    body: int = 16 * MIB  # decoded content; past it 413
    chunk_line: int = 256  # one chunk-size line with its extensions; past it 400
    trailers: int = 8 * KIB  # trailer fields and the empty line after them; past it 431

    def __post_init__(self) -> None:
        # The shortest request line is "GET / HTTP/1.1".
        for name, least in (
            ("request_line", 14), ("head", 18), ("fields", 1),
            ("body", 0), ("chunk_line", 16), ("trailers", 0),
        ):  # fmt: skip
            _at_least(self, name, least)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything about a server except its address; times in seconds, sizes in bytes."""

    workers: int = 16  # threads that run connections and handlers
    backlog: int = 1024  # listen(2)
    max_connections: int = 10_000  # at the limit an idle one is closed for a new one
    # Per client; 0: no limit. None: half of `max_connections`, and no limit for loopback.
    max_connections_per_client: int | None = None
    limits: Limits = field(default_factory=Limits)
    body_memory: int = 256 * MIB  # of all incomplete bodies; past it 503
    # To the first byte of a connection, and from the first byte of a head to its end
    head_timeout: float = 10.0
    body_timeout: float = 30.0  # time that a body may fall behind `min_rate`
    keep_alive_timeout: float = 75.0  # between two requests
    write_timeout: float = 30.0  # time that a reader may fall behind `min_rate`
    min_rate: int = 500  # bytes per second of a body, and of a pending response; 0: one byte
    linger_timeout: float = 2.0  # reading after an error response, to avoid a reset
    sse_ping: float = 10.0  # a quiet event stream sends a ping this often; 0: never
    grace: float = 30.0  # for requests in flight when the server stops
    high_water: int = 1 * MIB  # pending bytes of a stream whose reader is slow
    # Allowed origins, ("*",) for all, ("localhost",) for this machine's pages, () for no CORS.
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False  # whether pages may send requests in credentials mode
    trusted_proxies: tuple[str, ...] = ()  # networks whose X-Forwarded-For and Forwarded count
    proxy_protocol: bool = False  # every connection begins with a PROXY header, version 2
    access_log: bool = True
    server_name: str = "cLLM"  # the Server field; "" omits it

    @property
    def least_sent(self) -> float:
        """Bytes that a reader takes in `write_timeout` at least."""
        return max(self.min_rate * self.write_timeout, 1)

    def __post_init__(self) -> None:
        for name in ("workers", "backlog", "max_connections", "high_water"):
            _at_least(self, name, 1)
        for name in ("body_memory", "min_rate"):
            _at_least(self, name, 0)
        if self.max_connections_per_client is not None:
            _at_least(self, "max_connections_per_client", 0)
        for name in ("head_timeout", "body_timeout", "keep_alive_timeout", "write_timeout"):
            _at_least(self, name, 0.001)
        for name in ("linger_timeout", "sse_ping", "grace"):
            _at_least(self, name, 0.0)
        if not isinstance(self.limits, Limits):
            raise ValueError(f"ServerConfig.limits is {self.limits!r}; give a Limits object")
        if self.body_memory < self.limits.body:
            raise ValueError(
                f"ServerConfig.body_memory is {self.body_memory}, which is less than one body of "
                f"max_body={self.limits.body}; give at least that"
            )
        if not isinstance(self.cors_origins, tuple):
            raise ValueError(f"ServerConfig.cors_origins is {self.cors_origins!r}; give a tuple")
        for origin in self.cors_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"ServerConfig.cors_origins has {origin!r}; "
                    'give "*", "localhost" or scheme://host[:port] without a path'
                )
        try:
            TrustedProxies(self.trusted_proxies)
        except ValueError as error:
            raise ValueError(f"ServerConfig.trusted_proxies: {error}") from None
        if self.proxy_protocol and not self.trusted_proxies:
            raise ValueError(
                "ServerConfig.proxy_protocol needs trusted_proxies: the addresses of the proxies"
            )
        if self.server_name and not _TOKEN.fullmatch(self.server_name):
            raise ValueError(
                f"ServerConfig.server_name is {self.server_name!r}; "
                'give a product token such as "cLLM", or ""'
            )
