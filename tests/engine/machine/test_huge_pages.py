"""Large memory gets huge pages before it is written, if the system gives them on request."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cllm.engine.machine import huge_pages

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not huge_pages._only_when_asked(),
    reason="the system gives huge pages by itself, or never",
)


def advised() -> Iterator[tuple[int, int]]:
    """The mappings that huge pages were asked for."""
    span = (0, 0)
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = first.split("-")
            span = int(start, 16), int(end, 16)
        elif first == "VmFlags:" and "hg" in line.split():
            yield span


def test_large_new_memory_is_asked_for_in_huge_pages_and_no_other() -> None:
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    old = mmap.mmap(-1, 32 << 20, kind)
    pages = huge_pages.HugePages()
    large = mmap.mmap(-1, 48 << 20, kind)
    pages.advise()
    spans = list(advised())
    for memory, expected in ((old, False), (large, True)):
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert any(start <= begin < end for start, end in spans) == expected


def test_a_models_weights_are() -> None:
    # In a process of its own: in this one the weights may fit into memory that others have freed.
    program = (
        "from cllm.engine.llama import Model; from cllm.models import demo_path\n"
        "model = Model(str(demo_path()), mmap=False)\n"
        "flags = [line.split() for line in open('/proc/self/smaps') if line[:8] == 'VmFlags:']\n"
        "print(sum('hg' in line for line in flags)); model.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0
