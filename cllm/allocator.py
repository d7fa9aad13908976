"""glibc's malloc: what large requests needed goes back to the system."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # malloc.h
_M_TRIM_THRESHOLD = -1
_M_ARENA_MAX = -8

LARGE = 4 * 2**20  # bytes; far above what a step of the engine allocates
SPARE = 16 * 2**20  # bytes of free memory that the process keeps at the end of its heap


def return_large_blocks() -> None:
    """Give freed memory back to the system soon. Does nothing without glibc.

    By default glibc raises its threshold to 32 MiB with the first large block that is freed, and
    each thread has an arena of its own, whose free memory other threads cannot use. A few bodies of
    16 MiB then leave the process some 200 MiB larger for good; with these settings, 4 MiB.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)
        mallopt(_M_TRIM_THRESHOLD, SPARE)
        mallopt(_M_ARENA_MAX, 1)
