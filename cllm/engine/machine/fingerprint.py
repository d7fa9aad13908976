"""Tells one large file from another without reading all of it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

_SAMPLES, _SAMPLE = 256, 4096  # parts of the file that are read, and their bytes


def fingerprint(path: Path) -> str:
    """64 hex digits that identify a file, from its size and samples from all of it."""
    size = path.stat().st_size
    digest = sha256(str(size).encode())
    with path.open("rb") as file:
        for i in range(_SAMPLES):
            file.seek(size * i // _SAMPLES)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
