"""Servers under test: child processes, their memory and processor time."""

from __future__ import annotations

import os
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from cllm.engine.machine.openmp import environment_without_bounds

from ..clients.load import Client, ClientError
from ..common import BenchError

REPOSITORY = Path(__file__).resolve().parents[3]
HOST = "127.0.0.1"
_STILL = 5  # looks, 10 ms apart, that find no thread computing


def raise_file_limit(needed: int) -> None:
    """Raise the soft limit of open files to `needed`, for this process and its children."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise BenchError(
            f"{needed} open files are needed, the hard limit is {hard}: "
            f"raise it (ulimit -Hn {needed} as root) or ask for fewer connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A server under test: a child process, its port and its log; a context manager."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        *,
        cwd: Path = REPOSITORY,
        start_timeout: float = 60.0,
        health: str = "/health",
        context: ssl.SSLContext | None = None,
    ) -> None:
        """context: of a client, where the server speaks TLS."""
        self.name = name
        self.port = port
        self.health = health
        self._context = context
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=environment_without_bounds(),
        )  # fmt: skip
        try:
            self.healthy_after = self._wait_healthy(start_timeout)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def _wait_healthy(self, timeout: float) -> float:
        """Seconds from spawn to the first 200 on the path `health`."""
        while time.monotonic() < self.started_at + timeout:
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} exited at once\n{self.log()}")
            try:
                with Client(HOST, self.port, 5.0, self._context) as client:
                    if client.get(self.health).status == 200:
                        return time.monotonic() - self.started_at
            except (OSError, ClientError):
                pass
            time.sleep(0.01)
        raise BenchError(f"{self.name} was not healthy within {timeout:g} s\n{self.log()}")

    def log(self, lines: int = 20) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-lines:])

    def rss(self) -> int:
        """Resident bytes now."""
        return rss(self.pid)

    def cpu_seconds(self) -> float:
        """Processor seconds used so far, its worker processes included."""
        return cpu_seconds(self.pid)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def cllm_server(
    *arguments: str,
    name: str = "cLLM",
    start_timeout: float = 120.0,
    context: ssl.SSLContext | None = None,
) -> Server:
    """The real server (built-in model unless --model is among the arguments), access log off."""
    port = free_port()
    command = [sys.executable, "-m", "cllm.main", "--host", HOST, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", *arguments]
    return Server(name, command, port, start_timeout=start_timeout, context=context)


def cpu_seconds(pid: int) -> float:
    """Processor time that a process and its children have used, user and system.

    NaN where there is no /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return float("nan")
    children = map(int, " ".join(lists).split())
    # One that has just ended counts no more.
    return own + sum(used for used in map(cpu_seconds, children) if used == used)


def settle(pid: int | None, patience: float = 5.0) -> bool:
    """Wait until a process and its children compute no more; whether they do within `patience` s.

    Threads of LLVM's OpenMP spin for 0.2 s after their work, in which the next server would find
    a core busy. Without a pid, or /proc, it does not wait.
    """
    end, still = time.monotonic() + patience, 0
    while pid is not None and still < _STILL:
        still = 0 if _computes(pid) else still + 1
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _computes(pid: int) -> bool:
    """Whether a thread of a process or its children has, or waits for, a processor."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            children = map(int, (task / "children").read_text().split())
        except OSError:
            continue  # it has just ended
        if state == "R" or any(map(_computes, children)):
            return True
    return False


def rss(pid: int) -> int:
    """Resident bytes of a process."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()
    except OSError:
        kib = subprocess.run(
            ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
        )
        return int(kib.stdout) * 1024


class PeakRss:
    """Samples a process's resident bytes every 50 ms while its `with` block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before = self.peak = rss(pid)

    def _sample(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, rss(self._pid))

    def __enter__(self) -> PeakRss:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
