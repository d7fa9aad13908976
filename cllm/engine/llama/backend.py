"""llama.cpp's library as a whole: its log, its initialization, how it was built."""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface

from cllm.engine.machine.preflight import Library

_log = logging.getLogger("cllm.llama")

# ggml_log_level -> Python's. llama.cpp's "info" is hundreds of lines per load, and most of its
# warnings report choices made on purpose (a context shorter than the one trained for).
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR}
_CONTINUES = 5
_ERROR = 4
_UNSPECIFIC = ("failed to load model", "failed to initialize the context")


class _LogRouter:
    """llama.cpp's log lines -> the logger "cllm.llama"; keeps errors for exceptions.

    llama.cpp may log from any thread, and may send a line in pieces: each one after the first has
    the level "continues".
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[int, tuple[int, str]] = {}  # thread -> level, unfinished line
        self._captures: list[tuple[int, deque[str]]] = []  # thread, its error lines

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        piece = (text or b"").decode("utf-8", "replace")
        thread = threading.get_ident()
        with self._lock:
            level_before, line = self._pending.pop(thread, (level, ""))
            level = level_before if level == _CONTINUES else level
            line += piece
            if not line.endswith("\n"):
                self._pending[thread] = (level, line[-1000:])
                return
            captures = [c for t, c in self._captures if t == thread and level >= _ERROR]
            for capture in captures:
                capture.append(line.strip())
        if line.strip(" .\n"):
            severity = logging.DEBUG if captures else _LEVELS.get(level, logging.DEBUG)
            _log.log(severity, "%s", line.rstrip())

    @contextmanager
    def capture(self) -> Iterator[deque[str]]:
        """Collect this thread's error lines instead of logging them as errors."""
        lines: deque[str] = deque(maxlen=50)
        entry = (threading.get_ident(), lines)
        with self._lock:
            self._captures.append(entry)
        try:
            yield lines
        finally:
            with self._lock:
                self._captures = [other for other in self._captures if other is not entry]


class LoadError(OSError):
    """llama.cpp could not make a model or a context; the message is its reason."""


def reason(errors: Iterable[str]) -> str:
    """The most specific of llama.cpp's error lines: the first that names a cause."""
    lines = [line for line in errors if line]
    for line in lines:
        for begin in ("error loading model: ", "failed to apply lora adapter: "):
            _, mark, cause = line.partition(begin)
            if mark and cause:
                return cause
    if not lines:
        return "llama.cpp gave no reason"
    specific = [line for line in lines if not line.endswith(_UNSPECIFIC)]
    return specific[0] if specific else lines[0]


log_router = _LogRouter()
# llama.cpp keeps the raw pointer: without this reference the next log line would crash.
_log_callback = C.llama_log_callback(log_router)
_backend_lock = threading.Lock()
_backend_ready = False


def init_backend() -> None:
    """Initialize llama.cpp once for the process and take over its log."""
    global _backend_ready
    with _backend_lock:
        if _backend_ready:
            return
        C.llama_log_set(_log_callback, ctypes.c_void_p(0))
        C.llama_backend_init()
        # A line logged by a C++ destructor must not call into a finished interpreter.
        atexit.register(C.llama_log_set, C.llama_log_callback(0), ctypes.c_void_p(0))
        _backend_ready = True


def version() -> str:
    """llama.cpp's version."""
    return str(C.llama_version().decode())


def system_info() -> str:
    """The CPU features and kernels that llama.cpp was built with."""
    return str(C.llama_print_system_info().decode("utf-8", "replace")).strip()


def library() -> Library:
    """The build that llama_cpp loads here, LLAMA_CPP_LIB_PATH included."""
    chosen = os.environ.get("LLAMA_CPP_LIB_PATH")
    directory = Path(chosen) if chosen else Path(llama_cpp.__file__).parent / "lib"
    features = C.llama_print_system_info().decode(errors="replace")
    return Library(directory.resolve(), llama_cpp.__version__, features)


def uses_openmp() -> bool:
    """Whether llama.cpp was built with OpenMP."""
    return "OPENMP = 1" in system_info()
