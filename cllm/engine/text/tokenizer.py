"""Keeps the vocabulary open while threads tokenize with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cllm.engine.errors import EngineClosed
from cllm.engine.machine.own_process import OwnProcess


@dataclass(slots=True)
class Guard:
    """Keeps the vocabulary from being freed while a thread tokenizes with it."""

    _changed: threading.Condition = field(default_factory=threading.Condition)
    _borrowers: int = 0
    _closed: bool = False
    process: OwnProcess = field(default_factory=OwnProcess)

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        self.process.check()
        with self._changed:
            if self._closed:
                raise EngineClosed
            self._borrowers += 1
        try:
            yield
        finally:
            with self._changed:
                self._borrowers -= 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._borrowers == 0)
