"""What the benchmarks share: options, the machine's description, result tables."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .clients.load import ClientError

PACKAGES = (
    "cllm", "llama-cpp-python", "numpy", "uvicorn", "httptools", "uvloop", "fastapi", "xllamacpp",
)  # fmt: skip


class BenchError(RuntimeError):
    """Something that the benchmark needs is missing or gave a wrong answer; the text names it."""


def parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """An argument parser with the options that every benchmark has."""
    result = argparse.ArgumentParser(
        prog=sys.argv[0],
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--quick", action="store_true", help="smallest run that still checks every answer"
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    return result


def parse(options: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """The command line; with --quick, the values in `quick` are the defaults."""
    given = options.parse_args()
    if given.quick:
        options.set_defaults(**quick)
        given = options.parse_args()
    return given


def positive(text: str) -> int:
    """An argument that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def run(main: Callable[[], int | None]) -> None:
    """Run a benchmark and exit with the status that it returns.

    A `BenchError` is one line and status 1, Ctrl-C is status 130. SIGTERM unwinds the stack too,
    so that no server keeps running.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except (BenchError, ClientError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


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
    data: dict[str, Any] = field(default_factory=dict)  # for the JSON file alone

    def __post_init__(self) -> None:
        program, *rest = sys.argv
        self.facts["command"] = " ".join([program, *map(shlex.quote, rest)])
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
        cells = [columns, *([cell(row.get(column, "")) for column in columns] for row in rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
        print(f"\n**{heading}**\n")
        for index, line in enumerate(cells):
            padded = (text.ljust(width) for text, width in zip(line, widths, strict=True))
            print(f"| {' | '.join(padded)} |")
            if index == 0:
                print(f"|{'|'.join('-' * (width + 2) for width in widths)}|")
        sys.stdout.flush()

    def target(self, what: str, measured: float, met: bool) -> None:
        """Print a target, the measured value and whether it is met."""
        print(f"\ntarget: {what}: measured {cell(measured)}: {'met' if met else 'MISSED'}")
        if not met:
            self.missed.append(what)

    def write(self, path: Path | None) -> None:
        if path is not None:
            known = {"title": self.title, **self.facts, "missed": self.missed}
            whole = {**known, **self.tables, **self.data}
            path.write_text(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")


def cell(value: object) -> str:
    """A value as the tables show it: three significant digits, thousands apart (10 000)."""
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}".replace(",", " ") if isinstance(value, (int, float)) else str(value)
