"""Errors: responses that a handler chooses, malformed HTTP, misuse of the server."""

from __future__ import annotations

from collections.abc import Sequence


class HttpError(Exception):
    """Raised by a handler or a middleware to answer with this status, text and header fields."""

    def __init__(self, status: int, message: str, headers: Sequence[tuple[str, str]] = ()) -> None:
        if not 400 <= status <= 599:
            raise ValueError(f"an HttpError's status is 400 to 599, not {status}")
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = tuple(headers)

    def __reduce__(self) -> tuple[type[HttpError], tuple[object, ...]]:
        return type(self), (self.status, self.message, self.headers)


class ProtocolError(HttpError):
    """The bytes are not HTTP that this server supports; its response closes the connection.

    to_head: the method is HEAD, so the response has no body.
    """

    to_head = False


class HttpServerError(RuntimeError):
    """The server was used wrongly or cannot use its port; the text names the remedy."""


class StreamClosed(Exception):  # noqa: N818 - a condition for the producer, not a failure
    """A producer wrote to a stream that was cancelled or closed; it should stop producing."""
