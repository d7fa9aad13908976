"""What a body stream promises its producer and its connection, also when they race."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from cllm.http.body_stream import BodyStream, IterableStream
from cllm.http.errors import StreamClosed
from cllm.http.sse import IterableEventStream

WAIT = 10.0  # seconds after which something is lost


class Consumer:
    """A connection in small: takes each time it is woken, until the stream ends."""

    def __init__(self, stream: BodyStream) -> None:
        self.stream = stream
        self.woken = threading.Semaphore(0)
        self.wakes = 0
        stream.attach(self.wake)

    def wake(self) -> None:
        self.wakes += 1
        self.woken.release()

    def read_all(self) -> bytes:
        data = []
        while True:
            assert self.woken.acquire(timeout=WAIT), "a wake-up was lost"
            data += self.stream.take()
            if self.stream.finished or self.stream.cancelled:
                return b"".join(data)


# Bytes and the end


def test_what_is_written_is_taken_in_order_and_once() -> None:
    stream = BodyStream()
    stream.write(b"a")
    stream.write(b"b")
    assert stream.take() == [b"a", b"b"]
    assert stream.take() == []


def test_a_closed_stream_is_finished_when_it_is_drained() -> None:
    stream = BodyStream()
    stream.write(b"a")
    stream.close()
    seen = [stream.finished]
    stream.take()
    seen.append(stream.finished)
    assert seen == [False, True]
    assert not stream.cancelled


def test_writing_after_the_end_is_refused() -> None:
    stream = BodyStream()
    stream.close()
    stream.close()
    with pytest.raises(StreamClosed):
        stream.write(b"a")


def test_an_empty_write_is_nothing() -> None:
    stream = BodyStream()
    consumer = Consumer(stream)
    stream.write(b"")
    assert (stream.take(), consumer.wakes) == ([], 0)


# Wake-ups


def test_writes_before_a_take_wake_once() -> None:
    stream = BodyStream()
    consumer = Consumer(stream)
    for _ in range(5):
        stream.write(b"a")
    stream.close()
    assert consumer.wakes == 1
    assert stream.take() == [b"a"] * 5
    assert stream.finished


def test_a_take_of_a_part_wakes_again_when_it_gave_everything() -> None:
    stream, wakes = BodyStream(), []
    stream.attach(lambda: wakes.append(1))
    stream.write(b"abc")
    assert stream.take(1) == [b"abc"]  # whole pieces
    assert not stream.more
    stream.write(b"def")
    assert len(wakes) == 2


def test_a_write_or_the_end_after_a_take_wakes_again() -> None:
    stream = BodyStream()
    consumer = Consumer(stream)
    stream.write(b"a")
    stream.take()
    stream.write(b"b")
    assert consumer.wakes == 2
    stream.take()
    stream.close()
    assert consumer.wakes == 3


@pytest.mark.parametrize("end", ["data", "close", "cancel", None])
def test_attaching_late_wakes_at_once_if_there_is_anything(end: str | None) -> None:
    stream = BodyStream()
    if end == "data":
        stream.write(b"a")
    elif end == "close":
        stream.close()
    elif end == "cancel":
        stream.cancel("gone")
    assert Consumer(stream).wakes == (0 if end is None else 1)


def test_the_wake_up_of_attaching_counts_as_one() -> None:
    stream = BodyStream()
    stream.write(b"a")
    consumer = Consumer(stream)
    stream.write(b"b")
    assert consumer.wakes == 1


def test_no_byte_and_no_wake_up_is_lost_between_threads() -> None:
    for round_number in range(200):
        stream = BodyStream()
        start = threading.Barrier(2)

        def produce(stream: BodyStream = stream, start: threading.Barrier = start) -> None:
            start.wait(WAIT)
            for number in range(20):
                stream.write(b"%d," % number)
            stream.close()

        thread = threading.Thread(target=produce)
        thread.start()
        start.wait(WAIT)
        data = Consumer(stream).read_all()
        thread.join(WAIT)
        assert data == b"".join(b"%d," % n for n in range(20)), round_number


def test_callbacks_may_use_the_stream_since_no_lock_is_held() -> None:
    stream = BodyStream()
    seen: list[bytes] = []
    stream.attach(lambda: seen.extend(stream.take()))
    stream.on_cancel(lambda reason: stream.on_cancel(lambda again: seen.append(again.encode())))
    stream.write(b"a")
    stream.cancel("gone")
    assert seen == [b"a", b"gone"]


# Cancelling


def test_cancelling_drops_what_is_pending_tells_the_producer_once_and_wakes() -> None:
    stream = BodyStream()
    reasons: list[str] = []
    stream.on_cancel(reasons.append)
    consumer = Consumer(stream)
    stream.write(b"a")
    stream.take()
    stream.write(b"b")
    wakes = consumer.wakes
    stream.cancel("gone")
    stream.cancel("again")
    assert (reasons, stream.cancel_reason) == (["gone"], "gone")
    assert stream.take() == []
    assert not stream.finished
    assert consumer.wakes >= wakes
    with pytest.raises(StreamClosed, match="gone"):
        stream.write(b"c")
    stream.on_cancel(reasons.append)
    assert reasons == ["gone", "gone"]


def test_what_has_ended_cannot_be_cancelled() -> None:
    stream = BodyStream()
    reasons: list[str] = []
    stream.on_cancel(reasons.append)
    stream.close()
    stream.cancel("gone")
    assert (reasons, stream.cancelled, stream.finished) == ([], False, True)


def test_a_closed_stream_with_data_left_can_be_cancelled() -> None:
    stream = BodyStream()
    stream.write(b"a")
    stream.close()
    stream.cancel("gone")
    assert stream.cancelled
    assert not stream.finished


def test_a_reader_too_slow_cancels_the_stream() -> None:
    stream = BodyStream()
    stream.high_water = 10
    reasons: list[str] = []
    stream.on_cancel(reasons.append)
    consumer = Consumer(stream)
    stream.write(b"x" * 10)
    stream.take()
    stream.write(b"x" * 10)
    with pytest.raises(StreamClosed, match="too slow"):
        stream.write(b"x")
    assert stream.cancelled
    assert len(reasons) == 1
    assert consumer.wakes >= 2


def test_cancelling_races_with_writing_and_closing() -> None:
    for _ in range(200):
        stream = BodyStream()
        reasons: list[str] = []
        stream.on_cancel(reasons.append)
        consumer = Consumer(stream)
        start = threading.Barrier(2)

        def produce(stream: BodyStream = stream, start: threading.Barrier = start) -> None:
            start.wait(WAIT)
            try:
                for _ in range(5):
                    stream.write(b"a")
                stream.close()
            except StreamClosed:
                pass

        thread = threading.Thread(target=produce)
        thread.start()
        start.wait(WAIT)
        stream.cancel("gone")
        consumer.read_all()
        thread.join(WAIT)
        assert not thread.is_alive()
        assert stream.cancelled
        # A producer that was done already need not hear of it.
        assert reasons in (["gone"], [])


def test_a_failing_cancel_callback_keeps_nobody_from_the_news() -> None:
    stream = BodyStream()
    reasons: list[str] = []
    stream.on_cancel(lambda reason: 1 / 0)
    stream.on_cancel(reasons.append)
    stream.cancel("gone")
    assert reasons == ["gone"]


def test_a_plain_body_has_no_well_formed_end_of_its_own() -> None:
    assert BodyStream().end_event("stop") == b""


# Iterators


def test_an_iterator_is_pulled_one_item_a_take() -> None:
    pulled: list[int] = []

    def items() -> Iterator[str]:
        for number in range(3):
            pulled.append(number)
            yield str(number)

    stream = IterableStream(items())
    assert pulled == []
    assert stream.take() == [b"0"]
    assert pulled == [0]


def test_an_iterator_wakes_its_consumer_until_it_has_ended() -> None:
    stream = IterableStream(["ä", b"\x00", {"a": 1}])
    assert Consumer(stream).read_all() == b'\xc3\xa4\x00{"a":1}\n'
    assert stream.finished


def test_an_empty_iterator_ends() -> None:
    stream = IterableStream([])
    assert Consumer(stream).read_all() == b""
    assert stream.finished


def test_a_primed_stream_gives_its_first_item_once() -> None:
    stream = IterableStream(iter("ab"))
    stream.prime()
    assert Consumer(stream).read_all() == b"ab"


def test_priming_raises_what_the_iterator_raises_before_its_first_item() -> None:
    def items() -> Iterator[str]:
        yield str(1 // 0)

    with pytest.raises(ZeroDivisionError):
        IterableStream(items()).prime()


def test_cancelling_closes_the_generator() -> None:
    closed = threading.Event()

    def items() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            closed.set()

    stream = IterableStream(items())
    stream.take()
    stream.cancel("gone")
    assert closed.is_set()
    assert stream.take() == []


def test_a_generator_cancelled_while_it_runs_is_closed_when_it_yields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    running, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        try:
            running.set()
            assert go_on.wait(WAIT)
            yield "too late"
        finally:
            closed.set()

    stream = IterableStream(items())
    taken: list[list[bytes]] = []
    thread = threading.Thread(target=lambda: taken.append(stream.take()))
    thread.start()
    assert running.wait(WAIT)
    stream.cancel("gone")
    too_early = closed.is_set()
    go_on.set()
    thread.join(WAIT)
    assert (too_early, closed.is_set()) == (False, True)
    assert taken == [[]]
    assert caplog.text == ""  # closing a generator that runs would have failed
    assert not stream.finished


def failing() -> Iterator[str]:
    yield "a"
    raise RuntimeError("secret")


def test_an_iterator_that_fails_ends_with_an_event_where_the_format_has_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stream = IterableEventStream(failing())
    data = Consumer(stream).read_all()
    assert data == b'data: a\n\ndata: {"error":"internal error","done":true}\n\n'
    assert stream.finished
    assert "secret" in caplog.text


def test_and_is_broken_off_where_it_has_none(caplog: pytest.LogCaptureFixture) -> None:
    stream = IterableStream(failing())
    assert Consumer(stream).read_all() == b"a"
    assert stream.cancelled
    assert not stream.finished
    assert "secret" in caplog.text


def test_nobody_else_writes_to_an_iterator() -> None:
    with pytest.raises(TypeError):
        IterableStream([]).write(b"a")
