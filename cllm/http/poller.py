"""Which sockets are ready: epoll and kqueue behind one small interface, and a wake-up for either.

Registrations fire once and are then disarmed until `rearm`: one system call, no lock, and a socket
whose connection is running causes no wake-up. With EDGE, where the system has it, a registration
stays armed and fires at each arrival: no system call for a request.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys
from typing import Protocol

READ = 1  # bytes to read, or the peer ended its side
WRITE = 2  # room to write
HANGUP = 4  # the peer ended its side or the connection broke, even with unread bytes
# A broken connection is reported under every interest.

if sys.platform == "linux":
    # As READ, but reported once for each arrival, and still armed after it: a reader must take all
    # bytes that are there. An event other than DATA also has the end of the peer's side, which is
    # not reported again, or TCP's urgent data, before which a read ends although more has come.
    EDGE = 8
    DATA = int(select.EPOLLIN)
else:
    EDGE = READ
    DATA = 0  # the mask of no event


class Poller(Protocol):
    """Any number of threads may poll; one gets each event. close(2) removes a descriptor."""

    def register(self, fd: int, interest: int, *, once: bool = True) -> None:
        """Start to watch `fd`; `once=False`: it fires while it is ready."""

    def rearm(self, fd: int, interest: int) -> None:
        """Watch `fd` for one more event."""

    def forget(self, fd: int) -> None:
        """Stop watching an open `fd`."""

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """(fd, the system's event mask) of ready descriptors; waits `timeout` s; None: forever."""

    def fileno(self) -> int:
        """Readable while an event is waiting, so that one poller can watch another."""

    def close(self) -> None: ...


if sys.platform == "linux":
    _EPOLL = tuple(
        (select.EPOLLIN | select.EPOLLRDHUP if interest & READ else 0)
        | (select.EPOLLOUT if interest & WRITE else 0)
        | (select.EPOLLRDHUP if interest & HANGUP else 0)
        for interest in range(8)
    )
    _EPOLL_ONCE = (
        *(mask | select.EPOLLONESHOT for mask in _EPOLL),
        select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET,  # EDGE
    )

    class EpollPoller:
        """epoll(7), level-triggered with EPOLLONESHOT; edge-triggered for EDGE."""

        __slots__ = ("_epoll", "_modify", "close", "fileno")

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._modify = self._epoll.modify
            self.close = self._epoll.close
            self.fileno = self._epoll.fileno

        def register(self, fd: int, interest: int, *, once: bool = True) -> None:
            self._epoll.register(fd, (_EPOLL_ONCE if once else _EPOLL)[interest])

        def rearm(self, fd: int, interest: int) -> None:
            self._modify(fd, _EPOLL_ONCE[interest])

        def forget(self, fd: int) -> None:
            self._epoll.unregister(fd)

        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            return self._epoll.poll(timeout, 512)

    def new_poller() -> Poller:
        """The best poller of this system."""
        return EpollPoller()

else:
    # A low-water mark above every receive buffer: the read filter fires only at the end.
    _NEVER = 1 << 30

    class KqueuePoller:
        """kqueue(2), EV_ONESHOT; one filter for each direction."""

        __slots__ = ("_kqueue", "close", "fileno")

        def __init__(self) -> None:
            self._kqueue = select.kqueue()
            self.close = self._kqueue.close
            self.fileno = self._kqueue.fileno

        def register(self, fd: int, interest: int, *, once: bool = True) -> None:
            flags = select.KQ_EV_ADD | (select.KQ_EV_ONESHOT if once else 0)
            changes = []
            if interest & READ:
                changes.append(select.kevent(fd, select.KQ_FILTER_READ, flags))
            elif interest & (HANGUP | WRITE):
                changes.append(
                    select.kevent(fd, select.KQ_FILTER_READ, flags, select.KQ_NOTE_LOWAT, _NEVER)
                )
            if interest & WRITE:
                changes.append(select.kevent(fd, select.KQ_FILTER_WRITE, flags))
            self._kqueue.control(changes, 0)

        def rearm(self, fd: int, interest: int) -> None:
            # A write filter that is left over fires once without effect.
            self.register(fd, interest)

        def forget(self, fd: int) -> None:
            for kind in (select.KQ_FILTER_READ, select.KQ_FILTER_WRITE):
                try:
                    self._kqueue.control([select.kevent(fd, kind, select.KQ_EV_DELETE)], 0)
                except OSError:
                    continue  # that filter was not set

        def poll(self, timeout: float | None) -> list[tuple[int, int]]:
            events = self._kqueue.control(None, 512, timeout)
            return [(event.ident, event.filter) for event in events]

    def new_poller() -> Poller:
        """The best poller of this system."""
        return KqueuePoller()


# A PyDLL's functions keep the interpreter lock.
_write_locked = ctypes.PyDLL(None).write
_write_locked.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_write_locked.restype = ctypes.c_ssize_t


class WakeUp:
    """Ends another thread's poll: `set` by any thread, `clear` by the thread that polls."""

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._read = self._write = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._read, self._write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(self._write, False)

    def set(self) -> None:
        """End the poll, or the next one; harmless once closed.

        It takes a microsecond and keeps the interpreter lock. Otherwise the woken thread would take
        the lock while the caller has more to do: an engine step, or other threads to wake.
        """
        # Fails harmlessly if it was set very often or is closed.
        _write_locked(self._write, b"\1\0\0\0\0\0\0\0", 8)

    def clear(self) -> None:
        try:
            os.read(self._read, 4096)
        except BlockingIOError:
            return

    def fileno(self) -> int:
        return self._read

    def close(self) -> None:
        open_ones = {self._read, self._write}
        self._read = self._write = -1  # before another file can get the numbers
        for fd in open_ones:
            os.close(fd)
