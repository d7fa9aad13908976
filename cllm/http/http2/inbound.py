"""What the frames of a client do: to streams, windows, settings (RFC 9113 sections 5 to 8).

A request goes to the streams when it is complete. Frames that break a rule raise the error of their
stream, which is reset here, or of the connection.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from cllm.http.connection import Connection, Context
from cllm.http.errors import HttpError, ProtocolError
from cllm.http.exchange import LEFT
from cllm.http.head import Head
from cllm.http.http2 import frames
from cllm.http.http2.errors import ErrorCode, Http2ConnectionError, Http2StreamError
from cllm.http.http2.frames import FrameReader
from cllm.http.http2.guards import MAX_STREAMS, Guards
from cllm.http.http2.heads import CONTINUE, HeadReader
from cllm.http.http2.hpack import EMPTY_TABLE, TABLE_SIZE
from cllm.http.http2.outbox import Outbox
from cllm.http.http2.settings import PeerSettings
from cllm.http.http2.stream import Stream
from cllm.http.http2.streams import Streams
from cllm.http.http2.windows import CONNECTION_WINDOW, ReceiveWindow
from cllm.http.workspace import Workspace

_log = logging.getLogger("cllm.http")

TURN_REQUESTS = 128  # before other connections get their turn

DRAIN_PING = b"draining"


class Inbound:
    """One connection's; run by its owner only.

    backlog: the reader may hold a complete frame. progressed: a frame was complete; its reader
    resets this. last: the highest stream that the client opened.
    in_body: the frame that is not complete is of a body that is awaited.
    acknowledged: the client has the server's settings. closing: further streams are ignored.
    drained: the client has answered the PING of a stop.
    """

    __slots__ = (
        "_context", "_growing", "_guards", "_heads", "_outbox", "_peer", "_reader", "_skipped",
        "_streams", "_window", "acknowledged", "backlog", "closing", "drained", "in_body", "last",
        "progressed",
    )  # fmt: skip

    def __init__(
        self, context: Context, outbox: Outbox, streams: Streams, guards: Guards, received: bytes
    ) -> None:
        limits = context.config.limits
        self._context = context
        self._outbox = outbox
        self._streams = streams
        self._guards = guards
        self._reader = FrameReader(limits.head)
        self._reader.feed(received)
        self._heads = HeadReader(limits)
        self._peer = PeerSettings()
        self._window = ReceiveWindow(CONNECTION_WINDOW)
        self._skipped: deque[range] = deque(maxlen=16)  # streams that were never opened
        self._growing: dict[int, Stream] = {}  # parts of their bodies came in this read
        self.last = 0
        self.backlog = True
        self.acknowledged = self.closing = self.drained = self.in_body = self.progressed = False

    @property
    def incomplete(self) -> bool:
        """A frame, a block of fields or the preface has begun and is not complete.

        Not a frame of a body: that has the body's deadline.
        """
        return self._reader.incomplete and not self.in_body

    def feed(self, data: bytes) -> None:
        """Take received bytes."""
        self._reader.feed(data)
        self.backlog = True

    # Frames

    def take(self, connection: Connection, workspace: Workspace) -> None:
        """Handle what is buffered, until the turn has answered enough requests.

        Raises Http2ConnectionError.
        """
        next_frame = self._reader.next_frame
        streams = self._streams
        while streams.answered < TURN_REQUESTS:
            try:
                frame = next_frame()
                if frame is None:
                    self.backlog = False
                    break
                self.progressed = True
                kind, flags, stream, payload, size = frame
                if kind == frames.HEADERS:
                    self._on_headers(connection, workspace, flags, stream, payload)
                elif kind == frames.DATA:
                    self._on_data(workspace, flags, stream, payload, size)
                elif kind == frames.RST_STREAM:
                    self._on_reset(workspace, flags, stream, payload)
                else:
                    self._guards.traffic(self._outbox.take_sent_frames())
                    self._guards.control()
                    handle = _CONTROL_FRAMES.get(kind)
                    if handle is not None:  # section 5.5: unknown types are ignored
                        handle(self, workspace, flags, stream, payload)
            except Http2StreamError as error:
                self._on_error(error, workspace)
        self._take_in_all(workspace)

    def _on_headers(
        self, connection: Connection, workspace: Workspace, flags: int, id: int, block: bytes
    ) -> None:
        ended = bool(flags & frames.END_STREAM)
        if not id & 1:
            raise _protocol_error(f"a client cannot open stream {id}")
        if id <= self.last:
            self._on_trailers(workspace, id, block, ended=ended)
            return
        expected = self.last + 1 | 1
        if id > expected:
            self._skipped.append(range(expected, id, 2))
        self.last = id
        streams = self._streams
        if self.closing:  # section 6.8: the client has to send it elsewhere
            self._heads.skip(block)
            streams.ignore(id)
            return
        self._guards.traffic(1)
        head: Head | None = None
        refusal: ProtocolError | None = None
        try:
            head = self._heads.read(id, block)
        except ProtocolError as error:
            refusal = error
        if len(streams.open) >= MAX_STREAMS:
            workspace.counters.limit("streams")
            raise Http2StreamError(id, ErrorCode.REFUSED_STREAM, "too many streams are open")
        stream = Stream(id, connection, self._context, self._outbox, streams.ready)
        streams.open[id] = stream
        stream.remote_ended = ended
        if head is None:
            assert refusal is not None
            response = self._context.handler.error_response(refusal)
            counters = workspace.counters
            streams.refuse(stream, None, response, counters, to_head=refusal.to_head)
        elif head.length > self._context.config.limits.body:
            stream.head_read = head
            self._refuse(stream, self._too_large(), workspace)
        elif not ended:
            stream.expect_body(head)
            self._growing[id] = stream
        elif head.length:
            raise _wrong_length(id)
        else:
            streams.take(stream, head.request(), workspace.counters)

    def _on_trailers(self, workspace: Workspace, id: int, block: bytes, *, ended: bool) -> None:
        stream = self._streams.open.get(id)
        if stream is None:
            if not self._streams.ignores(id):
                raise self._not_open(id)
            self._heads.skip(block)
            return
        if stream.remote_ended:
            self._heads.skip(block)
            raise Http2StreamError(id, ErrorCode.STREAM_CLOSED, "HEADERS after END_STREAM")
        try:
            self._heads.read_trailers(id, block)
        except ProtocolError as error:
            stream.remote_ended = ended
            if not stream.discards:
                self._refuse(stream, error, workspace)
            return
        if not ended:
            raise Http2StreamError(id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        self._end_body(stream, workspace)

    def _on_data(
        self, workspace: Workspace, flags: int, id: int, payload: bytes, size: int
    ) -> None:
        increment = self._window.receive(size)
        if increment:
            self._outbox.put(frames.window_update(0, increment))
        ended = flags & frames.END_STREAM
        if not ended:
            self._guards.data(len(payload))
        stream = self._streams.open.get(id)
        if stream is None:
            if not self._streams.ignores(id):
                raise self._not_open(id)
            return
        if stream.remote_ended:
            raise Http2StreamError(id, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        if not stream.discards:
            if payload:
                self._guards.traffic(1)
            stream.body += payload
            length = len(stream.body)
            if stream.announced is not None and length > stream.announced:
                raise _wrong_length(id)
            if length > self._context.config.limits.body:
                stream.remote_ended = bool(ended)
                self._refuse(stream, self._too_large(), workspace)
                return
        if ended:
            self._end_body(stream, workspace)
        elif not stream.discards:
            self._growing[id] = stream
            increment = stream.receive_window.receive(size)
            if increment:
                self._outbox.put(frames.window_update(id, increment))

    def _on_reset(self, workspace: Workspace, flags: int, id: int, payload: bytes) -> None:
        self._check_not_idle(id)
        self._guards.reset()
        stream = self._streams.open.get(id)
        if stream is not None:
            self._streams.drop(stream, LEFT, workspace.counters)

    def _on_settings(self, workspace: Workspace, flags: int, id: int, payload: bytes) -> None:
        if flags & frames.ACK:
            self.acknowledged = True
            return
        peer, outbox = self._peer, self._outbox
        peer.apply(payload)
        change = peer.initial_window - outbox.initial_window
        outbox.initial_window = peer.initial_window
        if change:  # section 6.9.2: of the windows that there are, too
            for stream in self._streams.open.values():
                stream.window += change
                if stream.window > frames.MAX_WINDOW:
                    raise _overflow()
                self._streams.queue(stream)
        if peer.table_size < TABLE_SIZE:  # RFC 7541 section 4.2; nothing is indexed anyway
            outbox.table_update = EMPTY_TABLE
        outbox.put(frames.SETTINGS_ACK)

    def _on_ping(self, workspace: Workspace, flags: int, id: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._outbox.put(frames.ping(payload, ack=True))
        elif payload == DRAIN_PING:
            self.drained = True

    def _on_window_update(self, workspace: Workspace, flags: int, id: int, payload: bytes) -> None:
        increment = frames.uint31(payload)
        if not id:
            self._outbox.window += increment
            if self._outbox.window > frames.MAX_WINDOW:
                raise _overflow()
            return
        self._check_not_idle(id)
        stream = self._streams.open.get(id)
        if stream is not None:
            stream.window += increment
            if stream.window > frames.MAX_WINDOW:
                raise Http2StreamError(
                    id, ErrorCode.FLOW_CONTROL_ERROR, "the stream's window exceeds 2^31-1 bytes"
                )
            self._streams.queue(stream)

    def _on_error(self, error: Http2StreamError, workspace: Workspace) -> None:
        """The client's error on one stream (section 5.4.2)."""
        id = error.stream
        if id > self.last or not id & 1:  # an idle stream cannot be reset
            raise Http2ConnectionError(error.code, error.text)
        _log.debug("stream %d is reset: %s", id, error.text)
        stream = self._streams.open.get(id)
        if stream is not None:
            self._streams.drop(stream, error.text, workspace.counters)
        self._streams.put_reset(id, error.code)
        # Before a client has read the settings it does not know how many streams it may open.
        if error.code != ErrorCode.REFUSED_STREAM or self.acknowledged:
            self._guards.reset()

    def _check_not_idle(self, id: int) -> None:
        if id > self.last or not id & 1:
            raise _protocol_error(f"stream {id} is idle")

    def _not_open(self, id: int) -> Http2ConnectionError:
        """The error of DATA or HEADERS on a stream that is not open (section 5.1)."""
        if id > self.last or not id & 1 or any(id in skipped for skipped in self._skipped):
            return _protocol_error(f"stream {id} was not opened")
        return Http2ConnectionError(ErrorCode.STREAM_CLOSED, f"stream {id} is closed")

    # Bodies of requests

    def _take_in_all(self, workspace: Workspace) -> None:
        """Look after the bodies that have grown, by a part of a frame too."""
        self.in_body = False
        id, size = (0, 0) if self.backlog else self._reader.partial_data
        if id and (stream := self._streams.open.get(id)) is not None:
            self._growing[id] = stream
        if not self._growing:
            return
        growing, self._growing = self._growing, {}
        for stream in growing.values():
            if not (stream.remote_ended or stream.local_ended or stream.discards):
                self._take_in(stream, workspace, size if stream.id == id else 0)
                self.in_body |= stream.id == id and not stream.discards

    def _take_in(self, stream: Stream, workspace: Workspace, more: int) -> None:
        """A part of a body has arrived; the rest comes in a later turn.

        more: bytes of a frame that is not complete.
        """
        intake = self._context.intake
        incoming = stream.incoming
        if incoming is None:
            request = stream.partial_request(intake)
            incoming = stream.incoming = intake.begin(request)
            head = stream.head_read
            response = intake.refusal(request, head.length)
            if response is not None:
                self._streams.refuse(stream, request, response, workspace.counters)
                return
            if head.expects_continue and not stream.body:
                self._outbox.put(self._outbox.headers(stream.id, CONTINUE, ended=False))
        try:
            incoming.grow(len(stream.body) + more)
        except HttpError as error:
            self._refuse(stream, error, workspace)
            return
        self._streams.due = min(self._streams.due, incoming.deadline)

    def _end_body(self, stream: Stream, workspace: Workspace) -> None:
        if stream.discards:
            stream.remote_ended = True
            return
        if stream.announced is not None and len(stream.body) != stream.announced:
            raise _wrong_length(stream.id)
        stream.remote_ended = True
        request = stream.head_read.request(bytes(stream.body))
        stream.body = bytearray()  # the request may wait
        self._streams.take(stream, request, workspace.counters)

    def _refuse(self, stream: Stream, error: HttpError, workspace: Workspace) -> None:
        """Respond to a request whose body cannot be taken."""
        intake = self._context.intake
        incoming = stream.incoming
        request = stream.partial_request(intake) if incoming is None else incoming.request
        response = intake.error(error, request)
        self._streams.refuse(stream, request, response, workspace.counters)

    def _too_large(self) -> HttpError:
        return HttpError(413, f"the body is larger than {self._context.config.limits.body} bytes")


_CONTROL_FRAMES: dict[int, Callable[[Inbound, Workspace, int, int, bytes], None]] = {
    frames.SETTINGS: Inbound._on_settings,
    frames.PING: Inbound._on_ping,
    frames.WINDOW_UPDATE: Inbound._on_window_update,
}


def _protocol_error(text: str) -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCode.PROTOCOL_ERROR, text)


def _overflow() -> Http2ConnectionError:
    return Http2ConnectionError(ErrorCode.FLOW_CONTROL_ERROR, "a window exceeds 2^31-1 bytes")


def _wrong_length(id: int) -> Http2StreamError:
    """Section 8.1.1"""
    return Http2StreamError(
        id, ErrorCode.PROTOCOL_ERROR, "the body's length is not that of Content-Length"
    )
