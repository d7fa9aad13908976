"""Ctrl-C at a chosen place of a call."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def pressed_at(place: int, call: Callable[[], object]) -> bool:
    """Press Ctrl-C at a place of the call where Python looks for signals; False: it has fewer.

    It does so when a function of its own begins, and after one of C.
    """
    left = place

    def look(_frame: FrameType, event: str, _: Any) -> None:
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if left == 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGINT)

    sys.setprofile(look)
    try:
        call()
    except KeyboardInterrupt:
        assert left <= 0
    finally:
        sys.setprofile(None)
    return left <= 0
