"""How long a server makes a client wait while it is busy with others: one GET after another."""

from __future__ import annotations

import contextlib
import time
from multiprocessing.connection import Connection as Pipe

from .load import SPAWN, Client, ClientError, request_bytes


class Probe:
    """Measures one GET after another, `interval` seconds apart, in a process of its own.

    Use as a context manager; `latencies` (seconds) is filled when the block ends. `patience`:
    seconds after which one that is not answered counts as infinite, and a new connection is made.
    """

    def __init__(
        self,
        host: str,
        port: int,
        path: str = "/health",
        interval: float = 0.01,
        patience: float = 30.0,
    ) -> None:
        self.latencies: list[float] = []
        self._control, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(
            target=_probe, args=(theirs, host, port, path, interval, patience), daemon=True
        )

    def __enter__(self) -> Probe:
        self._process.start()
        if not self._control.poll(30) or self._control.recv() != "ready":
            raise ClientError("the probe did not start")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it failed earlier; the reason is in the pipe
            self._control.send("stop")
        if not self._control.poll(60):
            self._process.kill()
            raise ClientError("a probe request was not answered within 60 s")
        result = self._control.recv()
        self._process.join()
        if isinstance(result, str):
            raise ClientError(f"the probe failed: {result}")
        self.latencies = result


def _probe(
    control: Pipe, host: str, port: int, path: str, interval: float, patience: float
) -> None:
    latencies: list[float] = []
    request = request_bytes("GET", path)
    client = None
    try:
        with Client(host, port) as first:
            first.exchange(request)
        control.send("ready")
        while not control.poll(interval):
            client = client or Client(host, port, patience)
            begin = time.perf_counter()
            try:
                response = client.exchange(request)
            except TimeoutError:
                latencies.append(float("inf"))
                client.close()
                client = None
                continue
            latencies.append(time.perf_counter() - begin)
            if response.status != 200:
                raise ClientError(f"GET {path} gave {response.status}")
        control.send(latencies)
    except Exception as error:  # reported to the parent, whatever it is
        control.send(f"{type(error).__name__}: {error}")
    finally:
        if client is not None:
            client.close()
