"""Processes that only compute, next to a measurement, and the speed that is left."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

# It ends with its parent, however that ends.
_COMPUTE = """
import os, sys
parent = int(sys.argv[1])
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


class BusyProcesses:
    """A number of such processes, for the duration of a with statement."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> BusyProcesses:
        command = [sys.executable, "-c", _COMPUTE, str(os.getpid())]
        for _ in range(self._count):
            self._running.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._running:
            process.kill()
        for process in self._running:
            process.wait()
        self._running.clear()


def kept(results: Mapping[int, Mapping[str, Mapping[str, list[float]]]]) -> list[dict[str, Any]]:
    """One row for each contender: tokens/s and their share of the first column's, medians.

    results: number of busy processes -> contender -> measure -> one value a round.
    """
    first, *others = results
    table = []
    for name, measures in results[first].items():
        base = measures["tokens/s"]
        row: dict[str, Any] = {"server": name, f"{first} busy": statistics.median(base)}
        for busy in others:
            values = results[busy][name]["tokens/s"]
            part = statistics.median(a / b for a, b in zip(values, base, strict=True))
            row[f"{busy} busy"] = f"{statistics.median(values):.3g} ({part:.2f}×)"
        table.append(row)
    return table
