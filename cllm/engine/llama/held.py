"""Calls of llama.cpp that keep the interpreter lock, for those that take a few microseconds.

ctypes releases the lock around each call. Another thread may then take it and keep it for
milliseconds, while the engine thread has more to do before the next decode.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import llama_cpp.llama_cpp as C  # noqa: N812 - the C interface

_library = ctypes.PyDLL(None, handle=C._lib._handle)


def held(function: Any, result: Any = None) -> Callable[..., Any]:
    """The same function of llama.cpp, called without releasing the lock.

    result: the type that it returns, where another suits better.
    """
    twin = getattr(_library, function.__name__)
    twin.argtypes, twin.restype = function.argtypes, result or function.restype
    return twin  # type: ignore[no-any-return]
