"""Bounds how long OpenMP's threads spin while they wait for each other; stdlib only.

llama.cpp's threads synchronize after each operation. By default a waiting thread keeps its core
busy: for up to 20 ms with GNU OpenMP, for 200 ms with LLVM's. On a machine with other load, the
thread it waits for may need that core. The bounds are longer than a wait on an idle machine. The
runtimes read them when loaded, so this runs before llama.cpp is loaded.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

_log = logging.getLogger("cllm.engine")

BOUNDS = {
    "GOMP_SPINCOUNT": "100000",  # turns of a loop with a pause: 2 to 7 ms
    "KMP_BLOCKTIME": "5",  # milliseconds
}
_DECISIONS = ("OMP_WAIT_POLICY", "KMP_LIBRARY", *BOUNDS)
_RUNTIME = re.compile(r"/lib(?:gomp|i?omp\d*)\b[^/]*\.so[^/]*$")

_loaded_before: frozenset[str] | None = None  # runtimes in the process when the bounds were set
_told = False


def bound_spinning() -> None:
    """Set the bounds for this process, unless the user has set such a variable."""
    global _loaded_before
    if any(name in os.environ for name in _DECISIONS):
        return
    _loaded_before = runtimes()
    os.environ.update(BOUNDS)


def environment_without_bounds() -> dict[str, str]:
    """The user's environment, for programs other than cLLM."""
    ours = BOUNDS if _loaded_before is not None else {}
    return {name: value for name, value in os.environ.items() if name not in ours}


def runtimes() -> frozenset[str]:
    """The files of the OpenMP runtimes in this process; empty if the system has no list."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(line.split(maxsplit=5)[-1] for line in lines if _RUNTIME.search(line))


def tell_if_too_late() -> None:
    """Log once if llama.cpp shares a runtime that was loaded before the bounds were set.

    Call it when llama.cpp is loaded and was compiled with OpenMP.
    """
    global _told
    before = _loaded_before
    if _told or not before or runtimes() - before:
        return
    _told = True
    names = ", ".join(sorted(Path(path).name for path in before))
    bounds = " ".join(f"{name}={value}" for name, value in BOUNDS.items())
    _log.warning(
        "%s was loaded before cLLM: if its threads spin, generation is slow while other programs "
        "run; import cllm first, or start the process with %s",
        names, bounds,
    )  # fmt: skip
