"""One stream: source of its request, sink of its response, its windows (RFC 9113 section 5).

The states of section 5.1 that a server without push has, and the fields that stand for them:

    open                  neither
    half-closed (remote)  remote_ended: END_STREAM came, the request is complete
    closed                local_ended: END_STREAM or RST_STREAM is in the outbox, or RST_STREAM came

A response that ends before its request is followed by RST_STREAM (section 8.1), so that
half-closed (local) does not last.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from cllm.http import access_log
from cllm.http.connection import NEVER, Connection, Context
from cllm.http.exchange import Exchange, split
from cllm.http.head import Head
from cllm.http.http2 import frames
from cllm.http.http2.heads import response_block
from cllm.http.http2.outbox import Outbox
from cllm.http.http2.windows import STREAM_WINDOW, ReceiveWindow
from cllm.http.incoming import IncomingBody
from cllm.http.intake import Intake
from cllm.http.request import HttpRequest
from cllm.http.response import HttpResponse
from cllm.http.transport import Buffer

JOINED = 4 * 1024  # bytes; a body up to here is copied behind its head, as one buffer to write


class Stream:
    """All methods but `schedule` are for the connection's owner.

    head_read, body, announced (its length), receive_window: of a request with a body.
    incoming: a part of the body stays for a later turn. discards: the response is there already.
    request: it is complete, and not begun.
    window, pending, size (of it, in bytes): of the response. answered: its end follows `pending`.
    more: the exchange may have more to give. queued: it waits for its turn to send.
    write_by: time.monotonic(): its window is closed and has to open by then; sent: bytes since.
    leaves_at: what has left the outbox when this stream's end has.
    """

    __slots__ = (
        "_connection", "_outbox", "_ready", "_server", "announced", "answered", "body", "client",
        "discards", "exchange", "head_read", "id", "incoming", "leaves_at", "local_ended", "more",
        "pending", "queued", "receive_window", "remote_ended", "request", "sent", "size", "window",
        "write_by",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        connection: Connection,
        context: Context,
        outbox: Outbox,
        ready: deque[Stream],
    ) -> None:
        self.id = id
        self.client = connection.client
        self.exchange = Exchange(context)
        self._connection = connection
        self._outbox = outbox
        self._ready = ready
        self._server = context.config.server_name
        self.remote_ended = self.local_ended = False
        self.incoming: IncomingBody | None = None
        self.discards = False
        self.request: HttpRequest | None = None
        self.window = outbox.initial_window
        self.pending: Sequence[Buffer] = ()
        self.size = 0
        self.answered = self.more = self.queued = False
        self.write_by = NEVER
        self.sent = self.leaves_at = 0

    # The request

    def expect_body(self, head: Head) -> None:
        """Its head is read, and DATA follows."""
        self.head_read = head
        self.announced = head.length if "content-length" in head.headers else None
        self.body = bytearray()
        self.receive_window = ReceiveWindow(STREAM_WINDOW)

    def partial_request(self, intake: Intake) -> HttpRequest:
        """The request without its body, for checks and refusals."""
        return self.known(self.head_read.request(), intake)

    def known(self, request: HttpRequest, intake: Intake) -> HttpRequest:
        """The same request, with its client and id."""
        request.client = intake.client_of(request, self.client)
        request.id = access_log.request_id(request)
        return request

    def hold_body(self, size: int, intake: Intake) -> None:
        """The body is complete and stays for a later turn. Raises HttpError 503."""
        if size:
            if self.incoming is None:
                self.incoming = intake.begin(self.partial_request(intake))
            self.incoming.grow(size)

    def drop_body(self) -> None:
        """The body is complete, or is not needed."""
        self.body = bytearray()
        if self.incoming is not None:
            self.incoming.release()
            self.incoming = None

    # The source of the exchange

    def schedule(self) -> None:
        """Have a worker continue the exchange. Any thread."""
        self._ready.append(self)
        self._connection.schedule()

    # The sink of the exchange

    def head(self, response: HttpResponse, body: bytes | None) -> None:
        outbox = self._outbox
        request = self.exchange.request
        block = response_block(response, self._server, None if request is None else request.id)
        if body is None:
            outbox.put_response(outbox.headers(self.id, block, ended=False), 0)
            return
        size = len(body)
        self.answered = True
        if not size:
            outbox.put_response(outbox.headers(self.id, block, ended=True), 0)
            self.local_ended = True
        elif size <= JOINED and size <= self.window and size <= outbox.room:
            data = frames.frame_head(frames.DATA, frames.END_STREAM, self.id, size)
            head = outbox.headers(self.id, block, ended=False)
            outbox.put_response(b"".join((head, data, body)), size)
            self.local_ended = True
        else:
            outbox.put_response(outbox.headers(self.id, block, ended=False), 0)
            self.exchange.drop_body()
            self._append((body,), size)

    def data(self, pieces: Sequence[Buffer], *, ended: bool) -> int:
        size = sum(map(len, pieces))
        self.answered = ended
        self._append(pieces, size)
        return size

    def _append(self, pieces: Sequence[Buffer], size: int) -> None:
        self.pending = [*self.pending, *pieces] if self.pending else pieces
        self.size += size
        self._outbox.held += size
        self.send()

    def send(self) -> None:
        """Put one frame of what is pending into the outbox, if the windows allow it."""
        outbox = self._outbox
        size = self.size
        pieces: Sequence[Buffer] = self.pending
        if size:
            most = min(self.window, outbox.room, frames.FRAME_SIZE)
            if most <= 0:
                return
            if size <= most:
                self.pending = ()
            else:
                size = most
                pieces, self.pending = split(pieces, size)
            self.size -= size
            self.window -= size
            self.sent += size
            outbox.held -= size
        elif not self.answered:
            return
        self.local_ended = self.answered and not self.size
        outbox.put_data(self.id, pieces, size, ended=self.local_ended)

    # Ends

    def drop(self) -> None:
        """It is closed: free what it holds."""
        self.local_ended = True
        self._outbox.held -= self.size
        self.pending, self.size = (), 0
        self.drop_body()
        self.request = None
