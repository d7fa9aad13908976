"""Many connections that do nothing useful: idle ones, and ones that send a head too slowly."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time

from .load import ClientError, request_bytes, response_end

_SLOW_HEAD = b"GET /health HTTP/1.1\r\nHost: bench\r\nX-Slow: " + b"z" * 4000
_CONNECT_TIMEOUT = 30.0


class IdleCrowd:
    """Open connections that stay silent; every second one has had one answer before.

    A context manager; `lost` counts connections that the server closed meanwhile.
    """

    def __init__(self, host: str, port: int, size: int) -> None:
        self._address = (host, port)
        self._size = size
        self._sockets: list[socket.socket] = []
        self.lost = 0

    def __enter__(self) -> IdleCrowd:
        request = request_bytes("GET", "/health")
        try:
            for index in range(self._size):
                connection = socket.create_connection(self._address, _CONNECT_TIMEOUT)
                self._sockets.append(connection)
                if index % 2:
                    connection.sendall(request)
            for connection in self._sockets[1::2]:
                answer = b""
                while not response_end(answer):
                    data = connection.recv(65536)
                    if not data:
                        raise ClientError("the server closed a connection of the crowd")
                    answer += data
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        poller = select.poll()
        for connection in self._sockets:
            poller.register(connection, select.POLLIN)
        self.lost = len(poller.poll(0))
        self._close()

    def _close(self) -> None:
        for connection in self._sockets:
            connection.close()


class SlowHeaderCrowd:
    """Clients that send one byte of a request head every `interval` seconds, for ever.

    A client that the server closes (with 408 or without) connects again at once. A context
    manager; `turned_away` counts these closes, `timeouts` those with a 408.
    """

    def __init__(self, host: str, port: int, size: int, interval: float = 1.0) -> None:
        self._address = (host, port)
        self._size = size
        self._interval = interval
        self._sockets: dict[int, tuple[socket.socket, int]] = {}
        self._poller = select.poll()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        self.turned_away = 0
        self.timeouts = 0

    def __enter__(self) -> SlowHeaderCrowd:
        try:
            for _ in range(self._size):
                self._join()
        except BaseException:
            self._close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._close()

    def _close(self) -> None:
        for connection, _position in self._sockets.values():
            connection.close()

    def _join(self) -> None:
        connection = socket.create_connection(self._address, _CONNECT_TIMEOUT)
        connection.send(_SLOW_HEAD[:30])
        self._sockets[connection.fileno()] = (connection, 30)
        self._poller.register(connection, select.POLLIN)

    def _drip(self) -> None:
        while not self._done.is_set():
            round_ends = time.monotonic() + self._interval
            for number, (connection, position) in list(self._sockets.items()):
                with contextlib.suppress(OSError):  # the poll below sees the end
                    connection.send(_SLOW_HEAD[position : position + 1])
                self._sockets[number] = (connection, position + 1)
            while not self._done.is_set() and (left := round_ends - time.monotonic()) > 0:
                for number, _event in self._poller.poll(min(left, 0.1) * 1e3):
                    self._replace(number)

    def _replace(self, number: int) -> None:
        connection, _position = self._sockets.pop(number)
        self._poller.unregister(connection)
        with contextlib.suppress(OSError):
            self.timeouts += b" 408 " in connection.recv(65536)
        connection.close()
        self.turned_away += 1
        self._join()
