"""A child process for constraints that dies on those whose source contains a mark.

The process, its pipes and its death are real; only the reason is injected.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from llguidance import LLTokenizer

from cllm.engine.constraints import grammars
from cllm.engine.constraints.compile_child import Child
from cllm.engine.constraints.compiling import compile_constraint
from cllm.engine.constraints.constraint import Constraint


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def _spin() -> None:
    while True:
        pass


def _stall() -> None:
    time.sleep(600)


def _grow() -> None:
    kept = []
    while True:
        kept.append(np.empty(2**24, np.uint8))  # no page is touched, so it takes no time


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def _left() -> None:
    os._exit(3)


def _panic() -> None:
    raise BaseException("a panic")


MARKS: dict[str, Callable[[], None]] = {
    "planted-crash": _crash,
    "planted-spin": _spin,
    "planted-stall": _stall,
    "planted-growth": _grow,
    "planted-kill": _killed,
    "planted-exit": _left,
    "planted-panic": _panic,
}
_HELD = re.compile('planted-hold:([^":]+):')


def _compile(constraint: Constraint, tokenizer: LLTokenizer) -> Any:
    for mark, end in MARKS.items():
        if mark in constraint.source:
            end()
    held = _HELD.search(constraint.source)
    if held:
        Path(held[1]).read_bytes()  # a named pipe: until the test opens and closes it
    return compile_constraint(constraint, tokenizer)


@contextmanager
def planted() -> Iterator[None]:
    """Engines that compile their first constraint within this use such children."""
    command = (sys.executable, "-m", "tests.planted_child")
    with mock.patch.object(grammars, "COMMAND", command):
        yield


if __name__ == "__main__":
    Child(_compile).run()
