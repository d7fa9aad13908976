"""The streams of one connection: their exchanges, and whose turn it is to send.

A stream takes part in up to three queues:

    waiting  its request is complete; it begins when fewer bytes of other responses are held
    ready    its exchange was woken, by any thread
    turns    it has something to send: each gets one frame in turn
"""

from __future__ import annotations

import logging
from collections import deque
from time import monotonic

from cllm.http.body_stream import BodyStream
from cllm.http.connection import NEVER, Context
from cllm.http.errors import HttpError
from cllm.http.exchange import BROKEN, MORE, STOPPING, Step
from cllm.http.http2 import frames
from cllm.http.http2.errors import ErrorCode
from cllm.http.http2.guards import Guards
from cllm.http.http2.outbox import FULL, Outbox
from cllm.http.http2.stream import Stream
from cllm.http.request import HttpRequest
from cllm.http.response import HttpResponse
from cllm.http.stats import Counters

_log = logging.getLogger("cllm.http")

# Streams that this server has reset, whose frames may still be on their way (RFC 9113 section 5.1).
# Resets have a limit, so the last ones are those of several seconds.
MAX_RESET = 256

SHARES = 128  # of the bytes that the streams may hold together; each has one in any case


class Streams:
    """One connection's; run by its owner only.

    open: by identifier. answered: requests of this turn. due: no stream has an earlier deadline.
    """

    __slots__ = (
        "_context", "_guards", "_leaving", "_outbox", "_resets", "_turns", "_waiting", "answered",
        "due", "open", "ready",
    )  # fmt: skip

    def __init__(self, context: Context, outbox: Outbox, guards: Guards) -> None:
        self._context = context
        self._outbox = outbox
        self._guards = guards
        self.open: dict[int, Stream] = {}
        self.ready: deque[Stream] = deque()
        self._waiting: deque[Stream] = deque()
        self._turns: deque[Stream] = deque()
        self._leaving: deque[Stream] = deque()  # their ends are in the outbox
        self._resets: dict[int, None] = {}
        self.answered = 0
        self.due = NEVER

    # Requests

    def take(self, stream: Stream, request: HttpRequest, counters: Counters) -> None:
        """A request is complete: begin it unless too much of other responses is held."""
        stream.request = request
        if self._outbox.held <= self._context.config.high_water:
            self._begin(stream, counters)
            return
        try:
            stream.hold_body(len(request.body), self._context.intake)
        except HttpError as error:
            stream.request = None
            intake = self._context.intake
            self.refuse(
                stream, request, intake.error(error, stream.known(request, intake)), counters
            )
        else:
            self._waiting.append(stream)

    def begin_waiting(self, counters: Counters) -> bool:
        """Begin a request that waits, if it need not wait any more."""
        if not self._waiting or self._outbox.held > self._context.config.high_water:
            return False
        self._begin(self._waiting.popleft(), counters)
        return True

    def _begin(self, stream: Stream, counters: Counters) -> None:
        request, stream.request = stream.request, None
        if request is None:
            return  # it was reset while it waited
        stream.drop_body()
        self.answered += 1
        most = self._most(stream)
        stream.exchange.room = self.has_room
        try:
            step = stream.exchange.answer(request, stream, stream, counters, most)
        except BaseException:
            self._fail(stream, counters)
        else:
            self._after(stream, step, counters)

    def refuse(
        self,
        stream: Stream,
        request: HttpRequest | None,
        response: HttpResponse,
        counters: Counters,
        *,
        to_head: bool = False,
    ) -> None:
        """Respond without the handler, and drop what else comes of the body.

        request: None for a head that is none; to_head: it is of a HEAD request.
        """
        stream.drop_body()
        stream.discards = True
        step = stream.exchange.refuse(request, response, stream, stream, counters, to_head=to_head)
        self._after(stream, step, counters)

    # Responses

    def has_room(self, stream: BodyStream, pending: int) -> bool:
        """Whether a body stream may hold `pending` bytes next to the others; see BodyStream.room.

        The producers' threads call it. Below a small share the others do not count: a stream whose
        reader keeps up goes on, even if another one's does not.
        """
        limit = self._context.config.high_water
        if pending * SHARES <= limit:
            return True
        exchanges = [each.exchange for each in self.open.copy().values()]  # atomic
        return pending + sum(each.held_besides(stream) for each in exchanges) <= limit

    def wake_all(self, counters: Counters) -> None:
        """Continue the exchanges that were woken before this call."""
        ready = self.ready
        for _ in range(len(ready)):
            stream = ready.popleft()
            if stream.local_ended:
                continue
            if stream.exchange.broken:
                self._break_off(stream, stream.exchange.broken_by, counters)
            elif stream.size or self._outbox.size >= (1 if stream.exchange.may_block else FULL):
                stream.more = True
                self.queue(stream, woken=True)
            else:
                self._continue(stream, counters)

    def _continue(self, stream: Stream, counters: Counters) -> None:
        try:
            step = stream.exchange.advance(stream, self._most(stream))
        except BaseException:
            self._fail(stream, counters)
        else:
            self._after(stream, step, counters)

    def _fail(self, stream: Stream, counters: Counters) -> None:
        """An exception, SystemExit included, ends its stream; the others go on."""
        _log.exception("a stream failed: %s", stream.client)
        self._break_off(stream, "its stream failed", counters)

    def _most(self, stream: Stream) -> int:
        """How much to take of a body. One byte even if the window is closed, to find its end."""
        return max(min(stream.window, self._outbox.room), 1)

    def _after(self, stream: Stream, step: Step, counters: Counters) -> None:
        """An exchange has handed over what it has."""
        if step is BROKEN:
            self._break_off(stream, stream.exchange.broken_by, counters)
            return
        stream.more = step is MORE
        if not self._finish(stream):
            self.queue(stream)
            self.due = min(self.due, stream.exchange.ping_at)

    def _finish(self, stream: Stream) -> bool:
        """Whether the whole response is in the outbox; the stream is closed then."""
        if not stream.local_ended:
            return False
        self._leaving.append(stream)
        stream.leaves_at = self._outbox.taken
        del self.open[stream.id]
        stream.exchange.drop_body()
        stream.drop()
        if not stream.remote_ended:  # section 8.1: the rest of the request is not needed
            self.put_reset(stream.id, ErrorCode.NO_ERROR)
        return True

    def _break_off(self, stream: Stream, reason: str, counters: Counters) -> None:
        """Reset, so that the client sees that the body is incomplete."""
        _log.info("a response to %s:%d was aborted: %s", *stream.client, reason)
        self.drop(stream, reason, counters)
        self.put_reset(stream.id, ErrorCode.INTERNAL_ERROR)

    def left(self, counters: Counters) -> None:
        """Bytes of the outbox have left: the responses whose ends were among them are complete."""
        leaving = self._leaving
        left = self._outbox.left
        while leaving and leaving[0].leaves_at <= left:
            leaving.popleft().exchange.finish(counters)

    # Sending in turns

    @property
    def sending(self) -> bool:
        """A stream has something to send, and its own window is open."""
        return bool(self._turns)

    def queue(self, stream: Stream, *, woken: bool = False) -> None:
        """Give it a turn if it has something to send, or a deadline if its window is closed.

        woken: it may have ended, which needs no window.
        """
        if not (stream.size or stream.more):
            stream.write_by = NEVER
        elif stream.window > 0 or (woken and not stream.size):
            if not stream.queued:
                stream.queued = True
                self._turns.append(stream)
        elif stream.write_by == NEVER:
            stream.write_by = monotonic() + self._context.config.write_timeout
            stream.sent = 0
            self.due = min(self.due, stream.write_by)

    def take_turns(self, counters: Counters) -> None:
        """Let each stream put one frame into the outbox in turn, while there is room."""
        turns = self._turns
        outbox = self._outbox
        while turns and outbox.room > 0:
            stream = turns.popleft()
            stream.queued = False
            if stream.local_ended:
                continue
            if not stream.size:
                if outbox.size and stream.exchange.may_block:
                    stream.queued = True
                    turns.appendleft(stream)
                    return
                self._continue(stream, counters)
            else:
                stream.send()
                if not self._finish(stream):
                    self.queue(stream)

    # Ends

    def drop(self, stream: Stream, reason: str, counters: Counters) -> None:
        """It is reset: cancel its exchange."""
        del self.open[stream.id]
        if stream.request is not None:  # a client may open and reset any number meanwhile
            self._waiting.remove(stream)
        if stream.queued:
            stream.queued = False
            self._turns.remove(stream)
        stream.drop()
        stream.exchange.cancel(reason, counters)

    def put_reset(self, id: int, code: ErrorCode) -> None:
        """Reset a stream that is not open any more."""
        self._outbox.put(frames.rst_stream(id, code))
        self.ignore(id)

    def ignore(self, id: int) -> None:
        """Frames of this stream may still come, and do nothing."""
        if len(self._resets) >= MAX_RESET:
            del self._resets[next(iter(self._resets))]
        self._resets[id] = None

    def ignores(self, id: int) -> bool:
        return id in self._resets

    def expire(self, now: float, counters: Counters) -> None:
        """Deadlines of streams may have passed."""
        if self.due <= now:
            self.due = NEVER
            for stream in list(self.open.values()):
                self._expire(stream, now, counters)

    def _expire(self, stream: Stream, now: float, counters: Counters) -> None:
        config = self._context.config
        incoming = stream.incoming
        due = stream.write_by
        if incoming is not None and not stream.remote_ended:
            due = incoming.deadline
            if due <= now:
                counters.timeouts += 1
                error = HttpError(408, "the rest of the request's body did not arrive in time")
                response = self._context.intake.error(error, incoming.request)
                self.refuse(stream, incoming.request, response, counters)
                return
        elif due <= now and stream.window > 0:  # not this window holds it up any more
            due = stream.write_by = NEVER
        elif due <= now:
            if stream.sent < config.least_sent:
                counters.timeouts += 1
                counters.limit("closed_window")
                self.drop(stream, "the client does not read", counters)
                self.put_reset(stream.id, ErrorCode.CANCEL)
                self._guards.reset()
                return
            due = stream.write_by = now + config.write_timeout
            stream.sent = 0
        self.due = min(self.due, due)
        if not stream.size:  # else no ping is needed
            if stream.exchange.ping_at <= now:
                self._continue(stream, counters)
            else:
                self.due = min(self.due, stream.exchange.ping_at)

    def end(self, counters: Counters) -> None:
        """The server stops: end what is in flight, in an orderly way where possible."""
        for stream in list(self.open.values()):
            if stream.exchange.request is None:  # it did not begin
                self.drop(stream, STOPPING, counters)
                self.put_reset(stream.id, ErrorCode.REFUSED_STREAM)
            elif not stream.answered:
                self._after(stream, stream.exchange.end(stream), counters)

    def drop_all(self, reason: str, counters: Counters) -> None:
        """Cancel what is not in the outbox: the client does not get it."""
        for stream in list(self.open.values()):
            self.drop(stream, reason, counters)

    def give_up(self, reason: str, counters: Counters) -> None:
        """The same, and the outbox does not leave either."""
        for stream in self._leaving:
            stream.exchange.cancel(reason, counters)
        self._leaving.clear()
        self.drop_all(reason, counters)
