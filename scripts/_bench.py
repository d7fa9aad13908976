"""What the benchmark scripts share: servers as child processes, the machine, result tables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from _load import Client, ClientError
from tqdm import tqdm

REPOSITORY = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
PACKAGES = ("cllm", "llama-cpp-python", "numpy", "uvicorn", "httptools", "uvloop", "fastapi")


class BenchError(RuntimeError):
    """Something the benchmark needs is missing or gave a wrong answer; the text says what."""


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """An argument parser with the options that every benchmark has."""
    result = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--quick", action="store_true", help="smallest run that still checks every answer"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return result


def run(main: Callable[[], None]) -> None:
    """Run a script: a `BenchError` is one line and status 1, Ctrl-C is status 130."""
    try:
        main()
    except (BenchError, ClientError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


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
    """A TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def wait(seconds: float, why: str) -> None:
    """Let a measurement run, with a progress bar on a terminal."""
    steps = max(1, round(seconds * 10))
    for _ in tqdm(range(steps), desc=why, leave=False, disable=None):
        time.sleep(seconds / steps)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


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
    ) -> None:
        self.name = name
        self.port = port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        try:
            self.healthy_after = self._wait_healthy(start_timeout)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def _wait_healthy(self, timeout: float) -> float:
        """Seconds from spawn to the first 200 on /health."""
        while time.monotonic() < self.started_at + timeout:
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} exited at once\n{self.log()}")
            try:
                with Client(HOST, self.port, timeout=5.0) as client:
                    if client.get("/health").status == 200:
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
        """Processor time used so far, user and system; NaN where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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


def cllm_server(*arguments: str, name: str = "cLLM", start_timeout: float = 120.0) -> Server:
    """The real server (built-in model unless --model is among the arguments), access log off."""
    port = free_port()
    command = [sys.executable, "-m", "cllm.main", "--host", HOST, "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning", *arguments]
    return Server(name, command, port, start_timeout=start_timeout)


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


def machine() -> dict[str, str]:
    """Processor, memory, system and versions: what a reader needs to judge the numbers."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{_processor()}, {cores} cores, {memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, "
        f"{platform.python_implementation()} {platform.python_version()}",
        "load average at start": f"{os.getloadavg()[0]:.1f}",
        "versions": ", ".join(_versions()),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _versions() -> Iterable[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    if shutil.which("wrk"):
        wrk = subprocess.run(["wrk", "--version"], check=False, capture_output=True, text=True)
        yield " ".join(wrk.stdout.split()[:2])


@dataclass(slots=True)
class Report:
    """Markdown on standard output, the same facts as JSON in a file when asked for."""

    title: str
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        script, *rest = sys.argv
        self.facts["command"] = shlex.join(["python", f"scripts/{Path(script).name}", *rest])
        self.facts["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        self.facts |= machine()
        print(f"## {self.title}\n", flush=True)
        for name, value in self.facts.items():
            print(f"- {name}: `{value}`" if name == "command" else f"- {name}: {value}")
        sys.stdout.flush()

    def table(self, heading: str, rows: list[dict[str, Any]]) -> None:
        """Print rows (the first one's keys are the columns) under a heading."""
        self.tables[heading] = rows
        columns = list(rows[0])
        cells = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n**{heading}**\n")
        for index, line in enumerate(cells):
            padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
            print(f"| {' | '.join(padded)} |")
            if index == 0:
                print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        sys.stdout.flush()

    def target(self, what: str, measured: float, met: bool) -> None:
        """One line: a stated target, what was measured, whether that is enough."""
        print(f"\ntarget: {what}: measured {_cell(measured)}: {'met' if met else 'MISSED'}")
        if not met:
            self.missed.append(what)

    def write(self, path: Path | None) -> None:
        if path is not None:
            whole = {"title": self.title, **self.facts, "missed": self.missed, **self.tables}
            path.write_text(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
