"""Weights in huge pages, for fewer address translations, where Linux needs a request for them.

llama.cpp repacks weights for its fast kernels into private memory, which few systems back with huge
pages by themselves: most distributions set the kernel to "madvise".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_LEAST = 4 << 20  # bytes of a mapping, minimum: two pages
_MADV_HUGEPAGE = 14  # asm-generic/mman-common.h

Span = tuple[int, int]
"""The first address, and the one behind the last."""


class HugePages:
    """Requests huge pages for large private memory mapped after this object was created."""

    def __init__(self) -> None:
        self._before = list(_large_mappings()) if _only_when_asked() else None

    def advise(self) -> None:
        """Request them before the new memory is written; no effect where the system ignores it.

        Other memory, such as threads' stacks, keeps its small pages: huge ones would make more
        of it resident than is used.
        """
        if self._before is None:
            return
        madvise = ctypes.CDLL(None).madvise
        for mapping in _large_mappings():
            for start, end in _outside(mapping, self._before):
                if end - start >= _LEAST:
                    madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_HUGEPAGE)


def _only_when_asked() -> bool:
    if sys.platform != "linux":
        return False
    try:
        return "[madvise]" in _SETTING.read_text()
    except OSError:
        return False


def _outside(mapping: Span, known: list[Span]) -> Iterator[Span]:
    """The part of a mapping outside known ones: the kernel merges adjacent mappings."""
    start, end = mapping
    for known_start, known_end in sorted(known):
        if start < known_end and known_start < end:
            if start < known_start:
                yield start, known_start
            start = known_end
    if start < end:
        yield start, end


def _large_mappings() -> Iterator[Span]:
    """Private mappings without a file (proc_pid_maps(5))."""
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, mode, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if mode == "rw-p" and not name and end - start >= _LEAST:
            yield start, end
