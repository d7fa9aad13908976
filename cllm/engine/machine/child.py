"""Child processes that run a module of this package: their environment, and how they ended."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def signal_name(number: int) -> str:
    """SIGSEGV for 11, and so on."""
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def child_environment() -> dict[str, str]:
    """The environment in which a child process imports this cllm, wherever it was found."""
    root = str(Path(__file__).resolve().parents[3])  # the folder that holds the package cllm
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "GGML_NO_BACKTRACE": "1",  # a failing assertion would start gdb
        # OpenMP threads that spin while they wait make this ten times slower on a busy machine.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }
