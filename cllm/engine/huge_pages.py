"""Weights in huge pages: fewer translations of addresses, where Linux gives them only when asked.

What llama.cpp repacks for its fast kernels lies in memory of its own, which few systems back with
huge pages by themselves: "madvise" is the kernel's setting in most distributions.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LEAST = 4 << 20  # bytes of a mapping that is worth it: two pages
_MADV_HUGEPAGE = 14  # asm-generic/mman-common.h


def advise() -> None:
    """Ask for huge pages wherever large private memory has not been written yet.

    Memory that was written keeps its small pages. Changes nothing on other systems.
    """
    if sys.platform != "linux" or not _only_when_asked():
        return
    madvise = ctypes.CDLL(None).madvise
    for start, end in _large_mappings():
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


def _only_when_asked() -> bool:
    try:
        return "[madvise]" in _SETTING.read_text()
    except OSError:
        return False


def _large_mappings() -> Iterator[tuple[int, int]]:
    """The addresses of private mappings that no file is behind (proc_pid_maps(5))."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, mode, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if mode == "rw-p" and not name and end - start >= _LEAST:
            yield start, end
